"""Stage 2: store -> run. The student learns from the cache alone; the teacher is never loaded here."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from msgspec import Meta

from delta import bundled, hub
from delta.batch import AugmentConfig, Batch
from delta.checkpoint import WEIGHTS, StudentCard, load_student, save_student
from delta.config import Config
from delta.errors import DeltaError
from delta.metrics import Agreement
from delta.objective import LossConfig, Objective
from delta.student import SIDE_MULTIPLE, Student, StudentConfig, build_student
from delta.train import OptimizerConfig, StepReport, TrainState, fit
from delta_cache.reader import Store, open_cache
from delta_pipelines import provenance
from delta_pipelines.feed import Feed, FeedConfig, Split, measure_targets, split_store
from delta_pipelines.holdout import Holdout, load_holdout
from delta_pipelines.run_folder import STATE, Journal, RunIdentity, claim, draw_losses

SidePx = Annotated[int, Meta(ge=SIDE_MULTIPLE, multiple_of=SIDE_MULTIPLE)]
CADENCE = ("checkpoint_steps", "evaluate_steps")


class TrainRecipe(Config, frozen=True, kw_only=True):
    """Everything a training run can be told; see recipes/student.toml and recipes/seed.toml.

    `size_schedule` lists [share of the steps, side in px]: from that share on, crops have that side; empty trains at
    `size_px` throughout. `init` starts from a run, a checkpoint or the "bundled" student; else `pretrained` starts the
    encoder from ImageNet weights where the hub can be reached. `checkpoint_steps` and `evaluate_steps` are no part of
    a run's identity: they say when to save, and at which steps the best student is looked for.
    """

    student: StudentConfig
    init: str = ""
    pretrained: bool
    size_px: SidePx
    size_schedule: tuple[tuple[float, SidePx], ...] = ()
    epochs: Annotated[float, Meta(gt=0)]
    batch_size: Annotated[int, Meta(ge=2)]
    seed: Annotated[int, Meta(ge=0)] = 0
    optimizer: OptimizerConfig
    loss: LossConfig
    augment: AugmentConfig
    feed: FeedConfig
    checkpoint_steps: Annotated[int, Meta(ge=1)] = 200
    evaluate_steps: Annotated[int, Meta(ge=1)] = 200


class Watcher(Config, frozen=True, kw_only=True):
    """Whom a run tells of its progress; by default nobody."""

    say: Callable[[str], None] = lambda text: None
    step: Callable[[StepReport, int], None] = lambda report, total: None
    evaluation: Callable[[int, Agreement], None] = lambda step, agreement: None


class Summary(Config, frozen=True, kw_only=True):
    """How a run ended: agreement with the teacher on held-out photos, and that of the training photos' mean map."""

    student: Agreement
    mean_map: Agreement
    best_step: int
    steps: int


def distill(
    recipe: TrainRecipe, store_path: str | Path, run: Path, *, device: torch.device, watcher: Watcher | None = None
) -> Summary:
    """Train a student on a complete store into the folder `run`, or resume the run that is there.

    Writes `student.safetensors` (the weights that agreed best with the teacher on held-out photos), `state.safetensors`
    (to resume), `metrics.jsonl`, TensorBoard events, `samples.png` and `loss.png`.

    Raises:
        DeltaError: `run` holds a run of another recipe or store, or the loss is no longer finite.
        CacheError: the store is missing or incomplete.
    """
    watcher = watcher or Watcher()
    store = open_cache(store_path)
    identity = identify(recipe, store)
    claim(run, identity)
    split = split_store(store, recipe.feed)
    total = max(1, round(recipe.epochs * len(split.train) / recipe.batch_size))
    state = _start(recipe, store, split, device, watcher)
    if (run / STATE).is_file():
        state.load(run / STATE)
        watcher.say(f"resuming at step {state.step} of {total}")
    holdout = load_holdout(store, split, recipe.size_px)
    steps = fit(state, _batches(recipe, store, split, state, total), recipe.optimizer, total)
    with Journal(run, state.step) as journal:
        for report in steps:
            journal.step(report)
            watcher.step(report, total)
            if report.step == total or report.step % recipe.evaluate_steps == 0:
                agreement = holdout.measure(state.best_student, state.device)
                journal.evaluation(report.step, agreement)
                watcher.evaluation(report.step, agreement)
                _keep_best(run / WEIGHTS, state, _card(recipe, identity, state.step, agreement))
            if report.step == total or report.step % recipe.checkpoint_steps == 0:
                state.save(run / STATE)
    return _finish(run, holdout, state)


