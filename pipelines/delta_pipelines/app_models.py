"""The models of an app: bundles or single ONNX files become folders that are bundles again, and a list to pick from."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from delta import bundled
from delta.bundle import SIDECAR, BundleCard, ModelFile, read_bundle_card
from delta.config import Config
from delta.errors import DeltaError
from delta.files import file_sha256
from delta.onnx_model import DYNAMIC_BATCH, read_model_card

PREFERRED = "fp32"  # what onnxruntime-web runs fastest on a processor


class Choice(Config, frozen=True, kw_only=True):
    """One entry of the app's model picker."""

    id: str
    name: str
    card: str  # path of the bundle's delta.json below the site
    file: str  # beside it


class AppModel(Config, frozen=True, kw_only=True):
    """A bundle as the app gets it: a folder name, its card with the files that are taken, and where these are."""

    folder: str
    card: BundleCard
    source: Path

    @property
    def sidecar(self) -> str:
        """Path of the card below the site."""
        return f"models/{self.folder}/{SIDECAR}"

    def files(self) -> Iterator[tuple[str, Path]]:
        """Pair each file's path below the site with where it comes from."""
        for model in self.card.models:
            yield f"models/{self.folder}/{model.file}", self.source / model.file


def app_models(paths: Sequence[Path], precision: str = "") -> list[AppModel]:
    """Read what the app shall offer; of a bundle the files of one precision, by default fp32 where it has any.

    Raises:
        DeltaError: not Delta's, without that precision, or a file that is not what its card says.
    """
    models: list[AppModel] = []
    for path in map(bundled.find, paths):
        card, source = (read_bundle_card(path), path) if path.is_dir() else (_card_of_file(path), path.parent)
        taken = msgspec.structs.replace(card, models=_of_precision(card, precision, path))
        model = AppModel(folder=_folder_name(path, [other.folder for other in models]), card=taken, source=source)
        _require_digests(model)
        models.append(model)
    return models


def choices(models: Sequence[AppModel]) -> list[Choice]:
    """List every file for the picker, the first one as the one to start with."""
    return [
        Choice(
            id=f"{model.folder}-{'x'.join(map(str, entry.size_px))}",
            name=" · ".join(_name(model, entry, several=len(models) > 1)),
            card=model.sidecar,
            file=entry.file,
        )
        for model in models
        for entry in model.card.models
    ]


def _of_precision(card: BundleCard, precision: str, path: Path) -> tuple[ModelFile, ...]:
    wanted = precision or PREFERRED
    chosen = tuple(model for model in card.models if model.precision == wanted)
    if not chosen and not precision:
        chosen = tuple(model for model in card.models if model.precision == card.models[0].precision)
    if not chosen:
        known = ", ".join(dict.fromkeys(model.precision for model in card.models))
        raise DeltaError(f"{path} has no {precision} file", f"it has {known}")
    return chosen


def _card_of_file(path: Path) -> BundleCard:
    """Describe a single file as a bundle of one."""
    card = read_model_card(path)
    entry = ModelFile(
        file=path.name,
        size_px=card.size_px,
        precision=card.precision,
        batch=DYNAMIC_BATCH if card.dynamic_batch else 1,
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
        receipt={},
    )
    student: dict[str, Any] = {"config": {"encoder": card.encoder}, "fingerprint": card.fingerprint}
    return BundleCard(student=student, teacher=card.teacher, licence="", models=(entry,), made_with={})


def _require_digests(model: AppModel) -> None:
    for entry in model.card.models:
        path = model.source / entry.file
        if Path(entry.file).name != entry.file:
            raise DeltaError(f"{SIDECAR} lists {entry.file}, which is not beside it", "`delta export` writes it again")
        if (path.stat().st_size, file_sha256(path)) != (entry.bytes, entry.sha256):
            raise DeltaError(
                f"{path} is not the file that {SIDECAR} describes", "`delta export RUN OUT` writes both again"
            )


def _folder_name(path: Path, taken: Sequence[str]) -> str:
    name = path.resolve().name if path.is_dir() else path.stem
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "model"
    return next(candidate for candidate in _numbered(slug) if candidate not in taken)


def _numbered(slug: str) -> Iterator[str]:
    yield slug
    yield from (f"{slug}-{number}" for number in range(2, 1000))


def _name(model: AppModel, entry: ModelFile, *, several: bool) -> Iterator[str]:
    """Name a file by what tells it from the others: its bundle, its size, or both."""
    if several or len(model.card.models) == 1:
        yield model.folder
    if len(model.card.models) > 1:
        yield _size_text(entry.size_px)


def _size_text(size_px: tuple[int, int]) -> str:
    height, width = size_px
    return f"{width} px" if width == height else f"{width} × {height} px"
