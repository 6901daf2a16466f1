"""Every benchmark in its usual download layout, made tiny: what is read, in which unit, and what is refused."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from delta.errors import DeltaError
from delta_cache.errors import CacheError
from delta_pipelines.benchmark import Benchmark
from delta_pipelines.depth_models import DepthModel, load_models
from delta_pipelines.evaluate import Evaluation, evaluate
from delta_pipelines.evaluate_recipe import EvaluateRecipe
from delta_pipelines.open_benchmark import open_benchmark
from delta_pipelines.recipe import load_recipe

CPU = torch.device("cpu")


def scene(seed: int, height: int = 48, width: int = 64, farthest: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    """A photo whose brightness is the disparity, and the depth [m] of it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.uniform(1 / farthest, 1, (3, 4)).astype(np.float32))
    disparity = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR))
    gray = np.rint(disparity * 250).astype(np.uint8)
    depth_m = 250 / gray.astype(np.float32)
    return np.stack([gray] * 3, axis=-1), depth_m


def save_depth(path: Path, depth_m: np.ndarray, levels_per_m: float = 1000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(depth_m * levels_per_m).astype(np.uint16)).save(path)


def save_photo(path: Path, photo: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo).save(path)


def model(answer: Callable[[np.ndarray], np.ndarray], name: str = "brightness") -> DepthModel:
    return DepthModel(
        name=name, source=name, kind="test", sees="all", sha256="", parameters=0, disparity=lambda photo: answer(photo)
    )


BRIGHTNESS = model(lambda photo: photo[..., 0].astype(np.float32))


def recipe(*settings: str) -> EvaluateRecipe:
    return load_recipe(EvaluateRecipe, "evaluate", ["bootstrap=100", *settings])


def opened(path: Path, *settings: str, teacher: str | None = None) -> Benchmark:
    return open_benchmark(path, recipe(*settings), teacher, CPU)


def scored(path: Path, *settings: str, models: Sequence[DepthModel] = (BRIGHTNESS,)) -> Evaluation:
    return evaluate(recipe(*settings), models, opened(path, *settings))[0]


def refused(path: Path, *settings: str, teacher: str | None = None) -> DeltaError:
    with pytest.raises((DeltaError, CacheError)) as caught:
        opened(path, *settings, teacher=teacher)
    assert caught.value.hint
    return caught.value


def mean(found: Evaluation, metric: str = "abs_rel") -> float:
    (scores,) = found.models[0].scores.values()
    return scores[metric].mean


def pairs_in_two_folders(root: Path, count: int = 3, levels_per_m: float = 1000) -> Path:
    for index in range(count):
        photo, depth_m = scene(index)
        save_photo(root / "rgb" / f"{index}.png", photo)
        save_depth(root / "depth" / f"{index}.png", depth_m, levels_per_m)
    return root


def pairs_by_prefix(root: Path) -> Path:
    """NYUv2's official_splits/test, as BTS and AdaBins unpack it."""
    for index in range(3):
        photo, depth_m = scene(index)
        save_photo(root / "kitchen" / f"rgb_{index:05d}.png", photo)
        save_depth(root / "kitchen" / f"sync_depth_{index:05d}.png", depth_m)
    return root


def pairs_by_suffix(root: Path) -> Path:
    for index in range(3):
        photo, depth_m = scene(index)
        save_photo(root / f"{index}.png", photo)
        np.save(root / f"{index}_depth.npy", depth_m)
    return root


@pytest.mark.parametrize("make", [pairs_in_two_folders, pairs_by_prefix, pairs_by_suffix])
def test_pairs_are_found_in_each_of_three_layouts(make: Callable[[Path], Path], tmp_path: Path) -> None:
    found = scored(make(tmp_path))
    assert (found.protocol, found.images, found.skipped) == ("pairs", 3, {})
    assert mean(found) < 0.001
    assert mean(found, "boundary_f1") > 0.95


