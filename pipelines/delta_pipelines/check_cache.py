"""Hold a store against its teacher, and mend what a check found."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import torch

from delta.config import Config
from delta.errors import DeltaError
from delta.feature_basis import mean_cosine
from delta.teacher import Teacher
from delta_cache.errors import CorruptStore
from delta_cache.reader import Store
from delta_cache.schema import Basis
from delta_cache.storage import Storage
from delta_cache.verify import verify
from delta_cache.writer import discard, restore_metadata
from delta_pipelines.answers import resampled_features
from delta_pipelines.build_cache import Watcher, build_here
from delta_pipelines.cache_recipe import CacheRecipe
from delta_pipelines.chunk_builder import ChunkBuilder
from delta_pipelines.feed import read_samples
from delta_pipelines.views import open_photos

EXACT_COSINE = 0.999  # fp16 and int8 features, whatever the device
COMPRESSED_SLACK = 0.005  # photos differ in how well a basis holds their features
DISPARITY_ERROR = 0.005
SEED = 0


class LiveRow(Config, frozen=True, kw_only=True):
    """One array against the teacher: mean cosine of features, or mean relative error of disparity."""

    name: str
    measure: str
    value: float
    gate: float

    @property
    def passed(self) -> bool:
        """Whether the value is on the good side of its gate; NaN is not."""
        return self.value >= self.gate if self.measure == "cosine" else self.value <= self.gate


class LiveCheck(Config, frozen=True, kw_only=True):
    """A store against its teacher on a few samples."""

    samples: int
    rows: tuple[LiveRow, ...]

    @property
    def passed(self) -> bool:
        """Whether every array passed."""
        return all(row.passed for row in self.rows)


def check_live(store: Store, teacher: Teacher, samples: int, device: torch.device, seed: int = SEED) -> LiveCheck:
    """Show the teacher the stored views of some samples again and compare its answers with the stored ones.

    Features are compared on the grid they are kept on. Gates: cosine 0.999 for float16 and untransformed int8, that of
    the photos held out when the basis was fitted less 0.005 for compressed ones; 0.5 % of the mean for disparity.

    Raises:
        DeltaError: the teacher is not the one in the contract.
        CacheError: the store has no answers yet, or is damaged.
    """
    _require_teacher(store, teacher)
    usable = np.flatnonzero(store.mask)
    if not len(usable):
        store.require_complete()
    chosen = np.sort(np.random.default_rng(seed).permutation(usable)[:samples])
    taps = [spec.name for spec in store.contract.arrays if spec.name.startswith("features/")]
    recipe = recipe_of(store)
    cosines: dict[str, list[float]] = {name: [] for name in taps}
    errors = []
    for sample in chosen:
        data = read_samples(store, np.array([sample]), ["image", "disparity", *taps])
        image = torch.from_numpy(data["image"]).to(device).permute(0, 3, 1, 2).to(torch.float32) / 255
        answer = teacher(image)
        live, kept = answer.disparity.cpu().double(), torch.from_numpy(data["disparity"]).double()
        errors.append(((live - kept).abs().mean() / live.abs().mean()).item())
        maps = resampled_features(recipe, answer)
        for name in taps:
            ours = torch.from_numpy(data[name]).float()
            cosines[name].append(mean_cosine(ours, maps[name.split("/")[1]].cpu()))
    rows = [LiveRow(name="disparity", measure="relative error", value=float(np.mean(errors)), gate=DISPARITY_ERROR)]
    rows += [
        LiveRow(name=name, measure="cosine", value=float(np.mean(values)), gate=_gate(store, name))
        for name, values in cosines.items()
    ]
    return LiveCheck(samples=len(chosen), rows=tuple(rows))


def repair_cache(
    store: Store,
    photos: str | Path,
    teacher: Teacher,
    *,
    device: torch.device,
    threads: int = 1,
    watcher: Watcher | None = None,
) -> list[int]:
    """Rebuild the chunks whose files are not what was recorded, and those alone; return their numbers.

    A damaged array description is written again too.

    Raises:
        DeltaError: another teacher, or a photo that is no longer the one that was cached; nothing is taken away then.
        CorruptStore: the photo list or the feature bases are damaged, which only a new build can mend.
    """
    recipe, storage = recipe_of(store), open_photos(photos)
    _require_teacher(store, teacher)
    restore_metadata(store)
    bad = verify(store, full=True, threads=threads).bad_chunks
    for chunk in bad:
        _require_photos(store, storage, chunk)
    for chunk in bad:
        discard(store, chunk)
    build_here(ChunkBuilder(store, storage, recipe, teacher, device), store, watcher, bad)
    if bad and not store.missing_chunks():
        store.storage.remove_claims()
    return bad


def recipe_of(store: Store) -> CacheRecipe:
    """The recipe a store was made by, read back from its contract.

    Raises:
        CorruptStore: the contract is of a recipe that this Delta does not know.
    """
    contract = store.contract
    packed = contract.spec("disparity")
    tree = dict(contract.recipe) | {
        "precision": contract.teacher.get("precision", "float32"),
        "chunk_samples": contract.chunk_samples,
        "compressor": packed.compressor,
        "level": packed.level,
        "batch_size": store.provenance.get("batch_size", 8),
        "compile": store.provenance.get("compile", False),
    }
    try:
        return msgspec.convert(tree, CacheRecipe)
    except msgspec.ValidationError as error:
        raise CorruptStore(f"the recipe of {store.url} is of another Delta: {error}", "build it again") from error


def _require_teacher(store: Store, teacher: Teacher) -> None:
    wanted, given = store.contract.teacher, teacher.identity
    differing = [name for name, value in wanted.items() if getattr(given, name, None) != value]
    if differing:
        raise DeltaError(
            f"{given.name} is not the teacher of {store.url}: {', '.join(differing)} differ",
            f"name the teacher it was made with, {store.teacher['name']}",
        )


def _require_photos(store: Store, storage: Storage, chunk: int) -> None:
    """Refuse photos that are not those a chunk was made of: by digest where its entry can be read, else by size."""
    try:
        record = store.record(chunk)
    except CorruptStore:
        record = None
    for position, sample in enumerate(store.contract.chunk_range(chunk)):
        photo = store.photos[store.contract.photo_of(sample)]
        same = (storage.size(photo.path) or 0) == photo.bytes
        if same and record and record.samples[position].sha256:
            same = hashlib.sha256(storage.read(photo.path)).hexdigest() == record.samples[position].sha256
        if not same:
            raise DeltaError(
                f"{photo.path} at {storage.url} is not the photo that {store.url} was made of",
                "name the folder it was built from, as it was then, or build a new store",
            )


def _gate(store: Store, name: str) -> float:
    spec, tap = store.contract.spec(name), name.split("/")[1]
    features = store.contract.recipe["features"]
    if isinstance(spec.encoding, Basis) and (features["transform"] != "none" or features["step"]):
        return store.bases[tap].holdout_cosine - COMPRESSED_SLACK
    return EXACT_COSINE
