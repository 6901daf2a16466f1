"""The order in which an epoch reads a store: whole chunks, in fresh order, shuffled inside a window of several.

The store is a random permutation of the photos already, so a window is a random sample of them and a shuffle inside it
is close to a full one (the quasi-random order of FFCV) at the price of sequential reads. Pure arithmetic: a run that
resumes asks for the same seed and epoch and gets the same order.
"""

from collections.abc import Iterator

import numpy as np


def chunk_order(chunks: np.ndarray, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
    """Permute the chunk numbers of an epoch and deal them out: a pure function of all its arguments.

    Every chunk goes to one rank; where they do not divide, the first ranks have one more.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}")
    return np.random.default_rng([seed, epoch]).permutation(chunks)[rank::world_size]


def epoch_order(
    samples: np.ndarray,
    chunk_samples: int,
    *,
    window_chunks: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[np.ndarray]:
    """Yield the windows of an epoch: sample numbers in the order of use, all of a few chunks.

    Args:
        samples: sample numbers that may be used (those with answers, less those held out), ascending.
        chunk_samples: samples a chunk; chunks without a usable sample are not read.
        window_chunks: chunks in memory at once.
    """
    chunk_of = samples // chunk_samples
    chunks = chunk_order(np.unique(chunk_of), seed=seed, epoch=epoch, rank=rank, world_size=world_size)
    generator = np.random.default_rng([seed, epoch, 1, rank])
    for first in range(0, len(chunks), window_chunks):
        window = chunks[first : first + window_chunks]
        yield generator.permutation(samples[np.isin(chunk_of, window)])
