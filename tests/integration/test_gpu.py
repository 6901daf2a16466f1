"""On a machine with an NVIDIA GPU: the providers that were asked for are used, and give the student's numbers."""

import time

import numpy as np
import pytest

from delta import bundled
from delta.bundle import choose_model
from delta.checkpoint import load_student
from delta.images import find_photos, read_photo
from delta.onnx_model import PROVIDERS
from delta.parity import compare, onnx_side, torch_side
from delta.parity_report import GATE_RELATIVE_GPU
from delta.predict import DepthPredictor

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_a_gpu_gives_the_students_numbers_without_tf32(name):
    photos = [read_photo(photo) for photo in find_photos(bundled.PHOTOS)]
    student, _ = load_student(bundled.STUDENT)
    report = compare(torch_side(student), onnx_side(choose_model(bundled.STUDENT), PROVIDERS[name]), photos)
    print(f"{report.provider}: {report.max_relative:.2e} of the range")
    assert report.provider == PROVIDERS[name]
    assert report.gate.max_relative == GATE_RELATIVE_GPU
    report.require()


def test_a_dynamic_batch_is_predicted_in_one_run(delta, tmp_path):
    arguments = ("--precision", "fp32", "--precision", "fp16", "--dynamic-batch")
    assert delta("export", bundled.STUDENT, tmp_path / "bundle", *arguments).code == 0
    photos = [read_photo(photo) for photo in find_photos(bundled.PHOTOS)]
    predictor = DepthPredictor.open(tmp_path / "bundle", providers=("cuda",))
    alone = [predictor.predict(photo) for photo in photos]
    together = predictor.predict_batch(photos)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.ptp(one))
    start = time.perf_counter()
    predictor.predict_batch(photos)
    print(f"{len(photos) / (time.perf_counter() - start):.0f} photos a second in one batch, resizing included")