def test_an_index_gives_datasets_and_protocols(tmp_path: Path) -> None:
    entries = []
    for index, dataset in enumerate(["nyu_v2_test", "nyu_v2_test", "kitti", "kitti", "tum"]):
        size = {"nyu_v2_test": (480, 640), "kitti": (75, 248), "tum": (48, 64)}[dataset]
        photo, depth_m = scene(index, *size)
        save_photo(tmp_path / "rgb" / f"{index}.png", photo)
        save_depth(tmp_path / "depth" / f"{index}.png", depth_m)
        entries.append(
            {"id": f"e{index}", "dataset": dataset, "rgb": f"rgb/{index}.png", "depth": f"depth/{index}.png"}
        )
    datasets = {"nyu_v2_test": {}, "kitti": {}, "tum": {"max_depth_m": 5}}
    content = {"datasets": datasets, "entries": entries, "primary": "nyu_v2_test", "version": 1}
    (tmp_path / "index.json").write_text(json.dumps(content))
    found = scored(tmp_path)
    assert (found.protocol, found.images) == ("nyu", 2)
    assert mean(found) < 0.001
    kitti = opened(tmp_path, "dataset=kitti")
    assert (kitti.protocol, [case.name for case in kitti.cases]) == ("kitti", ["e2", "e3"])
    assert scored(tmp_path, "dataset=tum").protocol == "pairs"
    assert str(refused(tmp_path, "dataset=sun")) == f"{tmp_path / 'index.json'} has no dataset 'sun'"
    (tmp_path / "depth/1.png").unlink()
    assert str(refused(tmp_path)).startswith(f"1 of 4 files of {tmp_path} are missing: {tmp_path / 'depth/1.png'}")
    (tmp_path / "index.json").write_text(json.dumps(content | {"entries": [{"id": 1}]}))
    assert "index.json is damaged" in str(refused(tmp_path))


def labeled(root: Path, count: int = 4, hdf5_splits: bool = False) -> Path:
    """As MATLAB 7.3 writes it: HDF5 with columns first, behind a header of 512 bytes."""
    root.mkdir(parents=True, exist_ok=True)
    scenes = [scene(index, 480, 640) for index in range(count)]
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"] = np.stack([photo.transpose(2, 1, 0) for photo, _ in scenes])
        file["depths"] = np.stack([depth_m.T for _, depth_m in scenes])
        file["rawDepths"] = np.stack([np.where(depth_m > 4, 0, depth_m).T for _, depth_m in scenes])
    numbers = np.array([[2], [4]], np.uint16)
    if hdf5_splits:
        with h5py.File(root / "splits.mat", "w", userblock_size=512) as file:
            file["testNdxs"] = numbers.T
    else:
        scipy.io.savemat(root / "splits.mat", {"testNdxs": numbers, "trainNdxs": np.array([[1], [3]])})
    return root


@pytest.mark.parametrize("hdf5_splits", [False, True])
def test_nyus_labeled_file_gives_the_test_images_upright(tmp_path: Path, hdf5_splits: bool) -> None:
    root = labeled(tmp_path, hdf5_splits=hdf5_splits)
    benchmark = opened(root)
    assert [case.name for case in benchmark.cases] == ["0002", "0004"]
    photo, depth_m = scene(1, 480, 640)
    np.testing.assert_array_equal(benchmark.cases[0].photo(), photo)
    np.testing.assert_array_equal(benchmark.cases[0].target(), depth_m)
    for data in (root, root / "nyu_depth_v2_labeled.mat"):
        found = scored(data)
        assert (found.protocol, found.images) == ("nyu", 2)
        assert mean(found) < 0.001
    raw = opened(root, "dataset=rawDepths").cases[0].target()
    assert 0 < (raw == 0).mean() < 1
    assert len(opened(root, "split=all").cases) == 4


