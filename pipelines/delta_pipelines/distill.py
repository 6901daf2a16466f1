"""Stage 2: store -> run. The student learns from the cache alone; the teacher is never loaded here."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch.utils.tensorboard import SummaryWriter

from delta import bundled
from delta.batch import AugmentConfig
from delta.checkpoint import WEIGHTS, StudentCard, load_student, save_student
from delta.config import Config
from delta.errors import DeltaError
from delta.files import write_aside
from delta.metrics import Agreement
from delta.objective import LossConfig, Objective
from delta.panel import loss_curve
from delta.student import SIDE_MULTIPLE, Student, StudentConfig, build_student
from delta.train import OptimizerConfig, StepReport, TrainState, fit
from delta_cache.reader import Store
from delta_pipelines import provenance
from delta_pipelines.feed import Feed, FeedConfig, Split, feature_names, measure_targets, split_store
from delta_pipelines.holdout import Holdout, load_holdout

STATE, RUN, METRICS = "state.safetensors", "run.json", "metrics.jsonl"
FORMAT, VERSION = "delta-run", 1


class TrainRecipe(Config, kw_only=True):
    """Everything a training run can be told; see recipes/student.toml and recipes/seed.toml.

    `size_schedule` lists [share of the steps, side in px]: from that share on, crops have that side; empty trains at
    `size_px` throughout. `init` starts from a run, a checkpoint or the "bundled" student; else `pretrained` starts the
    encoder from ImageNet weights where the hub can be reached. `checkpoint_steps` and `evaluate_steps` do not change the result.
    """

    student: StudentConfig
    init: str = ""
    pretrained: bool
    size_px: Annotated[int, Meta(ge=SIDE_MULTIPLE, multiple_of=SIDE_MULTIPLE)]
    size_schedule: tuple[tuple[float, Annotated[int, Meta(ge=SIDE_MULTIPLE, multiple_of=SIDE_MULTIPLE)]], ...] = ()
    epochs: Annotated[float, Meta(gt=0)]
    batch_size: Annotated[int, Meta(ge=2)]
    seed: int = 0
    optimizer: OptimizerConfig
    loss: LossConfig
    augment: AugmentConfig
    feed: FeedConfig
    checkpoint_steps: Annotated[int, Meta(ge=1)] = 200
    evaluate_steps: Annotated[int, Meta(ge=1)] = 200


class Watcher(Config, kw_only=True):
    """Whom a run tells of its progress; by default nobody."""

    say: Callable[[str], None] = lambda text: None
    step: Callable[[StepReport, int], None] = lambda report, total: None
    evaluation: Callable[[int, Agreement], None] = lambda step, agreement: None


class RunIdentity(Config, kw_only=True):
    """What decides a run's weights, as kept in run.json."""

    format: str = FORMAT
    version: int = VERSION
    fingerprint: str
    recipe: dict[str, Any]
    store: str
    teacher: dict[str, Any]


class Summary(Config, kw_only=True):
    """How a run ended: agreement with the teacher on held-out photos, and that of the training photos' mean map."""

    student: Agreement
    mean_map: Agreement
    best_step: int
    steps: int


def distill(
    recipe: TrainRecipe, store_path: Path, run: Path, *, device: torch.device, watcher: Watcher | None = None
) -> Summary:
    """Train a student on a complete store into the folder `run`, or resume the run that is there.

    Writes `student.safetensors` (the weights that agreed best with the teacher on held-out photos), `state.safetensors`
    (to resume), `metrics.jsonl`, TensorBoard events, `samples.png` and `loss.png`.

    Raises:
        DeltaError: `run` holds a run of another recipe or store, or the loss is no longer finite.
        CacheError: the store is missing or incomplete.
    """
    watcher = watcher or Watcher()
    store = Store.open(store_path).require_complete()
    _claim(run, _identify(recipe, store))
    split = split_store(store, recipe.feed)
    torch.manual_seed(recipe.seed)
    state = _start(recipe, store, split, device, watcher)
    total = max(1, round(recipe.epochs * len(split.train) / recipe.batch_size))
    _resume(state, run, watcher)
    holdout = load_holdout(store, split, recipe.size_px)
    steps = fit(state, _batches(recipe, store, split, state, total), recipe.optimizer, total)
    _follow(recipe, steps, state, total, run, holdout, watcher, store)
    student, card = load_student(run)
    holdout.draw(run / "samples.png", student)
    draw_losses(run)
    return Summary(
        student=holdout.measure(student, torch.device("cpu")),
        mean_map=holdout.baseline(),
        best_step=card.step,
        steps=state.step,
    )


