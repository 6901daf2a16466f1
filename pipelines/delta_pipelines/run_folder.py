"""A training run on disk: whose it is, who writes it, and its numbers as they come."""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import msgspec
import numpy as np
from torch.utils.tensorboard import SummaryWriter

from delta.config import Config
from delta.errors import DeltaError
from delta.files import write_aside
from delta.metrics import Agreement
from delta.panel import loss_curve
from delta.train import NotFinite, StepReport

STATE, IDENTITY, METRICS, NOT_FINITE = "state.safetensors", "run.json", "metrics.jsonl", "not_finite.json"
FORMAT, VERSION = "delta-run", 2
SPEED_STEPS = 20  # steps that a line of speed sums up


class RunIdentity(Config, frozen=True, kw_only=True):
    """What decides a run's weights, as kept in run.json and in each checkpoint.

    `store` is the store's fingerprint and `contract` what is behind it; `init_sha256` is that of the weights the run
    starts from; `processes` train together. `teacher`, `recipe_name` and `steps` are told
    for people and decide nothing.
    """

    format: str = FORMAT
    version: int = VERSION
    fingerprint: str
    recipe: dict[str, Any]
    init_sha256: str
    store: str
    contract: dict[str, Any]
    teacher: str = ""
    processes: int = 1
    recipe_name: str = ""
    steps: int = 0


