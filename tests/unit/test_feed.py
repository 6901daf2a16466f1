"""The stream of batches is a function of seed and step: complete in every epoch, the same from wherever it starts."""

import itertools
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from delta.augment import NO_AUGMENTATION, AugmentConfig
from delta.batch import Batch
from delta.objective import LossConfig
from delta_cache.errors import IncompleteStore
from delta_cache.reader import Store, open_cache
from delta_cache.schema import ArraySpec, Contract, Photo, SampleRecord, Status, digest_photos
from delta_cache.writer import open_or_create, write_chunk
from delta_pipelines.feed import Feed, Split, feature_names, measure_targets, read_samples, split_store
from delta_pipelines.train_recipe import FeedConfig

SAMPLES, CHUNK = 27, 4
FAILED = (2, 9, 10, 26)
TAPS = ("block09", "block12")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store whose every number is that of its sample, so that a batch tells which samples are in it."""
    path = tmp_path_factory.mktemp("feed") / "store.zarr"
    arrays = (
        ArraySpec(name="image", shape=(16, 16, 3), dtype="uint8"),
        ArraySpec(name="disparity", shape=(16, 16), dtype="float16"),
        ArraySpec(name="status", shape=(), dtype="uint8"),
        *(ArraySpec(name=f"features/{tap}", shape=(2, 3, 3), dtype="float16") for tap in TAPS),
    )
    photos = [Photo(path=f"{index}.png", bytes=1) for index in range(SAMPLES)]
    contract = Contract(
        teacher={"name": "numbers"},
        recipe={"size_px": 16},
        photos={"count": SAMPLES, "list_sha256": digest_photos(photos)},
        arrays=arrays,
        chunk_samples=CHUNK,
        samples=SAMPLES,
    )
    made = open_or_create(path, contract, photos, {})
    for chunk in range(contract.chunks):
        write_chunk(made, chunk, *numbered(contract, chunk))
    return open_cache(path)


def numbered(contract: Contract, chunk: int) -> tuple[dict[str, np.ndarray], tuple[SampleRecord, ...]]:
    numbers = np.array(contract.chunk_range(chunk))
    data = {
        spec.name: np.broadcast_to(numbers.reshape(-1, *[1] * len(spec.shape)), (len(numbers), *spec.shape))
        for spec in contract.arrays
    }
    data["status"] = np.where(np.isin(numbers, FAILED), Status.FAILED, Status.OK)
    data["features/block12"] = data["features/block12"] * 10.0
    records = tuple(
        SampleRecord(path=f"{n}.png", sha256="", failure="it is cut short" if n in FAILED else "") for n in numbers
    )
    return {spec.name: data[spec.name].astype(spec.dtype) for spec in contract.arrays}, records


@pytest.fixture
def split(store: Store) -> Split:
    return split_store(store, FeedConfig(holdout=0.2))


def numbers_in(batch: Batch) -> list[int]:
    """Samples of an augmented batch: every number in it is the sample's own, wherever it was cropped."""
    by_image = (batch.image.mean(dim=(1, 2, 3)) * 255).round().int().tolist()
    assert batch.disparity.mean(dim=(1, 2)).round().int().tolist() == by_image
    return by_image


def stream(
    store: Store, split: Split, *, first: int = 0, seed: int = 0, batch_size: int = 4, window_chunks: int = 2
) -> Iterator[Batch]:
    config = FeedConfig(window_chunks=window_chunks, holdout=0.2)
    feed = Feed(store, split, [f"features/{tap}" for tap in TAPS], config=config, batch_size=batch_size, seed=seed)
    augment = AugmentConfig(brightness=0, contrast=0, saturation=0, hue=0, gray=0, blur=0)
    return feed.batches(first, augment, lambda step: 16 if step < 6 else 32, CPU)


def equal(a: Batch, b: Batch) -> bool:
    names = ("image", "disparity", "valid", "feature_weight")
    pairs = [(getattr(a, name), getattr(b, name)) for name in names] + [(a.features[t], b.features[t]) for t in TAPS]
    return all(torch.equal(*pair) for pair in pairs)


def test_the_split_holds_out_the_last_samples_and_none_that_failed(split):
    usable = [n for n in range(SAMPLES) if n not in FAILED]
    assert [*split.train, *split.holdout] == usable
    assert len(split.holdout) == round(0.2 * len(usable))


@pytest.mark.parametrize(("share", "most", "held_out"), [(0.5, 3, 3), (0.001, 256, 1), (0.999, 256, 22)])
def test_at_least_one_sample_is_on_either_side_and_at_most_the_maximum_held_out(store, share, most, held_out):
    split = split_store(store, FeedConfig(holdout=share, holdout_max=most))
    assert len(split.holdout) == held_out
    assert len(split.train) == SAMPLES - len(FAILED) - held_out