def test_nyus_labeled_file_without_its_splits_or_its_readers_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = labeled(tmp_path)
    assert str(refused(root, "dataset=labels")) == f"{root / 'nyu_depth_v2_labeled.mat'} has no labels"
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    error = refused(root)
    assert str(error) == "reading .mat files needs scipy, which is not installed"
    assert error.hint == "pip install 'delta-depth[evaluate]'"
    monkeypatch.undo()
    (root / "splits.mat").write_bytes(b"no splits")
    assert f"{root / 'splits.mat'} tells no testNdxs" in str(refused(root))
    (root / "splits.mat").unlink()
    assert "which tells the 654 test images" in str(refused(root))
    (root / "nyu_depth_v2_labeled.mat").write_bytes(b"no HDF5")
    assert "nyu_depth_v2_labeled.mat is damaged" in str(refused(root, "split=all"))


DRIVE = "2011_09_26_drive_0002_sync"


def kitti(root: Path, photos_in: str = "", depth_in: str = "data_depth_annotated/val") -> Path:
    """Two frames with annotated depth, one without."""
    for number in (5, 9, 12):
        photo, depth_m = scene(number, 75, 248, farthest=30)
        depth_m = depth_m * 2  # cars are not as near
        frame = f"{number:010d}.png"
        save_photo(root / photos_in / "2011_09_26" / DRIVE / "image_02/data" / frame, photo)
        if number != 12:
            holes = np.where(np.random.default_rng(number).random(depth_m.shape) < 0.7, 0, depth_m)
            save_depth(root / depth_in / DRIVE / "proj_depth/groundtruth/image_02" / frame, holes, 256)
    return root


LISTS = {
    "monodepth2": "2011_09_26/{0} 0000000005 l\n2011_09_26/{0} 12 l\n",
    "bts": (
        "2011_09_26/{0}/image_02/data/0000000005.png {0}/proj_depth/groundtruth/image_02/0000000005.png 721.5377\n"
        "2011_09_26/{0}/image_02/data/0000000012.png None 721.5377\n"
    ),
    "paths": "2011_09_26/{0}/image_02/data/0000000005.jpg\n2011_09_26/{0}/image_02/data/0000000012.jpg\n\n",
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize(("photos_in", "depth_in"), [("", "data_depth_annotated/val"), ("raw", "data_depth_annotated")])
def test_kitti_takes_the_listed_images_that_are_annotated(
    kind: str, photos_in: str, depth_in: str, tmp_path: Path
) -> None:
    root = kitti(tmp_path, photos_in, depth_in)
    (root / "eigen_test_files.txt").write_text(LISTS[kind].format(DRIVE))
    found = scored(root)
    assert (found.protocol, found.images) == ("kitti", 1)
    assert found.notes == ("1 of 2 in eigen_test_files.txt have no annotated depth", "Eigen's test has 652 with it")
    assert mean(found) < 0.005  # a level is 1/256 m


def test_kitti_without_a_list_takes_all_and_says_that_it_is_not_eigens_test(tmp_path: Path) -> None:
    root = kitti(tmp_path)
    benchmark = opened(root)
    assert [case.name[-10:] for case in benchmark.cases] == ["0000000005", "0000000009"]
    assert benchmark.notes == ("no list of test images found: all 2 annotated images, not Eigen's 652",)
    assert "there is no list of images nowhere.txt" in str(refused(root, "split=nowhere.txt"))
    (root / "list.txt").write_text("cats and dogs\n")
    assert "line 1 of" in str(refused(root, f"split={root / 'list.txt'}"))
    (root / "2011_09_26" / DRIVE / "image_02/data/0000000009.png").unlink()
    assert f"{DRIVE}/image_02/0000000009 has annotated depth, but no photo" in str(refused(root))
    shutil.rmtree(root / "data_depth_annotated")
    assert str(refused(root, "protocol=kitti")) == f"{root} holds no kitti benchmark"


def da2k(root: Path, **changed: object) -> Path:
    """Two images; of three pairs the brightness gets two right."""
    gray = np.tile(np.arange(0, 240, 3, dtype=np.uint8), (60, 1))  # to the right it is nearer
    pair = {"point1": [30, 70], "point2": [30, 10], "closer_point": "point1"}
    turned = {"point1": [20, 5], "point2": [20, 60], "closer_point": "point2"}
    wrong = {"point1": [30, 10], "point2": [30, 70], "closer_point": "point1"}
    for name in ("images/indoor/a.png", "images/object/b.png"):
        save_photo(root / name, np.stack([gray] * 3, axis=-1))
    content = {"./images/indoor/a.png": [pair, turned], "images/object/b.png": [wrong | changed]}
    (root / "annotations.json").write_text(json.dumps(content))
    return root


def test_da2k_counts_the_pairs_whose_nearer_point_is_nearer(tmp_path: Path) -> None:
    found = scored(da2k(tmp_path))
    assert (found.protocol, found.images, found.metrics) == ("da2k", 2, ("accuracy",))
    assert mean(found, "accuracy") == pytest.approx(2 / 3)  # over pairs, not over images
    far = model(lambda photo: 255 - photo[..., 0].astype(np.float32))
    assert mean(scored(tmp_path, models=[far]), "accuracy") == pytest.approx(1 / 3)
    flat = model(lambda photo: np.ones(photo.shape[:2], np.float32))
    assert mean(scored(tmp_path, models=[flat]), "accuracy") == 0  # a tie is no answer


def test_da2k_that_cannot_be_right_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeltaError, match=r"b\.png has a point outside its 80x60 px"):
        scored(da2k(tmp_path, point1=[70, 10]))
    with pytest.raises(DeltaError, match=r"b\.png says closer_point 'left'"):
        scored(da2k(tmp_path, closer_point="left"))
    assert "annotations.json is damaged" in str(refused(da2k(tmp_path, point1="here")))
    (da2k(tmp_path) / "images/object/b.png").unlink()
    assert "1 of 2 images that" in str(refused(tmp_path))


