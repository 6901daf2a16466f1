"""Depth from an exported student: what users and the app call. Knows numpy, Pillow and onnxruntime, no torch.

A disparity is relative inverse depth: larger is nearer; its scale and shift are the student's own, not metres.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps, PngImagePlugin

from delta.bundle import choose_model
from delta.errors import DeltaError, UnreadablePhoto
from delta.files import write_aside
from delta.images import read_photo, resize, resize_disparity, to_tensor_layout
from delta.onnx_model import (
    EXPORT_AGAIN,
    INPUT_NAME,
    OUTPUT_NAME,
    ModelCard,
    open_session,
    providers_named,
    read_model_card,
)

__all__ = [
    "DepthPredictor",
    "ModelCard",
    "as_photo",
    "load_disparity_png16",
    "normalize_for_display",
    "read_model_card",
    "save_disparity_png16",
    "save_npy",
]

MAX_LEVEL = 65535  # of a 16-bit PNG


class DepthPredictor:
    """An exported student, ready to predict; `open` makes one."""

    def __init__(self, session: onnxruntime.InferenceSession, card: ModelCard, path: Path) -> None:
        self._session = session
        self._path = path
        self.card = card

    @classmethod
    def open(
        cls, path: Path | str, *, providers: Sequence[str] = ("CPUExecutionProvider",), threads: int = 0
    ) -> "DepthPredictor":
        """Load a model, or of a bundle the first, to run on the first of `providers` with `threads` CPU threads.

        0 threads are one a core; providers are onnxruntime's names, or "cpu", "cuda", "tensorrt".

        Raises:
            DeltaError: the file is missing, damaged or not Delta's, or the first provider would not be used.
        """
        file = choose_model(Path(path))
        session, card = open_session(file, providers_named(providers), threads)
        return cls(session, card, file)

    @property
    def provider(self) -> str:
        """Name the execution provider that runs the model."""
        return self._session.get_providers()[0]

    def predict(self, image: UInt8[np.ndarray, "h w 3"] | Image.Image | Path | str) -> Float32[np.ndarray, "h w"]:
        """Predict the disparity of a photo at the photo's own size; larger is nearer.

        Raises:
            DeltaError: the photo cannot be read, or the model fails on it.
        """
        photo = as_photo(image)
        disparity = self.infer(to_tensor_layout(resize(photo, *self.card.size_px)))
        return resize_disparity(disparity, *photo.shape[:2])

    def predict_batch(
        self, images: Sequence[UInt8[np.ndarray, "_ _ 3"] | Image.Image | Path | str]
    ) -> list[Float32[np.ndarray, "_ _"]]:
        """Predict several photos, each at its own size: in one run where the graph's batch is dynamic, else in turns.

        Raises:
            DeltaError: a photo cannot be read, or the model fails.
        """
        photos = [as_photo(image) for image in images]
        if not self.card.dynamic_batch or len(photos) < 2:
            return [self.predict(photo) for photo in photos]
        pixels = np.stack([to_tensor_layout(resize(photo, *self.card.size_px)) for photo in photos])
        answers = zip(self._run(pixels), photos, strict=True)
        return [resize_disparity(disparity, *photo.shape[:2]) for disparity, photo in answers]

    def infer(self, pixels: Float32[np.ndarray, "3 h w"]) -> Float32[np.ndarray, "h w"]:
        """Run the graph alone, on RGB in [0, 1] at the graph's own size.

        Raises:
            DeltaError: pixels of another size, or the model fails.
        """
        if pixels.shape[1:] != self.card.size_px:
            found, expected = ("x".join(map(str, size)) for size in (pixels.shape[1:], self.card.size_px))
            raise DeltaError(f"the image is {found} px, the graph takes {expected}", "`predict` resizes by itself")
        return self._run(pixels[None])[0]

    def _run(self, pixels: Float32[np.ndarray, "b 3 h w"]) -> Float32[np.ndarray, "b h w"]:
        try:
            return np.asarray(self._session.run([OUTPUT_NAME], {INPUT_NAME: pixels})[0])
        except Exception as error:  # onnxruntime's exceptions share no narrower base
            message = f"{self._path} failed on {self.provider}: the file is damaged, or memory ran out"
            raise DeltaError(message, EXPORT_AGAIN) from error


def as_photo(image: object) -> UInt8[np.ndarray, "h w 3"]:
    """Read a photo from what a caller has: RGB u8 pixels, a Pillow image or a path.

    Raises:
        DeltaError: none of these, or a file that cannot be read.
    """
    if isinstance(image, Image.Image):
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if isinstance(image, Path | str):
        return _read_named_photo(Path(image))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return image
    found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise DeltaError(f"{found} is no photo", "give RGB pixels as uint8 (height, width, 3), a Pillow image or a path")


def normalize_for_display(
    disparity: Float32[np.ndarray, "h w"], low_percentile: float = 2.0, high_percentile: float = 98.0
) -> Float32[np.ndarray, "h w"]:
    """Stretch the disparity between two percentiles to [0, 1] and clip the rest.

    A map without extent becomes 0.5; what is not finite becomes NaN, which `colorize` paints apart.
    """
    finite = np.isfinite(disparity)
    if not finite.any():
        return np.full_like(disparity, np.nan)
    low, high = np.percentile(disparity[finite].astype(np.float64), [low_percentile, high_percentile])
    wide = np.where(finite, disparity, np.nan).astype(np.float64)
    share = (wide - low) / (high - low) if high > low else np.where(finite, 0.5, np.nan)
    return share.clip(0, 1).astype(np.float32)


def save_disparity_png16(path: Path, disparity: Float32[np.ndarray, "h w"]) -> None:
    """Write a 16-bit gray PNG, linear from this map's minimum (0) to its maximum (65535), so nearer is brighter.

    The two ends are text chunks, `delta.disparity_min` and `delta.disparity_max`, in the units of the disparity:
    disparity = min + level / 65535 * (max - min), exact to half a level. `load_disparity_png16` undoes it.

    Raises:
        DeltaError: the map holds NaN or infinity, which a PNG cannot.
    """
    bad = int(np.count_nonzero(~np.isfinite(disparity)))
    if bad:
        raise DeltaError(f"{bad} of {disparity.size} disparities are not finite", "a .npy file can hold them")
    low, high = float(disparity.min()), float(disparity.max())
    levels = (disparity.astype(np.float64) - low) * (MAX_LEVEL / (high - low) if high > low else 0.0)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("delta.disparity_min", repr(low))
    texts.add_text("delta.disparity_max", repr(high))
    with write_aside(path) as aside:
        Image.fromarray(np.rint(levels).astype(np.uint16)).save(aside, format="PNG", pnginfo=texts)


def load_disparity_png16(path: Path) -> Float32[np.ndarray, "h w"]:
    """Read back what `save_disparity_png16` wrote.

    Raises:
        DeltaError: not such a file.
    """
    try:
        with Image.open(path) as image:
            levels = np.asarray(image, dtype=np.float64)
            low, high = (float(image.info[f"delta.disparity_{end}"]) for end in ("min", "max"))
    except (OSError, KeyError, ValueError, SyntaxError) as error:
        raise DeltaError(f"{path} is no disparity PNG of Delta's", "`delta predict` writes such files") from error
    return (low + levels / MAX_LEVEL * (high - low)).astype(np.float32)


def save_npy(path: Path, disparity: Float32[np.ndarray, "h w"]) -> None:
    """Write the disparity as it is, float32."""
    with write_aside(path) as aside, aside.open("wb") as file:
        np.save(file, disparity, allow_pickle=False)


def _read_named_photo(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    if not path.is_file():
        raise DeltaError(f"there is no photo {path}", "name an existing JPEG, PNG or WebP file")
    try:
        return read_photo(path)
    except UnreadablePhoto as reason:
        raise UnreadablePhoto(f"{path} cannot be used: {reason}", reason.hint) from reason
