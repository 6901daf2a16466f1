"""The stream of batches is a function of seed and step: complete in every epoch, the same from wherever it starts."""

import itertools
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from delta.augment import NO_AUGMENTATION, AugmentConfig
from delta.batch import Batch
from delta.distributed import World
from delta.errors import DeltaError
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


@pytest.mark.parametrize("settings", [{"workers": 0}, {"workers": 3, "ahead": 1}, {"workers": 2, "method": "fork"}])
def test_the_stream_is_the_same_for_any_number_of_workers_of_any_kind(store, split, settings):
    compare_streams(store, split, settings)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_worker_processes_that_start_afresh_give_the_same_stream(store, split, method):
    compare_streams(store, split, {"workers": 2, "method": method})


def compare_streams(store: Store, split: Split, settings: dict) -> None:
    arrays = [f"features/{tap}" for tap in TAPS]
    plain, other = (
        Feed(store, split, arrays, config=FeedConfig(holdout=0.2, **s), batch_size=4, seed=3) for s in ({}, settings)
    )
    streams = [feed.batches(5, AugmentConfig(), lambda step: 16, CPU) for feed in (plain, other)]
    with closing(streams[0]), closing(streams[1]):
        for a, b in itertools.islice(zip(*streams, strict=True), 7):
            assert torch.equal(a.samples, b.samples)
            assert equal(a, b)


def test_an_error_in_a_worker_process_is_the_sentence_it_was(store, split, tmp_path):
    copy = Path(shutil.copytree(store.url, tmp_path / "store.zarr"))
    opened = open_cache(copy)
    (copy / "disparity" / "c.1.0.0").unlink()
    config = FeedConfig(holdout=0.2, workers=1, method="fork")
    feed = Feed(opened, split, [], config=config, batch_size=4, seed=0)
    with pytest.raises(IncompleteStore, match=r"^chunk 1 of \S+ is missing$") as caught:
        for _ in itertools.islice(feed.batches(0, NO_AUGMENTATION, lambda step: 16, CPU), 6):
            pass
    assert "resumes it" in caught.value.hint


def test_the_threads_of_a_feed_end_with_it(store, split):
    with closing(stream(store, split)) as batches:
        next(batches)
        assert [thread for thread in threading.enumerate() if thread.name.startswith(("feed", "batches"))]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("feed", "batches"))]


def test_a_batch_says_which_samples_are_in_it(store, split):
    batch = next(iter(stream(store, split)))
    assert batch.samples.tolist() == numbers_in(batch)