def diode(root: Path) -> Path:
    for index, place in enumerate(["indoors", "outdoor"]):
        photo, depth_m = scene(index)
        folder = root / "val" / place / "scene_00001" / "scan_00002"
        save_photo(folder / f"00001_{index}.png", photo)
        mask = np.random.default_rng(index).random(depth_m.shape) < 0.8
        np.save(folder / f"00001_{index}_depth.npy", np.where(mask, depth_m, np.nan)[..., None])
        np.save(folder / f"00001_{index}_depth_mask.npy", mask.astype(np.float32))
    return root


def test_diode_counts_what_its_masks_let_through(tmp_path: Path) -> None:
    found = scored(diode(tmp_path))
    assert (found.protocol, found.images) == ("diode", 2)
    assert mean(found) < 0.001
    assert scored(tmp_path, "dataset=indoors").images == 1
    assert "holds no DIODE image in garden" in str(refused(tmp_path, "dataset=garden"))
    next(tmp_path.rglob("*_1_depth_mask.npy")).unlink()
    assert "lacks 1 files" in str(refused(tmp_path))
    np.save(next(tmp_path.rglob("*_0_depth_mask.npy")), np.ones((2, 2)))
    with pytest.raises(DeltaError, match=r"_0_depth_mask\.npy is \(2, 2\), its depth \(48, 64\)"):
        scored(tmp_path, "dataset=indoors")


def test_fidelity_to_a_cache_is_to_the_answers_it_holds(small_store: Path) -> None:
    """The fake teacher's disparity is 1 plus the mean of the colors."""
    teacher = model(lambda photo: 1 + photo.astype(np.float32).mean(axis=2) / 255, "the teacher itself")
    found = scored(small_store, models=[teacher])
    assert (found.protocol, found.images) == ("fidelity", 10)
    assert mean(found) < 0.001
    assert mean(found, "pearson_r") > 0.9999
    assert mean(scored(small_store)) > 0.001
    held = scored(small_store, "holdout=0.2", models=[teacher])
    assert held.images == 2
    assert "held-out photos of feed.holdout=0.2" in held.notes[0]


