"""Photos are read as a person would see them; what cannot be read says why in one sentence."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from delta.errors import DeltaError, UnreadablePhoto
from delta.images import MIN_SIDE_PX, find_photos, read_photo, resize, resize_box, to_tensor_layout

ROOT_MAY_READ_ALL = os.name != "posix" or os.geteuid() == 0


@pytest.fixture
def colors() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def saved(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that says its size and has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def jpeg_header(width: int, height: int) -> bytes:
    """A JPEG that says its size and has no pixels."""
    frame = struct.pack(">BHHB", 8, height, width, 3) + bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + b"\xff\xda\x00\x02"


def test_photos_are_found_below_in_a_stable_order_whatever_their_case(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "sub/c.webp", "sub/deeper/d.jpeg", "notes.txt", "sub/e.jpg.part", "f.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in find_photos(tmp_path)]
    assert names == ["a.png", "b.JPG", "sub/c.webp", "sub/deeper/d.jpeg"]


def test_a_single_photo_is_found_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "scan.tiff").touch()
    assert find_photos(tmp_path / "scan.tiff") == [tmp_path / "scan.tiff"]


def test_a_folder_named_like_a_photo_is_searched_and_not_listed(tmp_path: Path) -> None:
    (tmp_path / "album.jpg").mkdir()
    (tmp_path / "album.jpg" / "a.png").touch()
    assert find_photos(tmp_path) == [tmp_path / "album.jpg" / "a.png"]


def test_a_link_that_leads_nowhere_is_listed_so_that_its_loss_is_told(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "moved-away.jpg")
    assert find_photos(tmp_path) == [tmp_path / "gone.jpg"]
    with pytest.raises(UnreadablePhoto, match="No such file"):
        read_photo(tmp_path / "gone.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_named_like_a_photo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "a.jpg").touch()
    assert find_photos(tmp_path) == [tmp_path / "a.jpg"]


def test_an_empty_folder_and_a_missing_one_say_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(DeltaError, match=r"no photos in .*: looked for \.jpg, \.jpeg, \.png, \.webp") as empty:
        find_photos(tmp_path)
    assert empty.value.hint == "name a folder that holds JPEG, PNG or WebP files"
    with pytest.raises(DeltaError, match=r"there is no folder .*nowhere") as missing:
        find_photos(tmp_path / "nowhere")
    assert missing.value.hint == "name an existing folder of photos"


def test_a_lossless_photo_is_read_pixel_by_pixel(tmp_path: Path, colors: np.ndarray) -> None:
    for name, options in (("a.png", {}), ("a.webp", {"lossless": True})):
        read = read_photo(saved(tmp_path / name, Image.fromarray(colors), **options))
        np.testing.assert_array_equal(read, colors)
        assert read.dtype == np.uint8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_every_orientation_of_a_camera_is_undone(
    tmp_path: Path, colors: np.ndarray, orientation: int, suffix: str
) -> None:
    """EXIF 2.32, tag 274: where the stored row 0 and column 0 are in the scene."""
    as_stored = {
        1: colors,
        2: colors[:, ::-1],
        3: colors[::-1, ::-1],
        4: colors[::-1],
        5: colors.swapaxes(0, 1),
        6: colors.swapaxes(0, 1)[::-1],
        7: colors.swapaxes(0, 1)[::-1, ::-1],
        8: colors.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    picture = Image.fromarray(np.ascontiguousarray(as_stored))
    np.testing.assert_array_equal(read_photo(saved(tmp_path / f"a.{suffix}", picture, exif=exif, **options)), colors)


def test_an_unknown_orientation_is_left_as_it_is(tmp_path: Path, colors: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 42
    np.testing.assert_array_equal(read_photo(saved(tmp_path / "a.png", Image.fromarray(colors), exif=exif)), colors)


def test_sixteen_bit_gray_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    gray = np.linspace(0, 65535, 40 * 56).reshape(40, 56).astype(np.uint16)
    read = read_photo(saved(tmp_path / "a.png", Image.fromarray(gray)))
    np.testing.assert_array_equal(read, np.repeat((gray >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_turned_sixteen_bit_gray_is_turned_back(tmp_path: Path) -> None:
    gray = np.linspace(0, 65535, 40 * 56).reshape(40, 56).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 3
    read = read_photo(saved(tmp_path / "a.png", Image.fromarray(gray[::-1, ::-1].copy()), exif=exif))
    np.testing.assert_array_equal(read[..., 0], gray >> 8)


def test_cmyk_is_converted(tmp_path: Path) -> None:
    picture = Image.new("CMYK", (56, 40), (0, 255, 255, 0))
    red = read_photo(saved(tmp_path / "a.jpg", picture, quality=100))
    np.testing.assert_allclose(red, np.broadcast_to([255, 0, 0], (40, 56, 3)), atol=3)  # JPEG's rounding


def test_alpha_is_dropped_also_from_a_palette_and_without_a_warning(tmp_path: Path, colors: np.ndarray) -> None:
    opaque = Image.fromarray(colors).quantize(16)
    seen = np.asarray(opaque.convert("RGB"))
    opaque.save(tmp_path / "palette.png", transparency=bytes(range(0, 256, 16)))
    np.testing.assert_array_equal(read_photo(tmp_path / "palette.png"), seen)
    Image.fromarray(np.dstack([colors, colors[..., 0]])).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "rgba.png"), colors)


@pytest.mark.parametrize("suffix", ["webp", "png"])
def test_the_first_frame_of_an_animation_is_the_photo(tmp_path: Path, colors: np.ndarray, suffix: str) -> None:
    later = [Image.fromarray(255 - colors), Image.fromarray(colors // 2)]
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(
        tmp_path / f"a.{suffix}", Image.fromarray(colors), save_all=True, append_images=later, duration=50, **options
    )
    np.testing.assert_array_equal(read_photo(path), colors)


def test_gray_has_three_equal_colors(tmp_path: Path, colors: np.ndarray) -> None:
    read = read_photo(saved(tmp_path / "a.png", Image.fromarray(colors[..., 0])))
    np.testing.assert_array_equal(read, np.repeat(colors[..., :1], 3, axis=2))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is not an image in a known format"),
        (b"a poem, renamed", "it is not an image in a known format"),
        (png_header(1, 1), "it is 1x1 px, below 32 px on a side"),
        (png_header(1000, 31), "it is 1000x31 px, below 32 px on a side"),
        (png_header(60000, 60000), "it is above 100 megapixels; scale it down first"),
        (jpeg_header(65000, 65000), "it is above 100 megapixels; scale it down first"),
    ],
)
def test_what_cannot_be_used_says_why_without_decoding_a_pixel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, reason: str
) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were decoded"))
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UnreadablePhoto) as caught:
        read_photo(tmp_path / "a.jpg")
    assert str(caught.value) == reason


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pillow's own limit is at 89 megapixels
@pytest.mark.parametrize("header", [png_header, jpeg_header])
def test_the_limit_is_at_a_hundred_megapixels(tmp_path: Path, header: Callable[[int, int], bytes]) -> None:
    (tmp_path / "a.jpg").write_bytes(header(12000, 9000))
    with pytest.raises(UnreadablePhoto, match=r"^it is 12000x9000 px, above 100 megapixels; scale"):
        read_photo(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(header(10000, 10000))
    with pytest.raises(UnreadablePhoto, match="cannot be decoded"):  # the size is fine, the pixels lack
        read_photo(tmp_path / "a.jpg")


def test_a_truncated_photo_is_refused_wherever_it_ends(tmp_path: Path, colors: np.ndarray) -> None:
    for suffix in ("jpg", "png", "webp"):
        whole = saved(tmp_path / f"whole.{suffix}", Image.fromarray(colors)).read_bytes()
        for share in (0.2, 0.5, 0.9):
            cut = tmp_path / f"cut.{suffix}"
            cut.write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(UnreadablePhoto, match=r"it cannot be decoded|it is not an image"):
                read_photo(cut)


@pytest.mark.skipif(ROOT_MAY_READ_ALL, reason="root may read everything")
def test_a_photo_without_permission_says_so(tmp_path: Path, colors: np.ndarray) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(colors))
    path.chmod(0)
    with pytest.raises(UnreadablePhoto, match="Permission denied"):
        read_photo(path)


def test_a_decoder_that_fails_in_an_unusual_way_is_a_reason_too(
    tmp_path: Path, colors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow lets struct.error out of damaged EXIF (found by the fuzzing below)."""

    def stumble(self: Image.Image) -> None:
        raise struct.error("required argument is not an integer")

    path = saved(tmp_path / "a.png", Image.fromarray(colors))
    monkeypatch.setattr(Image.Image, "getexif", stumble)
    with pytest.raises(UnreadablePhoto, match="cannot be decoded: required argument is not an integer"):
        read_photo(path)


