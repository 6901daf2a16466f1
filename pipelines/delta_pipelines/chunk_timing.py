"""Where the time of a build went, read off its ledger. Knows no torch."""

from collections.abc import Sequence

from delta.config import Config
from delta_cache.schema import ChunkRecord

STAGES = ("decode", "teacher", "write")


class Meter(Config, frozen=True, kw_only=True):
    """How busy each stage of a build was, as shares of the time: the fullest is what holds the others up."""

    shares: dict[str, float]
    bottleneck: str


def meter(records: Sequence[ChunkRecord]) -> Meter:
    """Measure the stages over the chunks of one worker."""
    total = max(sum(record.times.total_s for record in records), 1e-9)
    shares = {
        stage: min(1.0, sum(getattr(record.times, f"{stage}_s") for record in records) / total) for stage in STAGES
    }
    return Meter(shares=shares, bottleneck=max(shares, key=lambda stage: shares[stage]))


class Work(Config, frozen=True, kw_only=True):
    """What a build took: `seconds` of its slowest worker at work, pauses between runs not counted."""

    samples: int
    seconds: float
    workers: int
    meter: Meter


def work(records: Sequence[ChunkRecord]) -> Work:
    """Add up a ledger; composed stores have no times and took nothing."""
    spent: dict[str, float] = {}
    for record in records:
        spent[record.times.worker] = spent.get(record.times.worker, 0.0) + record.times.total_s
    return Work(
        samples=sum(len(record.samples) for record in records),
        seconds=max(spent.values(), default=0.0),
        workers=len(spent),
        meter=meter(records),
    )