def _follow(
    recipe: TrainRecipe,
    steps: Iterator[StepReport],
    state: TrainState,
    total: int,
    run: Path,
    holdout: Holdout,
    watcher: Watcher,
    store: Store,
) -> None:
    """Drive the loop: log each step, keep the state, evaluate and keep the best student."""
    with Journal(run, state.step) as journal:
        for report in steps:
            journal.step(report)
            watcher.step(report, total)
            last = report.step == total
            if last or report.step % recipe.evaluate_steps == 0:
                agreement = holdout.measure(state.best_student, state.device)
                journal.evaluation(report.step, agreement)
                watcher.evaluation(report.step, agreement)
                _keep_best(run, state, recipe, agreement, store)
            if last or report.step % recipe.checkpoint_steps == 0:
                state.save(run / STATE)


class Journal:
    """A run's numbers, as JSON lines and as TensorBoard events; lines after the resumed step are dropped first."""

    def __init__(self, run: Path, step: int) -> None:
        path = run / METRICS
        kept = [line for line in read_metrics(run) if line["step"] <= step]
        with write_aside(path) as aside:
            aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()

    def step(self, report: StepReport) -> None:
        """Log a training step."""
        numbers = {**report.terms, "grad_norm": report.grad_norm, "learning_rate": report.learning_rate}
        self._write("train", report.step, numbers)

    def evaluation(self, step: int, agreement: Agreement) -> None:
        """Log a held-out evaluation."""
        self._write("holdout", step, msgspec.to_builtins(agreement))

    def _write(self, kind: str, step: int, numbers: dict[str, float]) -> None:
        self._file.write(json.dumps({"kind": kind, "step": step, **numbers}) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last line cut short by a kill is left out."""
    path = run / METRICS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    complete = []
    for line in lines:
        try:
            complete.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return complete


def draw_losses(run: Path) -> Path:
    """Draw a run's training losses to loss.png."""
    lines = [line for line in read_metrics(run) if line["kind"] == "train"]
    names = [name for name in lines[0] if name not in ("kind", "step", "grad_norm", "learning_rate")]
    loss_curve([line["step"] for line in lines], {name: [line[name] for line in lines] for name in names}, run / "loss.png")
    return run / "loss.png"


def _identify(recipe: TrainRecipe, store: Store) -> RunIdentity:
    decisive = msgspec.to_builtins(recipe)
    for key in ("checkpoint_steps", "evaluate_steps"):
        del decisive[key]
    decisive = json.loads(json.dumps(decisive))
    return RunIdentity(
        fingerprint=provenance.fingerprint(decisive, store.contract.fingerprint),
        recipe=decisive,
        store=store.contract.fingerprint,
        teacher=store.contract.teacher,
    )


def _claim(run: Path, identity: RunIdentity) -> None:
    """Make the run's folder, or check that the run there is this one."""
    path = run / RUN
    if not path.is_file():
        if run.exists() and (not run.is_dir() or any(run.iterdir())):
            raise DeltaError(f"{run} is not empty and not a Delta run", "name a new folder")
        run.mkdir(parents=True, exist_ok=True)
        with write_aside(path) as aside:
            aside.write_bytes(msgspec.json.format(msgspec.json.encode(identity)))
        return
    try:
        there = msgspec.json.decode(path.read_bytes(), type=RunIdentity)
    except msgspec.MsgspecError:
        raise DeltaError(f"{path} is damaged or of another Delta", "name a new folder") from None
    if there.fingerprint != identity.fingerprint:
        listing = "\n".join(f"  {line}" for line in _differences(there, identity))
        raise DeltaError(
            f"{run} is a run of another student:\n{listing}", "repeat its recipe and store to resume it, or name a new folder"
        )


def _differences(there: RunIdentity, asked: RunIdentity) -> Iterator[str]:
    if there.store != asked.store:
        yield f"store: run {there.store[:12]}, asked {asked.store[:12]}"
    for key in sorted(there.recipe.keys() | asked.recipe.keys()):
        if there.recipe.get(key) != asked.recipe.get(key):
            yield f"{key}: run {there.recipe.get(key)}, asked {asked.recipe.get(key)}"


def _start(recipe: TrainRecipe, store: Store, split: Split, device: torch.device, watcher: Watcher) -> TrainState:
    student = _build(recipe, watcher)
    statistics = measure_targets(store, split, with_features=recipe.loss.uses_features)
    return TrainState(student, Objective(recipe.loss, student.channels, statistics), recipe.optimizer, device)


def _build(recipe: TrainRecipe, watcher: Watcher) -> Student:
    if recipe.init:
        return _load_initial(recipe, watcher)
    if not recipe.pretrained:
        watcher.say("training starts from scratch (the recipe asks for no ImageNet weights)")
        return build_student(recipe.student)
    try:
        student = build_student(recipe.student, pretrained=True)
    except DeltaError:
        raise
    except (OSError, RuntimeError) as error:
        watcher.say(f"the hub cannot be reached for ImageNet weights ({type(error).__name__}): training starts from scratch")
        return build_student(recipe.student)
    watcher.say(f"encoder {recipe.student.encoder} starts from ImageNet weights")
    return student


def _load_initial(recipe: TrainRecipe, watcher: Watcher) -> Student:
    path = bundled.STUDENT if recipe.init == "bundled" else Path(recipe.init)
    student, card = load_student(path)
    if card.config != recipe.student:
        raise DeltaError(
            f"{path} is a {card.config.encoder} with the {card.config.decoder} decoder; the recipe asks for "
            f"{recipe.student.encoder} with {recipe.student.decoder}",
            "set student.* in the recipe to match, or leave init out",
        )
    watcher.say(f"training starts from {path.name} ({card.config.encoder})")
    return student


def _batches(recipe: TrainRecipe, store: Store, split: Split, state: TrainState, total: int) -> Iterator[Any]:
    feed = Feed(
        store, split, state.objective.taps, config=recipe.feed, batch_size=recipe.batch_size, seed=recipe.seed
    )

    def size_of(step: int) -> int:
        due = [side for share, side in recipe.size_schedule if step >= share * total]
        return due[-1] if due else recipe.size_px

    return feed.batches(state.step, recipe.augment, size_of, state.device)


def _resume(state: TrainState, run: Path, watcher: Watcher) -> None:
    if (run / STATE).is_file():
        state.load(run / STATE)
        watcher.say(f"resuming at step {state.step}")


def _keep_best(run: Path, state: TrainState, recipe: TrainRecipe, agreement: Agreement, store: Store) -> None:
    """Keep the student that agrees best (delta1) with the teacher on held-out photos."""
    path = run / WEIGHTS
    if path.is_file() and load_student(path)[1].agreement.get("delta1", 0.0) >= agreement.delta1:
        return
    card = StudentCard(
        config=recipe.student,
        size_px=recipe.size_px,
        teacher=store.contract.teacher["name"],
        fingerprint=msgspec.json.decode((run / RUN).read_bytes(), type=RunIdentity).fingerprint,
        commit=provenance.commit(),
        step=state.step,
        agreement=msgspec.to_builtins(agreement),
    )
    student = state.best_student
    assert isinstance(student, Student)
    save_student(path, student, card)
