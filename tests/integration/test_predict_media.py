"""Prediction of videos, point clouds and bundles, as a person calls it."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from delta.predict import DepthPredictor, load_disparity_png16
from delta.steady_range import SteadyRange

FRAMES, RATE, HEIGHT, WIDTH = 12, 10, 72, 97


def write_clip(path: Path, frames: int = FRAMES, suffix_codec: str = "mpeg4") -> Path:
    """A window that wanders over a picture of blobs; keyframes only, so that a cut file breaks where it is cut."""
    coarse = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(coarse).resize((WIDTH * 2, HEIGHT), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(suffix_codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH // 2 * 2, HEIGHT, "yuv420p", 1
        for index in range(frames):
            window = np.ascontiguousarray(wide[:, index * 4 : index * 4 + WIDTH // 2 * 2])
            for packet in stream.encode(av.VideoFrame.from_ndarray(window, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def read_clip(path: Path) -> tuple[list[np.ndarray], list[float]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.to_ndarray(format="rgb24") for frame in frames], [frame.time for frame in frames]


def complaint(ended) -> str:
    assert ended.code == 2, ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err
    return " ".join(ended.err.split("error:", 1)[1].split())


def test_a_video_becomes_a_video_of_frames_and_depth_side_by_side(delta, tmp_path, tiny_bundle):
    clip = write_clip(tmp_path / "clip.mp4")
    ended = delta("predict", tiny_bundle, clip, "-o", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert ended.out == f"{tmp_path / 'out' / 'clip_depth.mp4'}\n"
    assert "a second through the model" in ended.err
    frames, times = read_clip(tmp_path / "out" / "clip_depth.mp4")
    assert np.shape(frames) == (FRAMES, HEIGHT, 2 * (WIDTH // 2 * 2), 3)
    np.testing.assert_allclose(times, np.arange(FRAMES) / RATE, atol=1e-3)
    originals, _ = read_clip(clip)
    left = frames[5][:, : WIDTH // 2 * 2].astype(float)
    assert np.abs(left - originals[5]).mean() < 8  # two lossy encodings
    assert np.abs(frames[5][:, WIDTH // 2 * 2 :].astype(float) - originals[5]).mean() > 20
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["clip_depth.mp4"]


def test_depth_alone_and_the_maps_of_every_frame(delta, tmp_path, tiny_bundle):
    clip = write_clip(tmp_path / "clip.avi", frames=3)
    arguments = ("--depth-only", "--npy", "--png16", "--batch", "2", "--colormap", "gray")
    assert delta("predict", tiny_bundle, clip, "-o", tmp_path / "out", *arguments).code == 0
    frames, _ = read_clip(tmp_path / "out" / "clip_depth.mp4")
    assert np.shape(frames) == (3, HEIGHT, WIDTH // 2 * 2, 3)
    maps = sorted((tmp_path / "out" / "clip_frames").iterdir())
    assert [path.name for path in maps[:2]] == ["000001_disparity.npy", "000001_disparity.png"]
    assert len(maps) == 6
    originals, _ = read_clip(clip)
    expected = DepthPredictor.open(tiny_bundle).predict(originals[1])
    np.testing.assert_array_equal(np.load(maps[2]), expected)
    np.testing.assert_allclose(load_disparity_png16(maps[3]), expected, atol=np.ptp(expected) / 65535)


def test_a_video_with_a_broken_tail_keeps_what_came_before(delta, tmp_path, tiny_bundle):
    clip = write_clip(tmp_path / "clip.avi")
    whole = clip.read_bytes()
    pictures = whole.index(b"movi")  # before them are headers and padding
    clip.write_bytes(whole[: pictures + (len(whole) - pictures) * 6 // 10])
    error = complaint(delta("predict", tiny_bundle, clip, "-o", tmp_path / "out"))
    frames, _ = read_clip(tmp_path / "out" / "clip_depth.mp4")
    assert 3 < len(frames) < FRAMES
    assert error.startswith(f"{clip} breaks off after frame {len(frames)} (")
    assert f"hint: the depth of what came before is in {tmp_path / 'out' / 'clip_depth.mp4'}" in error


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("absent.mp4", None, "there is no video"),
        ("text.mp4", b"no film, honestly", "is no video that can be read"),
        ("empty.mkv", b"", "is no video that can be read"),
    ],
)
def test_what_is_no_video_is_said(delta, tmp_path, tiny_bundle, name, content, named):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    error = complaint(delta("predict", tiny_bundle, tmp_path / name, "-o", tmp_path / "out"))
    assert named in error
    assert str(tmp_path / name) in error
    assert not (tmp_path / "out").exists()


def test_sound_alone_is_no_video(delta, tmp_path, tiny_bundle):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    assert "holds no pictures" in complaint(delta("predict", tiny_bundle, path, "-o", tmp_path / "out"))


def test_without_pyav_the_way_to_it_is_named(delta, tmp_path, tiny_bundle, monkeypatch):
    clip = write_clip(tmp_path / "clip.mp4", frames=1)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    error = complaint(delta("predict", tiny_bundle, clip, "-o", tmp_path / "out"))
    assert error == "videos need PyAV, which is not installed hint: pip install 'delta-depth[video]'"


def test_the_range_of_the_colors_follows_slowly_and_jumps_at_a_cut():
    steady, first = SteadyRange(smoothing_s=1.0), np.linspace(0, 1, 1001, dtype=np.float32)
    low, high = steady.follow(first, 0.0)
    assert (low, high) == pytest.approx((0.02, 0.98))
    _, flicker = steady.follow(first * 2, 0.1)  # a tenth of the time constant: 9.5 % of the way
    assert flicker == pytest.approx(0.98 + (1 - np.exp(-0.1)) * 0.98)
    for _ in range(100):
        _, settled = steady.follow(first * 2, 0.1)
    assert settled == pytest.approx(1.96, rel=1e-3)
    assert steady.follow(first + 50, 0.1) == pytest.approx((50.02, 50.98))  # nothing in common: another scene
    assert steady.follow(np.full(4, np.nan, np.float32), 0.0) == pytest.approx((0.0, 1.0))


def test_a_point_cloud_and_a_view_are_written_on_request(delta, tmp_path, tiny_bundle, few_photos):
    photo = next(few_photos.rglob("*.png"))
    ended = delta(
        "predict", tiny_bundle, photo, "-o", tmp_path, "--ply", "--view", "--depth-only", "--precision", "int8"
    )
    assert ended.code == 0, ended.err
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == sorted(f"{photo.stem}{end}" for end in (".ply", "_depth.png", "_view.png"))
    with Image.open(tmp_path / f"{photo.stem}_depth.png") as depth, Image.open(photo) as original:
        assert depth.size == original.size
    assert (tmp_path / f"{photo.stem}.ply").read_bytes().startswith(b"ply\n")


def test_a_folder_is_predicted_in_batches_as_one_by_one(delta, tmp_path, tiny_bundle, few_photos):
    for batch in ("1", "2"):
        ended = delta("predict", tiny_bundle, few_photos, "-o", tmp_path / batch, "--npy", "--batch", batch)
        assert ended.code == 0, ended.err
    maps = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.npy"))
    assert len(maps) == 3
    for name in maps:
        np.testing.assert_array_equal(np.load(tmp_path / "1" / name), np.load(tmp_path / "2" / name))


def test_an_output_that_cannot_be_written_is_said(delta, tmp_path, tiny_bundle, few_photos):
    (tmp_path / "out").write_text("a file")
    assert str(tmp_path / "out") in complaint(delta("predict", tiny_bundle, few_photos, "-o", tmp_path / "out"))
    clip = write_clip(tmp_path / "clip.mp4", frames=1)
    assert str(tmp_path / "out") in complaint(delta("predict", tiny_bundle, clip, "-o", tmp_path / "out"))


def test_cuda_that_is_not_there_is_said(delta, tmp_path, tiny_bundle, few_photos):
    import onnxruntime
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    for provider in ("cuda", "tensorrt"):
        error = complaint(delta("predict", tiny_bundle, few_photos, "-o", tmp_path / "out", "--provider", provider))
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            assert "was asked for, but there is no NVIDIA driver here hint: ask for CPUExecutionProvider" in error
        else:
            assert "pip install onnxruntime-gpu" in error
    assert not (tmp_path / "out").exists()
