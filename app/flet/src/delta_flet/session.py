"""What the app is doing, without a screen: one model, some photos, a camera or none. Knows no Flet.

Calls that predict take as long as the model does; the app runs them in a thread, one at a time.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from delta.colormaps import COLORMAPS
from delta.errors import DeltaError
from delta.images import read_photo, resize, to_tensor_layout
from delta.steady_range import SteadyRange
from delta_flet import pictures
from delta_flet.frames import Frame, FrameRate
from delta_flet.models import ModelChoice, TimedPredictor, list_choices, open_model

SMOOTHING = 0.2  # of a new frame's time in the times that are shown, which would be unreadable otherwise
RANGE_STRIDE = 2  # every fourth pixel is enough for two percentiles


class Phase(StrEnum):
    """What the stage shows."""

    EMPTY = "empty"
    PHOTO = "photo"
    LIVE = "live"


class Comparison(StrEnum):
    """How the photo and its depth share the stage."""

    DEPTH = "depth"
    SIDE = "side"
    OVERLAY = "overlay"
    SLIDER = "slider"


class Saving(StrEnum):
    """What can be saved of a photo."""

    DEPTH = "depth"
    DEPTH16 = "disparity"
    SIDE = "side_by_side"


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """What went wrong, for a person: which part of the app, what happened, the way out."""

    part: str  # model, photo or camera
    message: str
    hint: str

    @classmethod
    def of(cls, part: str, error: DeltaError) -> "Trouble":
        """Tell it from an error."""
        return cls(part=part, message=str(error), hint=error.hint)


@dataclass(frozen=True, kw_only=True, eq=False)
class Shot:
    """A photo as it came: the bytes of a file, or pixels of the camera; equal to nothing but itself."""

    name: str
    content: bytes | UInt8[np.ndarray, "h w 3"]
    thumbnail: bytes

    def read(self) -> UInt8[np.ndarray, "h w 3"]:
        """Decode it."""
        return read_photo(BytesIO(self.content)) if isinstance(self.content, bytes) else self.content


@dataclass(frozen=True, kw_only=True)
class Times:
    """Milliseconds of a frame: to the graph's size, the graph, to colors, until it was on the screen."""

    prepare_ms: float = 0.0
    infer_ms: float = 0.0
    paint_ms: float = 0.0
    show_ms: float = 0.0
    frames_per_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A photo and its disparity, at the photo's own size."""

    photo: UInt8[np.ndarray, "h w 3"]
    disparity: Float32[np.ndarray, "h w"]
    infer_ms: float