@contextlib.contextmanager
def hold(run: Path) -> Iterator[None]:
    """Keep every other process out of the run's folder meanwhile.

    Raises:
        DeltaError: another process is training there.
    """
    run.absolute().parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(run.absolute().with_name(f".{run.absolute().name}.lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise DeltaError(f"another process is training {run}", "wait for it, or name another folder") from None
    try:
        yield
    finally:
        lock.release()


def claim(run: Path, identity: RunIdentity) -> None:
    """Make the run's folder, or check that the run there is this one; one that never began gives way.

    Raises:
        DeltaError: the folder holds something else, or a run of another recipe or store.
    """
    path = run / IDENTITY
    if not path.is_file():
        if run.exists() and (not run.is_dir() or any(run.iterdir())):
            raise DeltaError(f"{run} is not empty and not a Delta run", "name a new folder")
        _write_identity(path, identity)
        return
    there = read_identity(run)
    if there.fingerprint == identity.fingerprint:
        return
    if (run / METRICS).is_file():
        _refuse(f"{run} is a run of another student", there, identity)
    _write_identity(path, identity)  # the one there was refused before its first step, for a typo perhaps


def read_identity(run: Path) -> RunIdentity:
    """Read whose a run is.

    Raises:
        DeltaError: there is no run, or one of another version.
    """
    path = run / IDENTITY
    if not path.is_file():
        raise DeltaError(f"there is no run at {run}", "`delta train STORE RUN` makes one")
    try:
        content = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        version = content.get("version")
        if content.get("format") == FORMAT and isinstance(version, int) and version != VERSION:
            raise DeltaError(f"{path} is of version {version}, not {VERSION}", "name a new folder")
        return msgspec.convert(content, RunIdentity)
    except msgspec.MsgspecError:
        raise DeltaError(f"{path} is damaged or of another Delta", "name a new folder") from None


def require_same(state: Path, metadata: dict[str, str], identity: RunIdentity) -> None:
    """Check that a checkpoint is this run's.

    Raises:
        DeltaError: it was copied from a run of another recipe, student or store, whose differences are listed.
    """
    try:
        there = msgspec.json.decode(metadata["run"], type=RunIdentity)
    except (KeyError, msgspec.MsgspecError):
        raise DeltaError(f"{state} is of another Delta", "delete it to train from the start") from None
    if there.fingerprint != identity.fingerprint:
        _refuse(f"{state} is of another run", there, identity)


def write_not_finite(run: Path, error: NotFinite, photos: list[str]) -> Path:
    """Save which samples were in the batch whose loss or gradient was no number."""
    path = run / NOT_FINITE
    content = {"step": error.step, "samples": error.samples, "photos": photos, "reason": str(error)}
    with write_aside(path) as aside:
        aside.write_bytes(msgspec.json.format(msgspec.json.encode(content)))
    return path


class Journal:
    """A run's numbers, as JSON lines and as TensorBoard events; those after the resumed step are dropped first.

    Lines of kind "train" and "holdout" are the same for the same run; those of kind "speed" are how it went.
    """

    def __init__(self, run: Path, step: int) -> None:
        path = run / METRICS
        kept = [line for line in read_metrics(run) if line["step"] <= step]
        with write_aside(path) as aside:
            aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        self._recent: list[StepReport] = []

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()

    def step(self, report: StepReport) -> None:
        """Log a training step, and the speed of the last ones now and then."""
        numbers = {**report.terms, "grad_norm": report.grad_norm, "learning_rate": report.learning_rate}
        self._write("train", report.step, numbers)
        self._recent.append(report)
        if report.step % SPEED_STEPS == 0:
            self._write_speed()

    def evaluation(self, step: int, agreement: Agreement) -> None:
        """Log a held-out evaluation."""
        self._write("holdout", step, msgspec.to_builtins(agreement))

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Show an RGB picture (h, w, 3) in TensorBoard."""
        self._board.add_image(name, pixels, step, dataformats="HWC")

    def close_speed(self) -> None:
        """Write the speed of what is left over."""
        if self._recent:
            self._write_speed()

    def _write_speed(self) -> None:
        spent = sum(report.step_s for report in self._recent)
        images, waited = (sum(getattr(r, name) for r in self._recent) for name in ("images", "wait_s"))
        speed = {"images_per_s": images / spent, "wait_share": waited / spent, "spent_s": spent, "images": images}
        self._write("speed", self._recent[-1].step, speed)
        self._recent = []

    def _write(self, kind: str, step: int, numbers: dict[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last line cut short by a kill is left out."""
    path = run / METRICS
    complete = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            complete.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return complete


def draw_losses(run: Path) -> Path:
    """Draw a run's training losses, unweighted, to loss.png.

    Raises:
        DeltaError: no step was ever logged.
    """
    lines = [line for line in read_metrics(run) if line["kind"] == "train"]
    if not lines:
        raise DeltaError(f"{run / METRICS} holds no training step", "train into a new folder")
    names = [name for name in lines[0] if name not in ("kind", "step", "grad_norm", "learning_rate")]
    series = {name: [math.nan if line[name] is None else line[name] for line in lines] for name in names}
    return loss_curve([line["step"] for line in lines], series, run / "loss.png")


def differences(there: RunIdentity, asked: RunIdentity) -> list[str]:
    """A line for each entry in which two runs differ: recipe, start, processes, and the store's contract by field."""
    lines = []
    for name in ("processes", "init_sha256", "store"):
        ours, theirs = getattr(there, name), getattr(asked, name)
        if ours != theirs:
            lines.append(f"{name}: run {str(ours)[:16]}, asked {str(theirs)[:16]}")
    for prefix, ours, theirs in (("", there.recipe, asked.recipe), ("store.", there.contract, asked.contract)):
        ours, theirs = flat(ours), flat(theirs)
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                lines.append(f"{prefix}{key}: run {_short(ours.get(key))}, asked {_short(theirs.get(key))}")
    return lines


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested tables; a list of tables with names is a table of these."""
    pairs: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, list) and value and all(isinstance(each, dict) and "name" in each for each in value):
            value = {each["name"]: each for each in value}
        pairs |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return pairs


def _refuse(what: str, there: RunIdentity, asked: RunIdentity) -> None:
    listing = "\n".join(f"  {line}" for line in differences(there, asked))
    raise DeltaError(f"{what}:\n{listing}", "repeat its recipe and store to resume it, or name a new folder")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _write_identity(path: Path, identity: RunIdentity) -> None:
    with write_aside(path) as aside:
        aside.write_bytes(msgspec.json.format(msgspec.json.encode(identity)))