def test_memory_that_runs_out_is_not_blamed_on_the_photo(
    tmp_path: Path, colors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(self: Image.Image) -> None:
        raise MemoryError

    path = saved(tmp_path / "a.png", Image.fromarray(colors))
    monkeypatch.setattr(Image.Image, "getexif", run_out)
    with pytest.raises(MemoryError):
        read_photo(path)


def whole_file(suffix: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    file = io.BytesIO()
    colors = np.random.default_rng(1).integers(0, 256, (33, 35, 3), dtype=np.uint8)
    Image.fromarray(colors).save(file, suffix, exif=exif)
    return file.getvalue()


WHOLE = {suffix: whole_file(suffix) for suffix in ("jpeg", "png", "webp")}


@pytest.mark.filterwarnings("ignore")  # Pillow warns about damaged EXIF, and of claimed sizes
@settings(max_examples=150)
@given(
    suffix=st.sampled_from(sorted(WHOLE)),
    damage=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_a_damaged_file_is_a_photo_or_a_reason_and_never_a_crash(
    suffix: str, damage: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(WHOLE[suffix])
    for position, value in damage:
        content[position % len(content)] = value
    path = tmp_path_factory.getbasetemp() / f"damaged.{suffix}"
    path.write_bytes(content)
    try:
        read = read_photo(path)
    except UnreadablePhoto:
        return
    assert read.dtype == np.uint8
    assert read.shape[2:] == (3,)
    assert min(read.shape[:2]) >= MIN_SIDE_PX


def test_resizing_to_the_same_size_is_free_and_otherwise_keeps_a_plain_color(colors: np.ndarray) -> None:
    assert resize(colors, 40, 56) is colors
    plain = np.full((40, 56, 3), 77, np.uint8)
    assert resize(plain, 64, 32).shape == (64, 32, 3)
    assert (resize(plain, 64, 32) == 77).all()


def test_a_box_is_cut_where_it_says(colors: np.ndarray) -> None:
    np.testing.assert_array_equal(resize_box(colors, (8, 0, 40, 40), 40), colors[:, 8:48])
    shrunk = resize_box(colors, (8, 0, 40, 40), 20)
    cut_first = resize(np.ascontiguousarray(colors[:, 8:48]), 20, 20)
    np.testing.assert_array_equal(shrunk[:, 2:-2], cut_first[:, 2:-2])  # at its sides the filter sees beyond the box


def test_pixels_become_floats_from_zero_to_one_channels_first(colors: np.ndarray) -> None:
    layout = to_tensor_layout(colors)
    assert layout.shape == (3, 40, 56)
    assert layout.dtype == np.float32
    np.testing.assert_array_equal(layout, (colors / np.float32(255)).transpose(2, 0, 1))
    assert layout.flags.c_contiguous