def test_fidelity_to_a_live_teacher_needs_one(small_photos: Path, random_student: Path) -> None:
    student = str(random_student)
    benchmark = opened(small_photos, "limit=4", teacher=student)
    assert (benchmark.protocol, len(benchmark.cases)) == ("fidelity", 4)
    (ours,) = load_models([student], recipe().teacher, CPU)
    found = evaluate(recipe(), [ours], benchmark)[0]
    assert mean(found) < 1e-6
    error = refused(small_photos)
    assert str(error) == f"{small_photos} holds no benchmark that Delta knows"
    assert "photos, to compare with a --teacher" in error.hint


def test_a_store_that_lacks_chunks_is_no_reference(store_at: Callable[..., Path], tmp_path: Path) -> None:
    store = store_at(tmp_path / "store.zarr", without_chunks=[1])
    assert "incomplete: 1 of 3 chunks missing" in str(refused(store))


@pytest.mark.parametrize(
    ("protocol", "named"),
    [
        ("nyu", "nyu_depth_v2_labeled.mat"),
        ("kitti", "data_depth_annotated"),
        ("da2k", "annotations.json"),
        ("diode", "_depth_mask.npy"),
        ("pairs", "rgb/ and depth/"),
        ("fidelity", "a cache"),
        ("auto", "index.json"),
    ],
)
def test_a_folder_without_a_benchmark_is_refused_with_what_was_looked_for(
    protocol: str, named: str, tmp_path: Path
) -> None:
    error = refused(tmp_path, f"protocol={protocol}")
    assert str(error).startswith(f"{tmp_path} holds no ")
    assert named in error.hint
    assert str(refused(tmp_path / "none")) == f"there is no data at {tmp_path / 'none'}"


def test_a_named_protocol_gives_a_plain_folder_its_crop(tmp_path: Path) -> None:
    photo, depth_m = scene(0, 480, 640)
    save_photo(tmp_path / "rgb/a.png", photo)
    save_depth(tmp_path / "depth/a.png", np.where(np.arange(640) < 41, 5, depth_m))
    assert mean(scored(tmp_path, "protocol=nyu")) < 0.001 < 0.01 < mean(scored(tmp_path))


def test_a_photo_without_depth_and_depth_without_a_photo_are_named(tmp_path: Path) -> None:
    root = pairs_in_two_folders(tmp_path)
    (root / "depth/1.png").unlink()
    assert str(refused(root)).startswith(
        f"1 of 3 photos in {root} have no depth of the same name: {root / 'rgb/1.png'}"
    )
    (root / "rgb/1.png").unlink()
    (root / "rgb/2.png").unlink()
    assert str(refused(root)).startswith(f"1 of 2 depth maps in {root} have no photo of the same name")


@pytest.mark.parametrize(
    ("levels_per_m", "looks_like"), [(1, "metres"), (256, "1/256 m"), (100, "centimetres")], ids=["m", "1/256 m", "cm"]
)
def test_depth_in_another_unit_is_refused_with_the_unit_it_looks_like(
    levels_per_m: float, looks_like: str, tmp_path: Path
) -> None:
    """NYUv2's scenes are told from their medians, 0.5 to 9 m."""
    for index in range(3):
        photo, depth_m = scene(index, 480, 640)
        save_photo(tmp_path / "rgb" / f"{index}.png", photo)
        save_depth(tmp_path / "depth" / f"{index}.png", depth_m, levels_per_m)
    error = refused(tmp_path, "protocol=nyu")
    assert str(error).startswith("median depth ")
    assert looks_like in str(error)
    assert str(error).endswith("expected millimetres")
    assert "--set levels_per_m=" in error.hint
    assert mean(scored(tmp_path, "protocol=nyu", f"levels_per_m={levels_per_m}")) < (0.3 if levels_per_m == 1 else 0.01)


