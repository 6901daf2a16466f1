"""What every test may use: shapes checked at run time, and the shared data where it is to be had."""

import os
from pathlib import Path

import jaxtyping
import pytest

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
