"""A hundred thousand photos take no more memory than a hundred."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ENTRIES, SOURCES = 100_000, 8  # file systems allow some ten thousand names a file
ALLOWED_BYTES = 2_000_000_000

CODE = """
import json, resource, sys
import torch
from torch.nn import functional
from delta.teacher import TeacherIdentity, TeacherOutput
from delta_pipelines.build_cache import build_cache
from delta_pipelines.cache_recipe import CacheRecipe

class Pooling:
    side_multiple, parameters = 16, 0
    identity = TeacherIdentity(
        name="pooling", weights_sha256="0" * 64, architecture="", preprocessing="", precision="float32"
    )
    def __call__(self, image):
        maps = functional.avg_pool2d(image, 16)
        return TeacherOutput(disparity=1 + image.mean(dim=1), features={"block12": maps}, attention={})

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

recipe = CacheRecipe(size_px=64, taps=(12,), chunk_samples=256, batch_size=64)
Pooling()(torch.zeros(64, 3, 64, 64))
before = peak()
store = build_cache(recipe, sys.argv[1], sys.argv[2], Pooling())
print(json.dumps({"samples": int(store.mask.sum()), "grown": peak() - before}))
"""


@pytest.mark.skipif(os.name != "posix", reason="memory is measured by getrusage")
def test_a_build_of_a_hundred_thousand_photos_stays_within_two_gigabytes(
    python: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(SOURCES):
        colors = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(colors).resize((64, 64), Image.Resampling.NEAREST).save(folder / f"{number:06d}.png")
    for number in range(SOURCES, ENTRIES):
        os.link(folder / f"{number % SOURCES:06d}.png", folder / f"{number:06d}.png")
    process = python(CODE, folder, tmp_path / "store.zarr", OMP_NUM_THREADS="1")
    out, err = process.communicate(timeout=1700)
    assert process.returncode == 0, err
    measured = json.loads(out)
    print(f"{measured['samples']} photos: {measured['grown'] / 1e6:.0f} MB above the teacher", file=sys.stderr)
    assert measured["samples"] == ENTRIES
    assert measured["grown"] < ALLOWED_BYTES
