"""Depth of a video, frame by frame, with colors that stay steady; PyAV decodes and encodes."""

import itertools
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from delta.colormaps import colorize
from delta.errors import DeltaError
from delta.files import write_aside
from delta.predict import DepthPredictor
from delta.steady_range import SteadyRange
from delta_pipelines.predict_photos import Throughput, Wanted, write_maps

SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
CODECS = ("libx264", "libopenh264", "mpeg4")  # the first that this PyAV has


def is_video(path: Path) -> bool:
    """Whether a path is named like a video."""
    return path.suffix.lower() in SUFFIXES


def predict_video(
    predictor: DepthPredictor,
    video: Path,
    out: Path,
    wanted: Wanted,
    *,
    batch: int = 1,
    on_frame: Callable[[int, int, str], None] = lambda count, total, failure: None,
) -> tuple[Path, Throughput]:
    """Write `NAME_depth.mp4` under `out`: depth beside the frames, or alone; sound is left out.

    Other things wanted go to `NAME_frames/`, a set for each frame.

    Raises:
        DeltaError: no PyAV, no video, or one that breaks off; what came before the break is kept.
    """
    av = _av()
    target, start = out / f"{video.stem}_depth.mp4", time.perf_counter()
    reader = _Reader(av, video)
    graph_s, count, steady, last_s = 0.0, 0, SteadyRange(), 0.0
    try:
        first = next(reader.frames, None)
        if first is None:
            reason = f": {reader.broken}" if reader.broken else ""
            raise DeltaError(f"{video} holds no frame that can be decoded{reason}", "name a video that plays")
        with write_aside(target) as aside, _Writer(av, aside, reader.rate, first[1], wanted) as writer:
            for group in _grouped(itertools.chain([first], reader.frames), batch):
                began = time.perf_counter()
                answers = predictor.predict_batch([image for _, image in group])
                graph_s += time.perf_counter() - began
                for (at_s, image), disparity in zip(group, answers, strict=True):
                    low, high = steady.follow(disparity, at_s - last_s)
                    writer.write(at_s, image, colorize(disparity, wanted.colormap, vmin=low, vmax=high))
                    count, last_s = count + 1, at_s
                    write_maps(image, disparity, out / f"{video.stem}_frames" / f"{count:06d}", wanted)
                    on_frame(1, reader.total, "")
    finally:
        reader.close()
    if reader.broken:
        raise DeltaError(
            f"{video} breaks off after frame {count} ({last_s:.1f} s): {reader.broken}",
            f"the depth of what came before is in {target}",
        )
    wall_s = time.perf_counter() - start
    return target, Throughput(count=count, graph_s=graph_s, wall_s=wall_s, provider=predictor.provider)


class _Reader:
    """The frames of a video with their times; `broken` says why they ended early."""

    def __init__(self, av: Any, video: Path) -> None:
        if not video.is_file():
            raise DeltaError(f"there is no video {video}", f"name one of {', '.join(SUFFIXES)}")
        self._av, self.broken = av, ""
        try:
            self._container = av.open(str(video))
        except av.error.FFmpegError as error:
            raise DeltaError(
                f"{video} is no video that can be read: {error.strerror}", "name a video that plays"
            ) from None
        if not self._container.streams.video:
            self._container.close()
            raise DeltaError(f"{video} holds no pictures", "name a video that plays")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.rate = self._stream.average_rate or 30
        self.total = int(self._stream.frames)
        self.frames = self._decode()

    def close(self) -> None:
        self._container.close()

    def _decode(self) -> Iterator[tuple[float, np.ndarray]]:
        size: tuple[int, int] | None = None
        start_s, count = None, 0
        try:
            for frame in self._container.decode(self._stream):
                size = size or (frame.width, frame.height)
                pixels = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
                at_s = frame.time if frame.time is not None else count / float(self.rate)
                start_s = at_s if start_s is None else start_s
                count += 1
                yield at_s - start_s, np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))
        except self._av.error.FFmpegError as error:
            self.broken = error.strerror
        if not self.broken and self.total and count < self.total:
            self.broken = f"{self.total - count} of {self.total} frames are missing"


class _Writer:
    """An H.264 file whose frames keep their times."""

    def __init__(self, av: Any, path: Path, rate: Any, image: np.ndarray, wanted: Wanted) -> None:
        self._av, self._depth_only, self._last = av, wanted.depth_only, -1
        height, width = image.shape[:2]
        self._size = (height // 2 * 2, (width if wanted.depth_only else 2 * width) // 2 * 2)  # H.264 wants even sides
        self._container = av.open(str(path), "w", format="mp4")
        codec = next(name for name in CODECS if name in av.codecs_available)
        self._stream = self._container.add_stream(codec, rate=rate)
        self._stream.height, self._stream.width = self._size
        self._stream.pix_fmt = "yuv420p"
        self._ticks = 90_000  # a second, as video files usually count
        self._stream.codec_context.time_base = Fraction(1, self._ticks)
        if codec == "libx264":
            self._stream.options = {"crf": "20"}

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for packet in self._stream.encode():
                self._container.mux(packet)
        finally:
            self._container.close()

    def write(self, at_s: float, image: np.ndarray, colored: np.ndarray) -> None:
        picture = colored if self._depth_only else np.concatenate([image, colored], axis=1)
        frame = self._av.VideoFrame.from_ndarray(
            np.ascontiguousarray(picture[: self._size[0], : self._size[1]]), format="rgb24"
        )
        self._last = max(self._last + 1, round(at_s * self._ticks))  # times must rise
        frame.pts, frame.time_base = self._last, Fraction(1, self._ticks)
        for packet in self._stream.encode(frame):
            self._container.mux(packet)


def _grouped(frames: Iterator[Any], batch: int) -> Iterator[list[Any]]:
    while group := list(itertools.islice(frames, batch)):
        yield group


def _av() -> Any:
    try:
        import av
        from av import logging
    except ImportError as error:
        raise DeltaError("videos need PyAV, which is not installed", "pip install 'delta-depth[video]'") from error
    logging.set_level(logging.PANIC)  # what goes wrong comes back as an exception, and is said once
    return av
