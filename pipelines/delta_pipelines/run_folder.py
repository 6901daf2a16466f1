"""A training run on disk: whose it is, its numbers as they come, its curve."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from torch.utils.tensorboard import SummaryWriter

from delta.config import Config
from delta.errors import DeltaError
from delta.files import write_aside
from delta.metrics import Agreement
from delta.panel import loss_curve
from delta.train import StepReport

STATE, IDENTITY, METRICS = "state.safetensors", "run.json", "metrics.jsonl"
FORMAT, VERSION = "delta-run", 1


class RunIdentity(Config, frozen=True, kw_only=True):
    """What decides a run's weights, as kept in run.json; `init_sha256` is that of the weights it starts from."""

    format: str = FORMAT
    version: int = VERSION
    fingerprint: str
    recipe: dict[str, Any]
    init_sha256: str
    store: str
    teacher: dict[str, Any]


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
    try:
        there = msgspec.json.decode(path.read_bytes(), type=RunIdentity)
    except msgspec.MsgspecError:
        raise DeltaError(f"{path} is damaged or of another Delta", "name a new folder") from None
    if (there.format, there.version) != (FORMAT, VERSION):
        raise DeltaError(f"{path} is of version {there.version}, not {VERSION}", "name a new folder")
    if there.fingerprint == identity.fingerprint:
        return
    if (run / METRICS).is_file():
        listing = "\n".join(f"  {line}" for line in _differences(there, identity))
        raise DeltaError(
            f"{run} is a run of another student:\n{listing}",
            "repeat its recipe and store to resume it, or name a new folder",
        )
    _write_identity(path, identity)  # the one there was refused before its first step, for a typo perhaps


class Journal:
    """A run's numbers, as JSON lines and as TensorBoard events; those after the resumed step are dropped first."""

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
    series = {name: [line[name] for line in lines] for name in names}
    return loss_curve([line["step"] for line in lines], series, run / "loss.png")


def _write_identity(path: Path, identity: RunIdentity) -> None:
    with write_aside(path) as aside:
        aside.write_bytes(msgspec.json.format(msgspec.json.encode(identity)))


def _differences(there: RunIdentity, asked: RunIdentity) -> Iterator[str]:
    for name in ("store", "init_sha256"):
        ours, theirs = getattr(there, name), getattr(asked, name)
        if ours != theirs:
            yield f"{name}: run {ours[:16]}, asked {theirs[:16]}"
    for key in sorted(there.recipe.keys() | asked.recipe.keys()):
        if there.recipe.get(key) != asked.recipe.get(key):
            yield f"{key}: run {there.recipe.get(key)}, asked {asked.recipe.get(key)}"
