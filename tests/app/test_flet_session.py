"""The Flet app without a screen: what it opens, predicts, shows live and saves."""

import hashlib
import io
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from delta import bundled
from delta.bundle import BundleCard, choose_model
from delta.colormaps import colorize
from delta.predict import DepthPredictor, load_disparity_png16, normalize_for_display
from delta_flet import pictures
from delta_flet.frames import Frame
from delta_flet.models import find_models, list_choices
from delta_flet.session import Phase, Saving, Session, Times

PHOTO = bundled.PHOTOS / "kodak_0012.jpg"


@pytest.fixture
def session() -> Session:
    """The app with the bundled student, on one thread."""
    return Session([bundled.STUDENT], threads=1)


def spoil(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def a_frame(seed: int = 0) -> Frame:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Frame(pixels=np.asarray(Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)))


def test_a_photo_gets_the_depth_that_delta_predicts(session):
    assert session.add_photo(PHOTO.name, PHOTO.read_bytes())
    assert session.show(0)
    assert session.phase is Phase.PHOTO
    assert session.times.infer_ms > 0
    np.testing.assert_array_equal(
        session.answer.disparity, DepthPredictor.open(bundled.STUDENT, threads=1).predict(PHOTO)
    )


def test_a_file_that_is_no_photo_is_named_and_changes_nothing_else(session):
    session.add_photo(PHOTO.name, PHOTO.read_bytes())
    session.show(0)
    before = session.answer
    assert not session.add_photo("notes.txt", b"not a photo")
    trouble = session.troubles["photo"]
    assert trouble.message == "notes.txt cannot be used: it is not an image in a known format"
    assert trouble.hint == "open a JPEG, PNG or WebP photo"
    assert (session.answer, session.phase, len(session.shots)) == (before, Phase.PHOTO, 1)
    session.show(0)
    assert session.troubles == {"photo": trouble}  # until it was read
    session.forget_trouble("photo")
    assert session.troubles == {}


def test_a_file_that_could_not_be_read_is_told_and_the_others_are_taken(session):
    assert not session.add_photo("gone.jpg", None)
    assert session.troubles["photo"].message == "gone.jpg cannot be used: its file could not be read"
    assert session.add_photo(PHOTO.name, PHOTO.read_bytes())
    assert len(session.shots) == 1


def test_the_models_of_a_bundle_are_offered_smallest_first(two_models):
    megabytes = f"{choose_model(bundled.STUDENT).stat().st_size / 1e6:.1f} MB"
    labels = [choice.label for choice in list_choices([two_models])]
    assert labels == [f"192×128 px · fp32 · {megabytes}", f"256 px · fp32 · {megabytes}"]


def test_a_file_that_its_bundle_does_not_describe_is_not_loaded_and_another_one_is(two_models):
    spoil(two_models / "small.onnx")
    session = Session([two_models], threads=1)
    assert not session.ready
    trouble = session.troubles["model"]
    found = hashlib.sha256((two_models / "small.onnx").read_bytes()).hexdigest()
    assert trouble.message == (
        f"small.onnx is not the file that its bundle describes: its SHA-256 begins with {found[:8]}, "
        f"delta.json says {session.choices[0].sha256[:8]}"
    )
    assert trouble.hint == "copy the bundle again, or export it again with `delta export`"
    assert session.choose_model(session.choices[1])
    assert session.ready
    assert session.troubles == {}


def test_a_model_that_fails_later_leaves_no_old_answer_to_be_taken_for_its_own(two_models):
    session = Session([two_models], threads=1)
    session.add_photo(PHOTO.name, PHOTO.read_bytes())
    session.show(0)
    spoil(two_models / "large.onnx")
    assert not session.choose_model(session.choices[1])
    assert not session.ready
    assert session.answer is None
    (two_models / "large.onnx").unlink()
    assert not session.choose_model(session.choices[1])
    assert session.troubles["model"].message == f"there is no model {two_models / 'large.onnx'}"


def test_a_model_that_is_not_there_is_a_trouble_and_no_crash(tmp_path):
    session = Session([tmp_path / "nothing.onnx"], threads=1)
    assert not session.ready
    assert session.troubles["model"].message == f"there is no model {tmp_path / 'nothing.onnx'}"


def test_a_damaged_sidecar_is_a_trouble_and_no_crash(two_models):
    (two_models / "delta.json").write_bytes(b"{")
    session = Session([two_models], threads=1)
    assert session.choices == ()
    assert session.troubles["model"].message.startswith(f"{two_models / 'delta.json'} is damaged: ")


def test_the_16_bit_file_holds_the_disparity_to_half_a_level(session, tmp_path):
    session.add_photo("a lighthouse.jpeg", PHOTO.read_bytes())
    session.show(0)
    name, content = session.file_to_save(Saving.DEPTH16)
    assert name == "a lighthouse_disparity.png"
    (tmp_path / name).write_bytes(content)
    disparity = session.answer.disparity
    half_level = (disparity.max() - disparity.min()) / 65535 / 2
    np.testing.assert_allclose(load_disparity_png16(tmp_path / name), disparity, rtol=0, atol=half_level * 1.01)


def test_the_colored_files_are_what_delta_predict_draws(session):
    session.add_photo(PHOTO.name, PHOTO.read_bytes())
    session.show(0)
    session.colormap = "viridis"
    answer = session.answer
    expected = colorize(normalize_for_display(answer.disparity), "viridis", vmin=0.0, vmax=1.0)
    depth, beside = (
        np.asarray(Image.open(io.BytesIO(session.file_to_save(saving)[1]))) for saving in (Saving.DEPTH, Saving.SIDE)
    )
    np.testing.assert_array_equal(depth, expected)
    np.testing.assert_array_equal(beside, np.hstack([answer.photo, expected]))


