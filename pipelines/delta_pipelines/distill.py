"""Stage 2: store -> run. The student learns from the cache; a teacher is handed in only where the feed is live."""

import hashlib
import json
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import cast

import msgspec
import torch

from delta.batch import Batch
from delta.checkpoint import WEIGHTS, StudentCard, load_student, save_student, weights_file
from delta.config import Config
from delta.distributed import ALONE, World, broadcast, wait_for_all
from delta.encoder import HubUnreachable, load_encoder_weights
from delta.errors import DeltaError
from delta.metrics import Agreement
from delta.objective import Objective, TargetStatistics
from delta.student import Student, StudentConfig, build_student
from delta.train import NotFinite, StepReport, fit
from delta.train_state import TrainState, read_metadata
from delta_cache.reader import Store, open_cache
from delta_pipelines import provenance
from delta_pipelines.feed import Feed, Split, TeacherCall, measure_targets, split_store
from delta_pipelines.holdout import Holdout, load_holdout
from delta_pipelines.run_folder import (
    STATE,
    Journal,
    RunIdentity,
    claim,
    draw_losses,
    hold,
    require_same,
    write_not_finite,
)
from delta_pipelines.run_report import write_run_report
from delta_pipelines.train_recipe import TrainRecipe


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
    recipe: TrainRecipe,
    store_path: str | Path,
    run: Path,
    *,
    device: torch.device,
    watcher: Watcher | None = None,
    world: World = ALONE,
    recipe_name: str = "",
    teacher: TeacherCall | None = None,
) -> Summary:
    """Train a student on a complete store into the folder `run`, or resume the run that is there.

    Writes `student.safetensors` (the weights that agreed best with the teacher on held-out photos), `state.safetensors`
    (to resume), `metrics.jsonl`, TensorBoard events, `samples.png`, `loss.png` and `report.md`. `teacher` answers for
    the images where the recipe's feed is live.

    Raises:
        DeltaError: `run` holds a run of another recipe or store, or another process trains there, or the recipe does
            not fit student or store.
        NotFinite: the loss is no longer finite; the batch's samples are in `not_finite.json`.
        CacheError: the store is missing or incomplete.
    """
    recipe.require_parts(world.size)
    store = open_cache(store_path)
    identity = identify(recipe, store, world, recipe_name)
    with hold(run) if world.leads else nullcontext():
        if world.leads:
            claim(run, identity)
        wait_for_all(world)
        job = _Run(
            recipe, store, run, identity, device, world, (watcher if world.leads else None) or Watcher(), teacher
        )
        job.train()
        return job.finish()


def identify(recipe: TrainRecipe, store: Store, world: World = ALONE, recipe_name: str = "") -> RunIdentity:
    """Work out what decides the weights of a run of `recipe` on `store`."""
    decisive, contract = recipe.decisive(), store.contract
    start = _initial_weights(recipe)
    init_sha256 = hashlib.sha256(start.read_bytes()).hexdigest() if start and start.is_file() else ""
    parts = [decisive, init_sha256, contract.fingerprint, *([world.size] if world.size > 1 else [])]
    return RunIdentity(
        fingerprint=provenance.fingerprint(*parts),
        recipe=decisive,
        init_sha256=init_sha256,
        store=contract.fingerprint,
        teacher=store.teacher["name"],
        contract=json.loads(msgspec.json.encode(contract)),
        processes=world.size,
        recipe_name=recipe_name,
        steps=count_steps(recipe, split_store(store, recipe.feed), world),
    )


def count_steps(recipe: TrainRecipe, split: Split, world: World = ALONE) -> int:
    """Steps of a run: its epochs over the batches of all processes."""
    return max(1, round(recipe.epochs * len(split.train) / (recipe.batch_size * world.size)))


