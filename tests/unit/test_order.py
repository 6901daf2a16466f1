"""An epoch uses every sample once, reads few chunks at a time, and is told by seed and epoch alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_cache.order import chunk_order, epoch_order
from delta_cache.schema import Photo, digest_photos, order_photos

NAMES = st.lists(st.text("abcäß/._-0", min_size=1, max_size=8), unique=True, max_size=30)


def photos_named(names: list[str]) -> list[Photo]:
    return [Photo(path=name, bytes=len(name)) for name in names]


@given(names=NAMES, seed=st.integers(0, 2**40))
def test_the_photos_order_is_a_permutation(names: list[str], seed: int) -> None:
    photos = photos_named(names)
    ordered = order_photos(photos, seed)
    assert len(ordered) == len(photos)
    assert set(ordered) == set(photos)


@given(names=NAMES, seed=st.integers(0, 2**40), data=st.data())
def test_the_photos_order_depends_on_the_seed_and_not_on_the_listing(
    names: list[str], seed: int, data: st.DataObject
) -> None:
    photos = photos_named(names)
    listed_otherwise = data.draw(st.permutations(photos))
    assert order_photos(listed_otherwise, seed) == order_photos(photos, seed)


def test_seeds_give_orders_and_digests_of_their_own() -> None:
    photos = photos_named([f"{number:02d}.jpg" for number in range(40)])
    orders = [order_photos(photos, seed) for seed in range(20)]
    assert len({digest_photos(order) for order in orders}) == 20
    assert all(order != photos for order in orders)
    first_places = {order.index(photos[0]) for order in orders}
    assert len(first_places) > 5  # of 40 places; a fixed point would be one


def usable(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    samples = draw(st.lists(st.integers(0, 60), unique=True, max_size=40))
    return np.array(sorted(samples), dtype=np.int64), draw(st.integers(1, 9))


@given(
    plan=st.composite(usable)(),
    window_chunks=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 1000),
)
def test_an_epoch_uses_every_sample_once_from_few_chunks_at_a_time(
    plan: tuple[np.ndarray, int], window_chunks: int, seed: int, epoch: int
) -> None:
    samples, chunk_samples = plan
    windows = list(epoch_order(samples, chunk_samples, window_chunks=window_chunks, seed=seed, epoch=epoch))
    assert sorted(int(sample) for window in windows for sample in window) == samples.tolist()
    chunks = [np.unique(window // chunk_samples).tolist() for window in windows]
    assert all(1 <= len(window) <= window_chunks for window in chunks)
    read = [chunk for window in chunks for chunk in window]
    assert len(read) == len(set(read))  # no chunk is read twice, none without a usable sample


def order(seed: int, epoch: int) -> list[int]:
    windows = epoch_order(np.arange(64), 4, window_chunks=3, seed=seed, epoch=epoch)
    return np.concatenate(list(windows)).tolist()


def test_an_epoch_is_told_by_its_seed_and_number() -> None:
    assert order(7, 3) == order(7, 3)
    orders = {tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_a_window_is_shuffled_and_chunks_come_in_fresh_order() -> None:
    windows = list(epoch_order(np.arange(64), 4, window_chunks=4, seed=0, epoch=0))
    assert any(window.tolist() != sorted(window.tolist()) for window in windows)
    first = [int(window.min()) for window in windows]
    assert first != sorted(first)


@given(
    chunks=st.lists(st.integers(0, 500), unique=True, max_size=60).map(np.array),
    world_size=st.integers(1, 9),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 10**6),
)
def test_the_ranks_deal_the_chunks_of_an_epoch_out_among_them(
    chunks: np.ndarray, world_size: int, seed: int, epoch: int
) -> None:
    hands = [
        chunk_order(chunks, seed=seed, epoch=epoch, rank=rank, world_size=world_size).tolist()
        for rank in range(world_size)
    ]
    assert sorted(chunk for hand in hands for chunk in hand) == sorted(chunks.tolist())
    assert max(map(len, hands)) - min(map(len, hands)) <= 1
    again = [
        chunk_order(chunks, seed=seed, epoch=epoch, rank=rank, world_size=world_size).tolist()
        for rank in range(world_size)
    ]
    assert hands == again


def test_the_order_of_chunks_is_fresh_in_every_epoch_and_for_every_seed() -> None:
    chunks = np.arange(40)
    orders = {tuple(chunk_order(chunks, seed=seed, epoch=epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_outside_the_world_is_refused(rank: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} of {world_size}"):
        chunk_order(np.arange(4), seed=0, epoch=0, rank=rank, world_size=world_size)


@given(
    plan=st.composite(usable)(),
    window_chunks=st.integers(1, 6),
    world_size=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_the_ranks_of_an_epoch_use_every_sample_once_among_them(
    plan: tuple[np.ndarray, int], window_chunks: int, world_size: int, seed: int
) -> None:
    samples, chunk_samples = plan
    seen: list[int] = []
    for rank in range(world_size):
        windows = epoch_order(
            samples, chunk_samples, window_chunks=window_chunks, seed=seed, epoch=1, rank=rank, world_size=world_size
        )
        seen += [int(sample) for window in windows for sample in window]
    assert sorted(seen) == samples.tolist()