def test_a_live_frame_is_the_graphs_answer_in_colors(session):
    frame = a_frame()
    session.go_live()
    picture = np.asarray(Image.open(io.BytesIO(session.live(frame, 0.0))).convert("RGB"))
    predictor = DepthPredictor.open(bundled.STUDENT, threads=1)
    size = tuple(reversed(predictor.card.size_px))
    disparity = predictor.predict(Image.fromarray(frame.pixels).resize(size, Image.Resampling.BICUBIC))
    low, high = np.percentile(disparity[::2, ::2].astype(np.float64), [2, 98])
    gray = Image.open(io.BytesIO(pictures.paint(disparity, "gray", low, high)))
    np.testing.assert_array_equal(picture, session_colors(np.asarray(gray.convert("L")), session.colormap))


def session_colors(levels: np.ndarray, colormap: str) -> np.ndarray:
    from delta.colormaps import color_table

    return color_table(colormap)[levels]


def test_colors_of_a_scene_that_holds_still_do_not_change(session):
    session.go_live()
    assert len({session.live(a_frame(), at_s / 10) for at_s in range(4)}) == 1


def test_live_times_and_rate_are_told_and_begin_anew(session):
    session.go_live()
    for index in range(5):
        session.live(a_frame(), index / 10)
        session.shown(4.0, index / 10)
    assert session.times.frames_per_s == pytest.approx(10)
    assert session.times.show_ms == pytest.approx(4)
    assert min(session.times.prepare_ms, session.times.infer_ms, session.times.paint_ms) > 0
    session.go_live()
    assert session.times == Times()


def test_a_frame_that_is_late_leaves_no_time_and_no_still_behind(session):
    session.go_live()
    session.live(a_frame(), 0.0)
    session.stop_live()
    session.live(a_frame(), 0.1)
    session.shown(4.0, 0.1)
    assert session.times == Times()
    assert not session.take_still(mirrored=False)


def test_a_still_is_the_frame_as_it_was_seen(session):
    frame = a_frame()
    session.go_live()
    assert not session.take_still(mirrored=False)
    session.live(frame, 0.0)
    assert session.take_still(mirrored=True)
    np.testing.assert_array_equal(session.shots[0].read(), frame.pixels[:, ::-1])


def test_after_a_camera_fails_the_photo_is_back_and_the_trouble_is_told(session):
    from delta_flet.frames import trouble_of

    session.add_photo(PHOTO.name, PHOTO.read_bytes())
    session.show(0)
    session.go_live()
    session.stop_live(trouble_of("NotAllowedError"))
    assert session.phase is Phase.PHOTO
    assert session.troubles["camera"].message == "the camera may not be used"
    assert session.times.infer_ms == session.answer.infer_ms
    session.go_live()
    assert "camera" not in session.troubles


def test_photos_can_be_taken_out_until_none_is_left(session):
    for name in ("kodak_0012.jpg", "kodak_0013.jpg", "kodak_0014.jpg"):
        session.add_photo(name, (bundled.PHOTOS / name).read_bytes())
    session.show(1)
    session.remove(0)
    assert session.shot.name == "kodak_0013.jpg"
    session.remove(0)
    assert session.shot.name == "kodak_0014.jpg"
    session.remove(0)
    assert (session.phase, session.shot, session.answer) == (Phase.EMPTY, None, None)


def test_nothing_is_saved_before_there_is_something(session):
    with pytest.raises(Exception, match="there is nothing to save yet") as error:
        session.file_to_save(Saving.DEPTH)
    assert error.value.hint == "open a photo first"


def test_several_bundles_are_offered_in_their_order_by_name(two_models):
    labels = [choice.label for choice in list_choices([*bundled.STUDENTS.values(), two_models])]
    assert [label.partition(" · ")[0] for label in labels] == ["delta-xs", "delta-s", "two", "two"]


def test_the_arguments_win_over_the_variable_and_both_over_what_was_built_in(tmp_path):
    shipped = tuple(bundled.STUDENTS.values())
    assert find_models([], {}) == shipped
    assert find_models([], {"FLET_ASSETS_DIR": str(tmp_path)}) == shipped
    shutil.copytree(bundled.PHOTOS, tmp_path / "model")
    built_in = {"FLET_ASSETS_DIR": str(tmp_path)}
    assert find_models([], built_in) == (tmp_path / "model",)
    assert find_models([], built_in | {"DELTA_MODEL": f"b{os.pathsep}c.onnx"}) == (Path("b"), Path("c.onnx"))
    assert find_models(["a", "delta-s"], built_in | {"DELTA_MODEL": "b"}) == (Path("a"), bundled.STUDENTS["delta-s"])


def test_without_a_named_bundle_the_app_begins_with_the_smaller_shipped_student():
    session = Session(find_models([], {}), threads=1)
    assert session.ready
    assert session.choice.file == choose_model(bundled.STUDENTS["delta-xs"])
    session.add_photo(PHOTO.name, PHOTO.read_bytes())
    session.show(0)
    assert session.choose_model(session.choices[1])
    np.testing.assert_array_equal(
        session.answer.disparity, DepthPredictor.open(bundled.STUDENTS["delta-s"], threads=1).predict(PHOTO)
    )


def test_the_card_is_read_as_the_bundle_wrote_it(two_models):
    card = msgspec.json.decode((two_models / "delta.json").read_bytes(), type=BundleCard)
    assert {choice.sha256 for choice in list_choices([two_models])} == {model.sha256 for model in card.models}