def test_the_batches_of_two_processes_are_those_of_one_with_two_shards(store, split):
    arrays = [f"features/{tap}" for tap in TAPS]
    alone = Feed(store, split, arrays, config=FeedConfig(holdout=0.2, shards=2), batch_size=6, seed=1)
    pair = [
        Feed(store, split, arrays, config=FeedConfig(holdout=0.2), batch_size=3, seed=1, world=World(rank=r, size=2))
        for r in (0, 1)
    ]
    streams = [feed.batches(0, AugmentConfig(), lambda step: 16, CPU) for feed in (alone, *pair)]
    seen = [[], []]
    for whole, *parts in itertools.islice(zip(*streams, strict=True), 6):
        for expected, part, mine in zip(whole.split(2), parts, seen, strict=True):
            assert equal(expected, part)
            mine += part.samples.tolist()
    chunks = [{sample // CHUNK for sample in mine[:6]} for mine in seen]
    assert not chunks[0] & chunks[1]  # in an epoch a chunk is read by one process


def test_more_shards_than_chunks_are_refused(store, split):
    with pytest.raises(DeltaError, match="6 chunks to train on cannot be dealt to 7 processes or shards"):
        Feed(store, split, [], config=FeedConfig(holdout=0.2, shards=7), batch_size=7, seed=0)


def test_views_of_a_held_out_photo_are_on_neither_side(compact_store):
    opened = open_cache(compact_store)
    photos = opened.contract.photo_count
    assert opened.contract.views == ("plain", "mirrored", "crop1")
    split = split_store(opened, FeedConfig(holdout=0.3))
    assert not {n % photos for n in split.train.tolist()} & {n % photos for n in split.holdout.tolist()}
    assert (split.holdout < photos).all()
    assert len(split.train) == 3 * (photos - len(split.holdout))


def test_codes_are_decoded_on_the_device_to_the_features_that_the_store_reads(compact_store):
    opened = open_cache(compact_store)
    split = split_store(opened, FeedConfig())
    feed = Feed(opened, split, ["features/block12", "attention/block12"], config=FeedConfig(), batch_size=4, seed=0)
    with closing(feed.targets(0, CPU)) as stored, closing(feed.batches(0, NO_AUGMENTATION, lambda s: 64, CPU)) as made:
        targets, batch = next(stored), next(made)
    assert targets.features["block12"].dtype == torch.int8
    samples = batch.samples.numpy()
    assert samples.tolist() == targets.samples.tolist()
    expected = read_samples(opened, samples, ["features/block12", "attention/block12"])
    grid = {"features": (batch.features["block12"], feed.decoded(targets).features["block12"])}
    assert grid["features"][0].shape[-1] == 4  # that of the store, too: nothing is interpolated
    for ours in grid["features"]:
        np.testing.assert_allclose(ours.numpy(), expected["features/block12"], atol=2e-5)
    np.testing.assert_allclose(
        batch.attention["block12"].numpy(), expected["attention/block12"].astype(np.float32), atol=1e-5
    )
    statistics = measure_targets(opened, split, LossConfig(features=1.0, cls_attention=0.1))
    assert torch.equal(statistics.feature_mean["block12"], torch.from_numpy(opened.bases["block12"].mean.copy()))
    assert statistics.heads == {"block03": 2, "block12": 2}


@pytest.mark.parametrize("which", ["small_store", "compact_store"])
def test_a_teacher_in_the_loop_answers_as_the_store_within_its_codec(which, request, fake_teacher):
    opened = open_cache(request.getfixturevalue(which))
    split = split_store(opened, FeedConfig())
    arrays = ["features/block03", "features/block12", "attention/block12"]
    pair = [
        Feed(opened, split, arrays, config=FeedConfig(), batch_size=4, seed=0, teacher=teacher)
        for teacher in (None, fake_teacher())
    ]
    augment = AugmentConfig(rotation_deg=5)
    for cached, live in itertools.islice(
        zip(*(f.batches(0, augment, lambda s: 64, CPU) for f in pair), strict=True), 4
    ):
        assert torch.equal(cached.image, live.image)
        assert torch.equal(cached.feature_weight, live.feature_weight)
        error = 2.0**-8 if which == "compact_store" else 2.0**-11  # half a step of the mantissa that is kept
        torch.testing.assert_close(cached.disparity, live.disparity, rtol=1.01 * error, atol=0)
        for tap in ("block03", "block12"):
            cosine = torch.nn.functional.cosine_similarity(cached.features[tap], live.features[tap], dim=1)
            assert cosine.mean() > (0.98 if which == "compact_store" else 0.99999)
        torch.testing.assert_close(cached.attention["block12"], live.attention["block12"], rtol=2 * error, atol=1e-4)


@pytest.mark.gpu
def test_batches_reach_a_gpu_as_they_are_on_the_cpu(store, split):
    if not torch.cuda.is_available():
        pytest.skip("NOT TESTED: no CUDA device")
    feed = Feed(store, split, ["features/block12"], config=FeedConfig(holdout=0.2), batch_size=4, seed=0)
    streams = [feed.targets(0, device) for device in (CPU, torch.device("cuda"))]
    for a, b in itertools.islice(zip(*streams, strict=True), 8):
        assert b.image.device.type == "cuda"
        assert torch.equal(a.image, b.image.cpu())
        assert torch.equal(a.features["block12"], b.features["block12"].cpu())