class _Run:
    """One run in this process: what is built once, and what is done at each step."""

    def __init__(
        self,
        recipe: TrainRecipe,
        store: Store,
        run: Path,
        identity: RunIdentity,
        device: torch.device,
        world: World,
        watcher: Watcher,
        teacher: TeacherCall | None,
    ) -> None:
        self.recipe, self.run, self.identity, self.watcher = recipe, run, identity, watcher
        self.world, self.total, self.teacher = world, identity.steps, teacher
        split = split_store(store, recipe.feed)
        self.state = start_state(recipe, store, split, device, world, watcher.say)
        self._resume()
        self.feed = Feed(
            store,
            split,
            self.state.objective.arrays,
            config=recipe.feed,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            world=world,
            teacher=teacher if recipe.feed.live else None,
        )
        self.photos, self.teacher_name = store.photos, store.teacher["name"]
        self.holdout: Holdout | None = load_holdout(store, split, recipe.size_px) if world.leads else None

    def train(self) -> None:
        recipe, state = self.recipe, self.state
        with closing(self._batches()) as batches:
            steps = fit(state, batches, recipe.optimizer, self.total)
            if self.holdout is None:
                for _ in steps:
                    pass
                return
            with Journal(self.run, state.step) as journal:
                try:
                    for report in steps:
                        self._after(report, journal, self.holdout)
                except NotFinite as error:
                    path = write_not_finite(self.run, error, [self._photo(sample) for sample in error.samples])
                    self.watcher.say(f"the samples of that batch are in {path}")
                    raise
                finally:
                    journal.close_speed()

    def finish(self) -> Summary:
        """Draw, report and sum up, in the process that leads; the others are told."""
        return cast(Summary, broadcast(self._sum_up(self.holdout) if self.holdout else None, self.world))

    def _sum_up(self, holdout: Holdout) -> Summary:
        student, card = load_student(self.run)
        holdout.draw(self.run / "samples.png", student)
        draw_losses(self.run)
        mean_map = holdout.baseline()
        write_run_report(self.run, msgspec.to_builtins(mean_map))
        return Summary(
            student=holdout.measure(student, torch.device("cpu")),
            mean_map=mean_map,
            best_step=card.step,
            steps=self.state.step,
        )

    def _after(self, report: StepReport, journal: Journal, holdout: Holdout) -> None:
        journal.step(report)
        self.watcher.step(report, self.total)
        state, last = self.state, report.step == self.total
        if last or report.step % self.recipe.evaluate_steps == 0:
            agreement = holdout.measure(state.best_student, state.device)
            journal.evaluation(report.step, agreement)
            journal.picture(report.step, "holdout/samples", holdout.panel(state.best_student, state.device))
            self.watcher.evaluation(report.step, agreement)
            self._keep_best(agreement)
        if last or report.step % self.recipe.checkpoint_steps == 0:
            state.save(self.run / STATE, {"run": msgspec.json.encode(self.identity).decode()})

    def _resume(self) -> None:
        path = self.run / STATE
        if not path.is_file():
            return
        require_same(path, read_metadata(path), self.identity)
        self.state.load(path)
        self.watcher.say(f"resuming at step {self.state.step} of {self.total}")

    def _batches(self) -> Generator[Batch, None, None]:
        recipe = self.recipe
        return self.feed.batches(
            self.state.step, recipe.augment, lambda step: recipe.size_at(step, self.total), self.state.device
        )

    def _keep_best(self, agreement: Agreement) -> None:
        """Keep the student whose delta1 against the teacher on held-out photos is the highest so far."""
        path, student = self.run / WEIGHTS, self.state.best_student
        if path.is_file() and load_student(path)[1].agreement["delta1"] >= agreement.delta1:
            return
        save_student(
            path,
            student,
            StudentCard(
                config=student.config,
                size_px=self.recipe.size_px,
                teacher=self.teacher_name,
                fingerprint=self.identity.fingerprint,
                commit=provenance.commit(),
                step=self.state.step,
                agreement=msgspec.to_builtins(agreement),
                recipe=self.identity.recipe,
                contract=self.identity.contract,
            ),
        )

    def _photo(self, sample: int) -> str:
        return self.photos[sample % len(self.photos)].path


def start_state(
    recipe: TrainRecipe,
    store: Store,
    split: Split,
    device: torch.device,
    world: World = ALONE,
    say: Callable[[str], None] = lambda text: None,
    statistics: TargetStatistics | None = None,
) -> TrainState:
    """Build student, objective and optimizer as they stand before the first step.

    `statistics` stand in for the store's where the targets are another teacher's.

    Raises:
        DeltaError: the recipe does not fit the store, or the weights it starts from.
    """
    torch.manual_seed(recipe.seed)
    student = _build(recipe, say)
    torch.manual_seed(recipe.seed)  # whatever weights were loaded, the projectors start alike
    objective = Objective(recipe.loss, student.channels, statistics or measure_targets(store, split, recipe.loss))
    return TrainState(student, objective, recipe.optimizer, device, world)


def _build(recipe: TrainRecipe, say: Callable[[str], None]) -> Student:
    init = _initial_weights(recipe)
    if init and recipe.init:
        return _load_initial(recipe, init, say)
    student, source = build_student(recipe.student), recipe.student.encoder_weights
    try:
        load_encoder_weights(student.encoder, recipe.student.encoder, source)
    except HubUnreachable as error:
        say(f"{error}: training starts from scratch, and the student's card says so")
        source = "none"
        student.config = msgspec.structs.replace(recipe.student, encoder_weights=source)
    if source == "none":
        say("the encoder starts from scratch")
    else:
        say(f"the encoder {recipe.student.encoder} starts from {source} weights")
    return student


def _initial_weights(recipe: TrainRecipe) -> Path | None:
    """The file that the run starts from, of a whole student or of an encoder."""
    if not recipe.init:
        source = recipe.student.encoder_weights
        return None if source in ("none", "imagenet") else Path(source)
    return weights_file(Path(recipe.init))


def _load_initial(recipe: TrainRecipe, path: Path, say: Callable[[str], None]) -> Student:
    student, card = load_student(path)
    if _shape(card.config) != _shape(recipe.student):
        raise DeltaError(
            f"{path} is a {_shape(card.config)}; the recipe asks for {_shape(recipe.student)}",
            "set student.* in the recipe to match, or leave init out",
        )
    say(f"training starts from {path.name} ({card.config.encoder})")
    return student


def _shape(config: StudentConfig) -> str:
    parts = [f"{config.encoder} with the {config.decoder} decoder"]
    if config.decoder == "light":
        parts += [f"width {config.width}", f"{config.fusion} fusion", f"{config.head} head"]
    if config.context:
        parts.append(f"MobileViT blocks at {' and '.join(map(str, config.context))}")
    if config.stage32 == "mobilevit":
        parts.append("a MobileViT stage at 32")
    return ", ".join(parts)