@pytest.mark.parametrize("batch_size", [3, 4, 7])
@pytest.mark.parametrize("window_chunks", [1, 2, 50])
def test_every_epoch_shows_each_training_sample_once_and_no_other(store, split, batch_size, window_chunks):
    batches = stream(store, split, batch_size=batch_size, window_chunks=window_chunks)
    epoch = len(split.train)
    seen = list(
        itertools.chain.from_iterable(numbers_in(b) for b in itertools.islice(batches, -(-3 * epoch // batch_size)))
    )
    assert not set(seen) & (set(split.holdout.tolist()) | set(FAILED))
    epochs = [seen[first : first + epoch] for first in range(0, 3 * epoch, epoch)]
    assert all(sorted(samples) == split.train.tolist() for samples in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_window_mixes_its_chunks(store, split):
    seen = numbers_in(next(iter(stream(store, split, batch_size=6, window_chunks=2))))
    assert len({number // CHUNK for number in seen}) == 2
    assert seen != sorted(seen)


def test_the_same_seed_gives_the_same_stream_and_another_seed_another(store, split):
    one, two, other = (itertools.islice(stream(store, split, seed=seed), 8) for seed in (1, 1, 2))
    same, different = [], []
    for a, b, c in zip(one, two, other, strict=True):
        same.append(equal(a, b))
        different.append(numbers_in(a) != numbers_in(c))
    assert all(same)
    assert any(different)


def test_every_step_and_every_seed_draws_its_own_augmentation(store, split):
    def mirrored(seed: int) -> list[list[float]]:
        return [batch.feature_weight.tolist() for batch in itertools.islice(stream(store, split, seed=seed), 8)]

    assert len({tuple(flags) for flags in mirrored(0)}) > 2
    assert mirrored(0) != mirrored(1)


def test_the_stream_from_any_step_is_the_tail_of_the_stream_from_the_start(store, split):
    whole = list(itertools.islice(stream(store, split), 16))  # three epochs and a half
    assert not equal(whole[0], whole[1])
    for first in (1, 2, 3, 4, 5, 7, 9, 14):  # inside a window, at its end, in another epoch
        tail = list(itertools.islice(stream(store, split, first=first), 16 - first))
        assert all(equal(a, b) for a, b in zip(whole[first:], tail, strict=True)), first


def test_the_tail_does_not_read_what_it_skips(store, split, monkeypatch):
    read = []
    whole = Store.read_chunk
    monkeypatch.setattr(
        Store, "read_chunk", lambda self, chunk, *a, **k: read.append(chunk) or whole(self, chunk, *a, **k)
    )
    config = FeedConfig(window_chunks=1, holdout=0.2, ahead=2)
    feed = Feed(store, split, [], config=config, batch_size=4, seed=0)
    with closing(feed.batches(4000, NO_AUGMENTATION, lambda step: 16, CPU)) as batches:
        next(batches)
    # twice each, for photos and answers: two batches' windows and two chunks ahead, not a thousand epochs
    assert 1 <= len(set(read)) <= 6
    assert len(read) <= 12


def test_a_batch_has_the_size_its_step_asks_for(store, split):
    sizes = [batch.image.shape[-1] for batch in itertools.islice(stream(store, split), 8)]
    assert sizes == [16] * 6 + [32] * 2


def test_features_come_with_their_own_sample_and_only_those_asked_for(store, split):
    batch = next(iter(stream(store, split)))
    assert list(batch.features) == list(TAPS)
    expected = torch.tensor(numbers_in(batch), dtype=torch.float32)
    assert torch.equal(batch.features["block09"].mean(dim=(1, 2, 3)).round(), expected)
    assert torch.equal(batch.features["block12"].mean(dim=(1, 2, 3)).round(), expected * 10)
    feed = Feed(store, split, [], config=FeedConfig(), batch_size=2, seed=0)
    assert next(iter(feed.batches(0, NO_AUGMENTATION, lambda step: 16, CPU))).features == {}


@pytest.mark.parametrize(
    "samples", [[5], [0, 1, 2, 3], [25, 0, 13, 1, 24, 12], [7, 7, 0, 7], list(range(SAMPLES - 1, -1, -1))]
)
def test_samples_are_read_in_the_order_asked_for(store, samples):
    data = read_samples(store, np.array(samples), ["disparity", "features/block12"])
    assert data["disparity"][:, 0, 0].tolist() == samples
    assert data["features/block12"][:, 1, 2, 2].tolist() == [10 * n for n in samples]


def test_the_constants_are_those_of_the_training_samples_alone(store, split):
    measured = measure_targets(store, split, LossConfig(features=1.0))
    numbers = torch.from_numpy(split.train).double()
    assert measured.disparity_scale == pytest.approx(numbers.mean().item())
    assert measured.feature_mean["block12"].tolist() == pytest.approx([10 * numbers.mean().item()] * 2)
    spread = torch.from_numpy(split.train).repeat_interleave(9).double().std().item()
    assert measured.feature_std["block09"].tolist() == pytest.approx([spread] * 2)
    assert measure_targets(store, split, LossConfig(raw=1.0)).feature_mean == {}


def test_the_taps_are_named_shallow_to_deep(store):
    assert feature_names(store) == list(TAPS)


def test_a_chunk_that_is_lost_during_training_is_an_error_and_no_zeros(store, split, tmp_path):
    copy = Path(shutil.copytree(store.url, tmp_path / "store.zarr"))
    next((copy / "disparity").glob("c.1.*")).unlink()
    with pytest.raises(IncompleteStore, match=r"chunk 1 of .* is missing"):
        for _ in itertools.islice(stream(Store.open(copy), split), 6):
            pass
