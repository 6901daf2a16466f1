"""What ships inside the package: a small student, ready to use, and a dozen photos to try things on."""

from pathlib import Path

_HERE = Path(__file__).parent

PHOTOS = _HERE / "photos"
STUDENT = _HERE / "delta-v0.safetensors"
MODEL = _HERE / "delta-v0.onnx"
