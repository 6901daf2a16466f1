"""What every test may use: shapes checked at run time, and the shared data where it is to be had."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import hypothesis
import jaxtyping
import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

    from delta.teacher import TeacherOutput
    from delta_pipelines.cache_recipe import CacheRecipe

ROOT = Path(__file__).parent.parent

# Before torch is imported: the threads of two workers on two cores would only get in each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# From here on every `Float[Tensor, "b 3 h w"]` in the three rooms is checked at each call; users do not pay for it.
# As everywhere in Python's typing, an int may stand where a float is asked for.
jaxtyping.install_import_hook(
    ["delta", "delta_cache", "delta_pipelines"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# Nothing is timed in a test: a busy machine is not a bug. Under CI the examples are the same at every run.
hypothesis.settings.register_profile(
    "delta",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
hypothesis.settings.load_profile("delta")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with teacher/, photos/ and rgbd/: $DELTA_SHARED, or `shared` beside the checkout."""
    shared = Path(os.environ.get("DELTA_SHARED") or ROOT.parent / "shared")
    return _present(shared, "the folder with teacher/, photos/ and rgbd/")


@pytest.fixture(scope="session")
def teacher_dir(shared_dir: Path) -> Path:
    """Depth-Anything-V2-S as its publisher ships it: config.json, preprocessor_config.json, model.safetensors."""
    return _present(shared_dir / "teacher" / "Depth-Anything-V2-Small-hf", "a teacher's config and weights")


@pytest.fixture(scope="session")
def photos_dir(shared_dir: Path) -> Path:
    """Some thousand photographs: images/ and index.json, which says what may leave the folder."""
    return _present(shared_dir / "photos", "images/ and index.json")


def _present(folder: Path, content: str) -> Path:
    if not folder.is_dir():
        pytest.skip(f"NOT TESTED: no {folder} ({content}); DELTA_SHARED names another place for the shared data")
    return folder


class FakeTeacher:
    """Cheap exact functions of the pixels, in the shapes of a transformer with two kept blocks and two heads.

    `before` is told the number of each call (0 asks for shapes, the first batch is 1; where features are int8, the
    photos that their bases are fitted on come between) and may raise.
    """

    side_multiple = 14
    parameters = 0

    def __init__(self, gain: float = 1.0, before: Callable[[int], None] = lambda call: None) -> None:
        from delta.teacher import TeacherIdentity

        self.identity = TeacherIdentity(
            name="fake",
            weights_sha256=hashlib.sha256(repr(gain).encode()).hexdigest(),
            architecture="averages of pixels",
            preprocessing="rgb/255",
            precision="float32",
        )
        self._gain, self._before, self._calls = gain, before, 0

    def __call__(self, image: "Tensor") -> "TeacherOutput":
        import torch
        from torch.nn import functional

        from delta.teacher import TeacherOutput

        self._calls += 1
        self._before(self._calls - 1)
        patches = functional.avg_pool2d(image, self.side_multiple)
        attention = 0.9 * patches[:, :2].flatten(2).softmax(dim=-1).view_as(patches[:, :2])
        return TeacherOutput(
            disparity=self._gain * (1 + image.mean(dim=1)),
            features={
                "block03": torch.cat([patches, patches**2 - 0.5], dim=1),
                "block12": torch.cat([1 - patches, patches.roll(1, dims=-1)], dim=1),
            },
            attention={"block03": attention, "block12": attention.flip(-1)},
        )


@pytest.fixture(scope="session")
def fake_teacher() -> type[FakeTeacher]:
    """The class of a teacher that costs nothing: `fake_teacher()` is one."""
    return FakeTeacher


@pytest.fixture(scope="session")
def photo_folder() -> Callable[..., Path]:
    """`photo_folder(folder, count=10, size=(96, 72))` writes photos that all differ, some in a folder below."""

    def write(folder: Path, count: int = 10, size: tuple[int, int] = (96, 72)) -> Path:
        (folder / "below").mkdir(parents=True)
        for index in range(count):
            colors = np.random.default_rng(index).integers(0, 256, (4, 5, 3), dtype=np.uint8)
            name = f"{index:03d}.{'png' if index % 3 else 'jpg'}"
            picture = Image.fromarray(colors).resize(size, Image.Resampling.BICUBIC)
            picture.save((folder / "below" if index % 4 == 0 else folder) / name)
        return folder

    return write