def identify(recipe: TrainRecipe, store: Store) -> RunIdentity:
    """Work out what decides the weights of a run of `recipe` on `store`."""
    decisive = json.loads(msgspec.json.encode(recipe))
    for key in CADENCE:
        del decisive[key]
    init = _initial_weights(recipe)
    init_sha256 = hashlib.sha256(init.read_bytes()).hexdigest() if init and init.is_file() else ""
    return RunIdentity(
        fingerprint=provenance.fingerprint(decisive, init_sha256, store.contract.fingerprint),
        recipe=decisive,
        init_sha256=init_sha256,
        store=store.contract.fingerprint,
        teacher=store.teacher,
    )


def _finish(run: Path, holdout: Holdout, state: TrainState) -> Summary:
    student, card = load_student(run)
    holdout.draw(run / "samples.png", student)
    draw_losses(run)
    return Summary(
        student=holdout.measure(student, torch.device("cpu")),
        mean_map=holdout.baseline(),
        best_step=card.step,
        steps=state.step,
    )


def _start(recipe: TrainRecipe, store: Store, split: Split, device: torch.device, watcher: Watcher) -> TrainState:
    torch.manual_seed(recipe.seed)
    student = _build(recipe, watcher)
    statistics = measure_targets(store, split, with_features=recipe.loss.uses_features)
    return TrainState(student, Objective(recipe.loss, student.channels, statistics), recipe.optimizer, device)


def _build(recipe: TrainRecipe, watcher: Watcher) -> Student:
    init = _initial_weights(recipe)
    if init:
        return _load_initial(recipe, init, watcher)
    if not recipe.pretrained:
        watcher.say("training starts from scratch (the recipe asks for no ImageNet weights)")
        return build_student(recipe.student)
    try:
        with hub.without_waiting():
            student = build_student(recipe.student, pretrained=True)
    except (OSError, RuntimeError) as error:
        reason = type(error).__name__
        watcher.say(f"the hub cannot be reached for ImageNet weights ({reason}): training starts from scratch")
        return build_student(recipe.student)
    watcher.say(f"encoder {recipe.student.encoder} starts from ImageNet weights")
    return student


def _initial_weights(recipe: TrainRecipe) -> Path | None:
    if not recipe.init:
        return None
    path = bundled.STUDENT if recipe.init == "bundled" else Path(recipe.init)
    return path / WEIGHTS if path.is_dir() else path


def _load_initial(recipe: TrainRecipe, path: Path, watcher: Watcher) -> Student:
    student, card = load_student(path)
    if card.config != recipe.student:
        raise DeltaError(
            f"{path} is a {_shape(card.config)}; the recipe asks for {_shape(recipe.student)}",
            "set student.* in the recipe to match, or leave init out",
        )
    watcher.say(f"training starts from {path.name} ({card.config.encoder})")
    return student


def _shape(config: StudentConfig) -> str:
    return f"{config.encoder} with the {config.decoder} decoder, width {config.width}"


def _batches(recipe: TrainRecipe, store: Store, split: Split, state: TrainState, total: int) -> Iterator[Batch]:
    def size_of(step: int) -> int:
        due = [side for share, side in recipe.size_schedule if step >= share * total]
        return due[-1] if due else recipe.size_px

    feed = Feed(store, split, state.objective.taps, config=recipe.feed, batch_size=recipe.batch_size, seed=recipe.seed)
    return feed.batches(state.step, recipe.augment, size_of, state.device)


def _card(recipe: TrainRecipe, identity: RunIdentity, step: int, agreement: Agreement) -> StudentCard:
    return StudentCard(
        config=recipe.student,
        size_px=recipe.size_px,
        teacher=identity.teacher["name"],
        fingerprint=identity.fingerprint,
        commit=provenance.commit(),
        step=step,
        agreement=msgspec.to_builtins(agreement),
    )


def _keep_best(path: Path, state: TrainState, card: StudentCard) -> None:
    """Keep the student whose delta1 against the teacher on held-out photos is the highest so far."""
    if not path.is_file() or load_student(path)[1].agreement["delta1"] < card.agreement["delta1"]:
        save_student(path, state.best_student, card)
