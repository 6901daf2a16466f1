"""A store that no teacher has seen, a run trained on it and its export: each made once, and not to be changed."""

import contextlib
import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from delta import bundled
from delta.student import SIDE_MULTIPLE
from delta_cache.schema import ArraySpec, Contract, Photo, SampleRecord, Status, digest_photos
from delta_cache.writer import open_or_create, write_chunk
from delta_pipelines.cli import main
from delta_pipelines.distill import distill
from delta_pipelines.recipe import load_recipe
from delta_pipelines.train_recipe import TrainRecipe

ROOT = Path(__file__).parent.parent.parent
SAMPLES, VIEW_PX, CHUNK, TAPS = 12, 128, 4, ("block09", "block12")


def random_sample(index: int) -> dict[str, np.ndarray]:
    """A scene of random blobs whose brightness is its depth, and features of noise."""
    rng = np.random.default_rng(index)
    coarse = Image.fromarray(rng.integers(30, 226, (4, 4), dtype=np.uint8))
    depth = np.asarray(coarse.resize((VIEW_PX, VIEW_PX), Image.Resampling.BICUBIC))
    noise = rng.integers(-20, 21, (VIEW_PX, VIEW_PX, 3))
    return {
        "image": (depth[..., None] + noise).clip(0, 255).astype(np.uint8),
        "disparity": (depth / 64).astype(np.float16),
        "status": np.array(Status.OK, np.uint8),
        **{f"features/{tap}": rng.standard_normal((8, 9, 9)).astype(np.float16) for tap in TAPS},
    }


def write_store(path: Path, *, teacher: str = "noise", without_chunks: Collection[int] = ()) -> Path:
    """Write a store of twelve samples in three chunks; leave some chunks out to have it incomplete."""
    sample = random_sample(0)
    photos = [Photo(path=f"{index:02d}.png", bytes=1) for index in range(SAMPLES)]
    contract = Contract(
        teacher={"precision": "float32", "weights_sha256": hashlib.sha256(teacher.encode()).hexdigest()},
        recipe={"size_px": VIEW_PX},
        photos={"count": SAMPLES, "list_sha256": digest_photos(photos)},
        arrays=tuple(ArraySpec(name=name, shape=value.shape, dtype=value.dtype.name) for name, value in sample.items()),
        chunk_samples=CHUNK,
        samples=SAMPLES,
    )
    store = open_or_create(path, contract, photos, {"teacher": teacher})
    for chunk in set(range(contract.chunks)) - set(without_chunks):
        members = [random_sample(index) for index in contract.chunk_range(chunk)]
        data = {name: np.stack([member[name] for member in members]) for name in sample}
        records = tuple(SampleRecord(path=photos[i].path, sha256="") for i in contract.chunk_range(chunk))
        write_chunk(store, chunk, data, records)
    return path


@pytest.fixture(scope="session")
def store_at() -> Callable[..., Path]:
    """`store_at(path, teacher=..., without_chunks=...)` writes another store like `tiny_store`."""
    return write_store


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve samples of 128 px with two taps, in three chunks; not to be changed."""
    return write_store(tmp_path_factory.mktemp("tiny") / "store.zarr")


@pytest.fixture(scope="session")
def tiny_settings() -> tuple[str, ...]:
    """What to `--set` so that recipe `student` takes six steps of three images at 64 px."""
    return (
        f"size_px={SIDE_MULTIPLE}",
        "epochs=2",
        "batch_size=3",
        "student.encoder_weights=none",
        "student.width=16",
        "optimizer.precision=float32",
        "checkpoint_steps=2",
        "evaluate_steps=2",
        "feed.window_chunks=2",
        "feed.holdout=0.25",
    )


@pytest.fixture(scope="session")
def tiny_recipe(tiny_settings: tuple[str, ...]) -> Callable[..., TrainRecipe]:
    """`tiny_recipe("seed=1", ...)` is that recipe with further settings."""
    return lambda *settings: load_recipe(TrainRecipe, "student", [*tiny_settings, *settings])


@pytest.fixture(scope="session")
def tiny_run(
    tiny_store: Path, tiny_recipe: Callable[..., TrainRecipe], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of `tiny_recipe()` on `tiny_store`, in one go; not to be changed."""
    run = tmp_path_factory.mktemp("tiny") / "run"
    distill(tiny_recipe(), tiny_store, run, device=torch.device("cpu"))
    return run


@pytest.fixture(scope="session")
def few_photos(photo_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos of 90 x 70 px; not to be changed."""
    return photo_folder(tmp_path_factory.mktemp("few") / "photos", count=3, size=(90, 70))


@pytest.fixture(scope="session")
def tiny_export(few_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The bundled student as a small bundle, by `delta export --json`, and what that printed.

    Not that of `tiny_run`: after six steps nearly every convolution is too coarse in 8 bits, and export says so.
    """
    path = tmp_path_factory.mktemp("tiny") / "new" / "bundle"
    command = ["export", bundled.STUDENT, path, "--photos", few_photos, "--size", "64x128", "--json"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(sys, "argv", ["delta", *map(str, command)])
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
    return path, out.getvalue()


@pytest.fixture(scope="session")
def tiny_bundle(tiny_export: tuple[Path, str]) -> Path:
    """The bundle of `tiny_export`; not to be changed."""
    return tiny_export[0]


@pytest.fixture(scope="session")
def tiny_model(tiny_bundle: Path) -> Path:
    """Its float32 file; not to be changed."""
    return tiny_bundle / "depth_64x128_fp32.onnx"


@pytest.fixture(scope="session")
def python() -> Callable[..., subprocess.Popen[str]]:
    """`python(code, *arguments, **environment)` starts a fresh interpreter that sees the three rooms."""

    def start(code: str, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        rooms = os.pathsep.join(str(ROOT / room) for room in (".", "cache", "pipelines"))
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": rooms, "COLUMNS": "200"} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    return start
