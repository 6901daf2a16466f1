"""What a ladder is: training runs of one budget that differ in one thing a rung."""

from typing import Annotated

from msgspec import Meta

from delta.config import Config
from delta_pipelines.cache_recipe import CacheRecipe
from delta_pipelines.recipe import load_recipe
from delta_pipelines.train_recipe import TrainRecipe

Entries = tuple[str, ...]  # key=value, as for --set


class Rung(Config, frozen=True, kw_only=True):
    """One change: of the training recipe, or of the cache."""

    name: Annotated[str, Meta(min_length=1, max_length=80)]
    train: Entries = ()
    cache: Entries = ()


class LadderRecipe(Config, frozen=True, kw_only=True):
    """Rungs from a first training recipe; see recipes/ladder.toml and recipes/curve.toml.

    `start` and `cache` name recipes. `budget` and `store` are entries of every rung's training and cache, and win over
    the rungs' own. A rung keeps the changes of those before it where the ladder is `cumulative`. Each rung is trained
    once for each of `seeds`.
    """

    start: str
    cache: str = "cache"
    cumulative: bool = True
    budget: Entries = ()
    store: Entries = ()
    seeds: Annotated[tuple[int, ...], Meta(min_length=1)] = (0,)
    rungs: Annotated[tuple[Rung, ...], Meta(min_length=1)]

    def training(self, index: int, seed: int) -> TrainRecipe:
        """The training recipe of a rung.

        Raises:
            DeltaError: an entry is unknown or out of range.
        """
        return load_recipe(TrainRecipe, self.start, [*self._changes("train", index), *self.budget, f"seed={seed}"])

    def caching(self, index: int) -> CacheRecipe:
        """The cache recipe of a rung.

        Raises:
            DeltaError: an entry is unknown or out of range.
        """
        return load_recipe(CacheRecipe, self.cache, [*self._changes("cache", index), *self.store])

    def _changes(self, kind: str, index: int) -> list[str]:
        kept = self.rungs[: index + 1] if self.cumulative else self.rungs[index : index + 1]
        return [entry for rung in kept for entry in getattr(rung, kind)]
