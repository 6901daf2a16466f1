"""What runs came to, read from their folders alone: one as a report, several side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from delta.checkpoint import WEIGHTS, load_student
from delta.config import Config
from delta.errors import DeltaError
from delta.files import write_text
from delta.panel import loss_curve
from delta_pipelines import markdown
from delta_pipelines.run_folder import IDENTITY, flat, read_identity, read_metrics

REPORT = "report.md"
NOT_TERMS = ("kind", "step", "grad_norm", "learning_rate")
TAIL_STEPS = 20  # the loss told is the mean over so many last steps
MAX_DEPTH = 3  # folders below the one asked about


class RunFacts(Config, frozen=True, kw_only=True):
    """One run in numbers; None where it has not come so far."""

    run: str
    recipe: str
    encoder: str
    encoder_weights: str | None
    decoder: str
    parameters: int | None
    processes: int
    step: int
    steps: int
    best_step: int | None
    delta1: float | None
    pearson_r: float | None
    abs_rel: float | None
    loss: float | None
    images_per_s: float | None
    wait_share: float | None
    spent_s: float
    store: str
    entries: dict[str, Any]

    @property
    def state(self) -> str:
        """How far the run has come."""
        return "done" if self.step >= self.steps else f"step {self.step} of {self.steps}"


def read_run(run: Path) -> RunFacts:
    """Sum up the run in a folder.

    Raises:
        DeltaError: there is none.
    """
    identity, lines = read_identity(run), read_metrics(run)
    trained = [line for line in lines if line["kind"] == "train"]
    speeds = [line for line in lines if line["kind"] == "speed"]
    student, card = load_student(run) if (run / WEIGHTS).is_file() else (None, None)
    spent = sum(line["spent_s"] for line in speeds)
    tail = [line["total"] for line in trained[-TAIL_STEPS:] if line["total"] is not None]
    recipe = identity.recipe
    return RunFacts(
        run=str(run),
        recipe=identity.recipe_name,
        encoder=recipe["student"]["encoder"],
        encoder_weights=card.config.encoder_weights if card else None,
        decoder=recipe["student"]["decoder"],
        parameters=sum(p.numel() for p in student.parameters()) if student else None,
        processes=identity.processes,
        step=trained[-1]["step"] if trained else 0,
        steps=identity.steps,
        best_step=card.step if card else None,
        delta1=card.agreement["delta1"] if card else None,
        pearson_r=card.agreement["pearson_r"] if card else None,
        abs_rel=card.agreement["abs_rel"] if card else None,
        loss=sum(tail) / len(tail) if tail else None,
        images_per_s=sum(line["images"] for line in speeds) / spent if spent else None,
        wait_share=sum(line["wait_share"] * line["spent_s"] for line in speeds) / spent if spent else None,
        spent_s=spent,
        store=identity.store,
        entries=flat(recipe),
    )


def find_runs(folder: Path) -> list[Path]:
    """The runs in a folder and up to three levels below it, by name.

    Raises:
        DeltaError: there are none.
    """
    if not folder.is_dir():
        raise DeltaError(f"there is no folder {folder}", "name the folder that holds your runs")
    patterns = ["/".join(["*"] * depth + [IDENTITY]) for depth in range(MAX_DEPTH + 1)]
    runs = sorted({path.parent for pattern in patterns for path in folder.glob(pattern)})
    if not runs:
        raise DeltaError(f"there are no runs in {folder}", "`delta train STORE RUN` makes one")
    return runs


def compare_runs(runs: Sequence[RunFacts]) -> dict[str, list[Any]]:
    """The recipe entries in which runs differ, one value a run."""
    keys = sorted({key for run in runs for key in run.entries})
    values = {key: [run.entries.get(key) for run in runs] for key in keys}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def write_comparison(runs: Sequence[RunFacts], path: Path) -> Path:
    """Write runs side by side as Markdown, best first, with the curves of their agreement beside it as PNG."""
    ordered = sorted(runs, key=lambda run: -(run.delta1 or 0))
    picture = path.with_suffix(".png")
    lines = ["# Runs side by side", "", *markdown.table(COLUMNS, [columns(run) for run in ordered], left=2), ""]
    if draw_agreements(ordered, picture):
        lines += [f"![delta1 on held-out photos over the steps]({picture.name})", ""]
    if len({run.store for run in ordered}) > 1:
        lines += [
            "**The runs are of different stores: their held-out photos differ, and so do the numbers' meanings.**",
            "",
        ]
    differing = compare_runs(ordered)
    if differing:
        names = [Path(run.run).name for run in ordered]
        rows = [[f"`{key}`", *map(_value, values)] for key, values in differing.items()]
        lines += ["## What differs", "", *markdown.table(["recipe entry", *names], rows), ""]
    lines += [
        "Agreement with the teacher on held-out photos, after a least-squares scale and shift of disparity for each; of"
        " each run the step with the best delta1. The loss is the mean over the last steps: not to be compared between"
        " recipes of different terms. A step waits for data in the share `waits` of its time.",
        "",
    ]
    return write_text(path, "\n".join(lines))


def write_run_report(run: Path, mean_map: dict[str, float], facts: RunFacts | None = None) -> Path:
    """Write a run's report.md: how it went, against what, from what; pictures beside it."""
    facts, identity = facts or read_run(run), read_identity(run)
    evaluations = [line for line in read_metrics(run) if line["kind"] == "holdout"]
    count = f"{int(mean_map['n'])} held-out photos"
    agreements = [
        [f"student, step {facts.best_step}", *map(_number, (facts.pearson_r, facts.delta1, facts.abs_rel))],
        ["mean map of the training photos", *(_number(mean_map[k]) for k in ("pearson_r", "delta1", "abs_rel"))],
    ]
    origins = [
        ["store", f"`{identity.store[:16]}`"],
        ["teacher", identity.teacher],
        ["run", f"`{identity.fingerprint[:16]}`"],
        *([f"`{key}`", _value(value)] for key, value in facts.entries.items()),
    ]
    lines = [
        f"# Run {run.absolute().name}",
        "",
        f"{facts.encoder} with the {facts.decoder} decoder"
        + (f", {facts.parameters / 1e6:.2f} M parameters" if facts.parameters else "")
        + f", encoder weights at the start: {facts.encoder_weights}. Recipe `{facts.recipe}`, {facts.state}, "
        f"{facts.spent_s / 60:.1f} minutes of training.",
        "",
        f"## Agreement with the teacher, {count}",
        "",
        *markdown.table(["", "Pearson r", "delta1", "AbsRel"], agreements),
        "",
        *_progress(evaluations),
        "![photo, teacher, student](samples.png)",
        "",
        "## Loss",
        "",
        *_losses(run),
        "![loss by step](loss.png)",
        "",
        "## Speed",
        "",
        f"{_number(facts.images_per_s, 1)} images/s in {facts.processes} process(es); "
        f"{_percent(facts.wait_share)} of the time was spent waiting for data.",
        "",
        "## From",
        "",
        *markdown.table(["", ""], origins, left=2),
        "",
    ]
    return write_text(run / REPORT, "\n".join(lines))