@pytest.fixture(scope="session")
def small_photos(photo_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photos; not to be changed."""
    return photo_folder(tmp_path_factory.mktemp("small") / "photos")


@pytest.fixture(scope="session")
def tiny_cache_recipe() -> "CacheRecipe":
    """Everything kept as exactly as a store can, at 70 px, in chunks of four."""
    from delta_pipelines.cache_recipe import (
        AttentionRecipe,
        CacheRecipe,
        DisparityRecipe,
        FeatureRecipe,
        ImageRecipe,
    )

    return CacheRecipe(
        size_px=70,
        taps=(3, 12),
        chunk_samples=4,
        batch_size=2,
        image=ImageRecipe(kind="raw"),
        disparity=DisparityRecipe(bits=10),
        features=FeatureRecipe(kind="float16", grid=0),
        attention=AttentionRecipe(grid=0, bits=10),
    )


@pytest.fixture(scope="session")
def compact_cache_recipe() -> "CacheRecipe":
    """Everything kept as small as the shipped recipe keeps it, in two views and a crop, at 70 px, in chunks of four."""
    from delta_pipelines.cache_recipe import AttentionRecipe, CacheRecipe, FeatureRecipe, ViewsRecipe

    return CacheRecipe(
        size_px=70,
        taps=(3, 12),
        chunk_samples=4,
        batch_size=2,
        features=FeatureRecipe(grid=4),
        attention=AttentionRecipe(grid=4),
        views=ViewsRecipe(mirrored=True, crops=1),
    )


@pytest.fixture(scope="session")
def small_store(small_photos: Path, tiny_cache_recipe: "CacheRecipe", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete store: the fake teacher's answers for `small_photos` in three chunks; not to be changed."""
    from delta_pipelines.build_cache import build_cache

    store = tmp_path_factory.mktemp("small") / "store.zarr"
    return Path(build_cache(tiny_cache_recipe, small_photos, store, FakeTeacher()).url)


@pytest.fixture(scope="session")
def compact_store(
    small_photos: Path, compact_cache_recipe: "CacheRecipe", tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A complete store of `compact_cache_recipe`: thirty samples in eight chunks; not to be changed."""
    from delta_pipelines.build_cache import build_cache

    store = tmp_path_factory.mktemp("compact") / "store.zarr"
    return Path(build_cache(compact_cache_recipe, small_photos, store, FakeTeacher()).url)


@pytest.fixture(scope="session")
def random_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the smallest student with random weights."""
    import torch

    from delta.checkpoint import StudentCard, save_student
    from delta.student import StudentConfig, build_student

    torch.manual_seed(0)
    config = StudentConfig()
    card = StudentCard(config=config, size_px=64, teacher="nobody", fingerprint="0123abcd")
    return save_student(tmp_path_factory.mktemp("random") / "student.safetensors", build_student(config), card)


@pytest.fixture(scope="session")
def bytes_under() -> Callable[[Path], dict[str, bytes]]:
    """`bytes_under(folder)` reads every file below a folder, hidden ones included: relative path -> content."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if not path.is_dir())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read


@pytest.fixture(scope="session")
def answers_under(bytes_under: Callable[[Path], dict[str, bytes]]) -> Callable[[Path], dict[str, bytes]]:
    """`answers_under(store)` are digests of `bytes_under(store)` less what two builds of one contract may differ in.

    That is the provenance in the root's zarr.json and the times in the ledger; no other byte.
    """

    def read(store: Path) -> dict[str, bytes]:
        files = bytes_under(store)
        for name in files:
            document = json.loads(files[name]) if name == "zarr.json" or name.startswith("ledger/") else {}
            if name == "zarr.json":
                del document["attributes"]["delta"]["provenance"]
            elif document:
                del document["record"]["times"], document["sha256"]
            if document:
                files[name] = json.dumps(document).encode()
        return {name: hashlib.sha256(content).digest() for name, content in files.items()}

    return read


class Finished(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def complaint(self) -> str:
        """The sentence a mistake ends with: exit 2, nothing on stdout, an error and a hint on stderr, no traceback."""
        assert self.code == 2, self.err
        assert self.out == ""
        assert "Traceback" not in self.err
        assert self.err.count("error:") == self.err.count("hint:") == 1
        error, hint = self.err.split("error:", 1)[1].split("hint:")
        assert error.strip()
        assert hint.strip()
        return error.strip()


@pytest.fixture
def delta(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finished]:
    """`delta("cache", "info", store)` runs the command line in this process: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path) -> Finished:
        from delta_pipelines.cli import main

        monkeypatch.setattr(sys, "argv", ["delta", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return Finished(code if isinstance(code, int) else 0 if code is None else 1, *capsys.readouterr())

    return run