class Session:
    """The app's state; every method leaves it such that the screen can be drawn from it."""

    def __init__(self, models: Sequence[Path], threads: int = 0) -> None:
        self.threads = threads
        self.phase = Phase.EMPTY
        self.colormap, self.comparison, self.mix = COLORMAPS[0], Comparison.SIDE, 0.5
        self.choices: tuple[ModelChoice, ...] = ()
        self.choice: ModelChoice | None = None
        self.shots: list[Shot] = []
        self.current = -1
        self.answer: Answer | None = None
        self.troubles: dict[str, Trouble] = {}
        self.times = Times()
        self._predictor: TimedPredictor | None = None
        self._steady, self._rate, self._last_s = SteadyRange(), FrameRate(), 0.0
        self._frame: Frame | None = None
        if self._attempt("model", lambda: self._list_models(models)):
            self.choose_model(next(iter(self.choices)))

    @property
    def ready(self) -> bool:
        """Whether there is a model to predict with."""
        return self._predictor is not None

    @property
    def size_px(self) -> tuple[int, int]:
        """The graph's height and width; 0 without a model."""
        return self._predictor.card.size_px if self._predictor else (0, 0)

    @property
    def shot(self) -> Shot | None:
        """The photo on the stage."""
        return self.shots[self.current] if 0 <= self.current < len(self.shots) else None

    def choose_model(self, choice: ModelChoice) -> bool:
        """Load another model, and look at the photo again with it; a file that fails leaves the app without one."""
        self.choice, self._predictor, self.answer = choice, None, None
        self.forget_trouble("model")
        opened = self._attempt("model", lambda: self._open(choice))
        if opened and self.phase is Phase.PHOTO:
            self.show(self.current)
        return opened

    def forget_trouble(self, part: str) -> None:
        """Stop telling what went wrong with the model, a photo or the camera."""
        self.troubles.pop(part, None)

    def add_photo(self, name: str, content: bytes | UInt8[np.ndarray, "h w 3"] | None) -> bool:
        """Take in a photo; what cannot be read becomes a trouble that names it, and nothing else changes."""
        try:
            if content is None:
                raise DeltaError("its file could not be read")
            photo = read_photo(BytesIO(content)) if isinstance(content, bytes) else content
        except DeltaError as error:
            self.troubles["photo"] = Trouble(
                part="photo", message=f"{name} cannot be used: {error}", hint="open a JPEG, PNG or WebP photo"
            )
            return False
        self.shots.append(Shot(name=name, content=content, thumbnail=pictures.thumbnail(photo)))
        return True

    def show(self, index: int) -> bool:
        """Put a photo on the stage and predict it."""
        self.phase, self.current, self.answer = Phase.PHOTO, index, None
        return self._attempt("photo", lambda: self._predict(self.shots[index]))

    def remove(self, index: int) -> None:
        """Take a photo out; its neighbor comes on the stage."""
        del self.shots[index]
        if self.shots:
            self.show(min(self.current - (index < self.current), len(self.shots) - 1))
        else:
            self.phase, self.current, self.answer, self.times = Phase.EMPTY, -1, None, Times()

    def go_live(self) -> None:
        """Begin with a scene that was never seen."""
        self.phase = Phase.LIVE
        self._steady, self._rate, self._last_s, self._frame = SteadyRange(), FrameRate(), 0.0, None
        self.forget_trouble("camera")
        self.times = Times()

    def stop_live(self, trouble: DeltaError | None = None) -> None:
        """Go back to the photo, or to nothing."""
        self.phase = Phase.PHOTO if self.answer else Phase.EMPTY
        self.times = Times(infer_ms=self.answer.infer_ms if self.answer else 0.0)
        self._frame = None
        if trouble:
            self.troubles["camera"] = Trouble.of("camera", trouble)

    def live(self, frame: Frame, now_s: float) -> bytes:
        """Predict a frame of the camera and paint it, as a BMP, in a range that follows the scene slowly.

        Raises:
            DeltaError: the model fails.
        """
        assert self._predictor
        start = time.perf_counter()
        pixels = to_tensor_layout(resize(frame.pixels, *self.size_px))
        prepared = time.perf_counter()
        disparity = self._predictor.infer(pixels)
        inferred = time.perf_counter()
        low, high = self._steady.follow(disparity[::RANGE_STRIDE, ::RANGE_STRIDE], now_s - (self._last_s or now_s))
        picture = pictures.paint(disparity, self.colormap, low, high)
        if self.phase is not Phase.LIVE:  # stopped while this frame was predicted
            return picture
        self._last_s, self._frame = now_s, frame
        found = Times(
            prepare_ms=(prepared - start) * 1000,
            infer_ms=(inferred - prepared) * 1000,
            paint_ms=(time.perf_counter() - inferred) * 1000,
        )
        self.times = _smoothed(self.times, found)
        return picture

    def shown(self, show_ms: float, now_s: float) -> None:
        """Note that a live frame reached the screen."""
        if self.phase is not Phase.LIVE:
            return
        before = self.times.show_ms
        smoothed = before + SMOOTHING * (show_ms - before) if before else show_ms
        self.times = replace(self.times, show_ms=smoothed, frames_per_s=self._rate.count(now_s))

    def take_still(self, mirrored: bool) -> bool:
        """Keep the last live frame as a photo, as it was seen."""
        if self._frame is None:
            return False
        pixels = self._frame.pixels
        return self.add_photo(
            f"camera_{len(self.shots) + 1}", np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels
        )

    def file_to_save(self, saving: Saving) -> tuple[str, bytes]:
        """Encode what is to be saved, and name it after the photo.

        Raises:
            DeltaError: there is nothing to save yet.
        """
        if self.answer is None or self.shot is None:
            raise DeltaError("there is nothing to save yet", "open a photo first")
        content = {
            Saving.DEPTH: lambda answer: pictures.depth_png(answer.disparity, self.colormap),
            Saving.DEPTH16: lambda answer: pictures.depth_png16(answer.disparity),
            Saving.SIDE: lambda answer: pictures.side_by_side_png(answer.photo, answer.disparity, self.colormap),
        }[saving](self.answer)
        return f"{Path(self.shot.name).stem}_{saving}.png", content

    def _attempt(self, part: str, work: Callable[[], None]) -> bool:
        """Do `work`; what a person can mend becomes the trouble of `part`."""
        try:
            work()
        except DeltaError as error:
            self.troubles[part] = Trouble.of(part, error)
            return False
        return True

    def _list_models(self, models: Sequence[Path]) -> None:
        self.choices = list_choices(models)

    def _open(self, choice: ModelChoice) -> None:
        self._predictor = open_model(choice, self.threads)

    def _predict(self, shot: Shot) -> None:
        if self._predictor is None:
            raise DeltaError("there is no model to predict with", "choose another one")
        photo = shot.read()
        disparity = self._predictor.predict(photo)
        self.answer = Answer(photo=photo, disparity=disparity, infer_ms=self._predictor.infer_ms)
        self.times = Times(infer_ms=self.answer.infer_ms)


def _smoothed(before: Times, found: Times) -> Times:
    if not before.infer_ms:
        return replace(found, show_ms=before.show_ms, frames_per_s=before.frames_per_s)
    mixed = {
        name: getattr(before, name) + SMOOTHING * (getattr(found, name) - getattr(before, name))
        for name in ("prepare_ms", "infer_ms", "paint_ms")
    }
    return replace(before, **mixed)