def draw_agreements(runs: Sequence[RunFacts], path: Path) -> Path | None:
    """Draw the held-out delta1 of each run over its steps; None where no run was ever evaluated."""
    curves: dict[str, dict[int, float]] = {}
    for run in runs:
        lines = [line for line in read_metrics(Path(run.run)) if line["kind"] == "holdout"]
        if lines:
            curves[Path(run.run).name] = {line["step"]: line["delta1"] for line in lines}
    if not curves:
        return None
    steps = sorted({step for curve in curves.values() for step in curve})
    series = {
        name: np.interp(steps, list(curve), list(curve.values()), left=np.nan, right=np.nan).tolist()
        for name, curve in curves.items()
    }
    return loss_curve(steps, series, path, ylabel="delta1 on held-out photos")


def facts_as_data(runs: Sequence[RunFacts]) -> list[dict[str, Any]]:
    """The same for a machine."""
    return [msgspec.to_builtins(run) | {"state": run.state} for run in runs]


COLUMNS = ("run", "recipe", "steps", "best", "delta1", "r", "AbsRel", "loss", "img/s", "waits")


def columns(run: RunFacts) -> list[str]:
    """A run's cells under `COLUMNS`."""
    return [
        Path(run.run).name,
        run.recipe,
        run.state if run.step < run.steps else str(run.steps),
        "–" if run.best_step is None else str(run.best_step),
        *map(_number, (run.delta1, run.pearson_r, run.abs_rel, run.loss)),
        _number(run.images_per_s, 1),
        _percent(run.wait_share),
    ]


def _progress(evaluations: list[dict[str, Any]]) -> list[str]:
    if len(evaluations) < 2:
        return []
    shown = evaluations[:: max(1, len(evaluations) // 8)]
    shown = shown if shown[-1] is evaluations[-1] else [*shown, evaluations[-1]]
    head = ["step", *(str(line["step"]) for line in shown)]
    return [*markdown.table(head, [["delta1", *(_number(line["delta1"]) for line in shown)]]), ""]


def _losses(run: Path) -> list[str]:
    lines = [line for line in read_metrics(run) if line["kind"] == "train"]
    if not lines:
        return []
    names = [name for name in lines[0] if name not in NOT_TERMS]
    rows = []
    for name in names:
        tail = [line[name] for line in lines[-TAIL_STEPS:] if line[name] is not None]
        rows.append([name, _number(lines[0][name]), _number(sum(tail) / len(tail) if tail else None)])
    return [*markdown.table(["term", "first step", "mean of the last 20"], rows), ""]


def _value(value: Any) -> str:
    return "–" if value is None else str(value)


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
