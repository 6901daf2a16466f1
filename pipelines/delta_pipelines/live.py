"""The teacher in the training loop, in place of its cached answers: what caching is measured against."""

from pathlib import Path

import msgspec
import torch

from delta.errors import DeltaError
from delta.teacher import Teacher, load_teacher, teacher_name
from delta_cache.reader import Store
from delta_pipelines.feed import feature_names


def load_live_teacher(name: str | None, store_path: str | Path, device: torch.device) -> Teacher:
    """Load the teacher that answered for a store, at the taps it kept.

    Raises:
        DeltaError: nothing loadable under that name, or another teacher than the store's.
    """
    store = Store.open(store_path)
    asked = store.contract.teacher
    teacher = load_teacher(
        teacher_name(name), taps=kept_blocks(store), precision=asked.get("precision", "float32"), device=device
    )
    given = msgspec.to_builtins(teacher.identity)
    differing = [
        f"  {key}: store {value}, given {given.get(key)}" for key, value in asked.items() if given.get(key) != value
    ]
    if differing:
        raise DeltaError(
            "\n".join([f"the teacher is not the one that answered for {store_path}:", *differing]),
            "name that one by --teacher, or train from the store's answers (feed.live=false)",
        )
    return teacher


def kept_blocks(store: Store) -> tuple[int, ...]:
    """The transformer blocks that a store's taps are, from 1; the usual four where it kept none."""
    names = [tap for tap in feature_names(store) if tap.startswith("block")]
    return tuple(int(tap.removeprefix("block")) for tap in names) or (3, 6, 9, 12)