def test_depth_in_no_unit_at_all_says_what_was_expected(tmp_path: Path) -> None:
    root = pairs_by_suffix(tmp_path)
    for file in root.glob("*.npy"):
        np.save(file, np.load(file) * 1e9)
    error = refused(root)
    assert "in no unit is that a RGB and depth scene" in str(error)
    assert "expected metres" in str(error)


def test_depth_of_another_size_than_its_photo_is_refused(tmp_path: Path) -> None:
    root = pairs_in_two_folders(tmp_path)
    save_depth(root / "depth/1.png", scene(1, 24, 32)[1])
    with pytest.raises(DeltaError, match=r"^1: the photo is 64x48 px, its depth 32x24$"):
        scored(root)


def test_images_that_cannot_be_scored_are_left_out_counted_and_named(tmp_path: Path) -> None:
    root = pairs_in_two_folders(tmp_path)
    save_depth(root / "depth/0.png", np.zeros((48, 64)))
    (root / "rgb/2.png").write_bytes(b"no photo")
    found = scored(root)
    assert (found.images, list(found.skipped)) == (1, ["0", "2"])
    assert found.skipped["0"] == "no depth between 0.001 and 100 m is measured"
    assert found.skipped["2"] == "it is not an image in a known format"
    save_depth(root / "depth/1.png", np.zeros((48, 64)))
    with pytest.raises(DeltaError, match=r"none of 3 images of .* can be scored; 0: no depth between"):
        scored(root)


def test_a_model_that_answers_nan_fails_and_the_others_go_on(tmp_path: Path) -> None:
    root = pairs_in_two_folders(tmp_path)
    asked = []

    def sometimes(photo: np.ndarray) -> np.ndarray:
        asked.append(photo)
        disparity = photo[..., 0].astype(np.float32)
        disparity[0, 0] = np.nan if len(asked) == 2 else 1
        return disparity

    found = scored(root, models=[model(sometimes, "broken"), BRIGHTNESS])
    broken, good = found.models
    assert broken.failure == "answers 1 of 3072 pixels of 1 with NaN or infinity"
    assert (broken.scores, len(asked)) == ({}, 2)
    assert good.scores["affine_disparity"]["abs_rel"].mean < 0.001
    assert found.differences == ()
    with pytest.raises(DeltaError, match="broken answers 1 of 3072") as caught:
        found.require()
    assert caught.value.exit_code == 3


def test_ranges_and_limits_of_the_recipe_are_kept(tmp_path: Path) -> None:
    root = pairs_in_two_folders(tmp_path, count=7)
    assert [case.name for case in opened(root, "limit=3").cases] == ["0", "3", "6"]
    assert "nothing is between 5 and 2 m" in str(refused(root, "nearest_m=5", "farthest_m=2"))
    near = scored(root, "farthest_m=3")
    assert mean(near) != mean(scored(root))


def test_pooling_all_pixels_would_move_the_number(tmp_path: Path) -> None:
    """An image counts as one image, however few of its pixels were measured."""
    noise, pixels = {}, []
    for index in range(3):
        photo, depth_m = scene(index)
        depth_m[: 20 * index] = 0  # the fewer are measured ...
        pixels.append(int((depth_m > 0).sum()))
        noise[photo.tobytes()] = 3.0 * index  # ... the worse is the answer
        save_photo(tmp_path / "rgb" / f"{index}.png", photo)
        save_depth(tmp_path / "depth" / f"{index}.png", depth_m)
    wavy = model(lambda photo: (photo[..., 0] + noise[photo.tobytes()] * np.sin(np.arange(64))).astype(np.float32))
    found, rows = evaluate(recipe(), [wavy], opened(tmp_path))
    values = rows.table("brightness", "affine_disparity", ["abs_rel"])[:, 0]
    assert mean(found) == pytest.approx(values.mean(), rel=1e-12)
    assert np.average(values, weights=pixels) < 0.8 * mean(found)
