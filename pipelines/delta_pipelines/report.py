"""How each command shows its progress and its result; knows no torch, so that prediction stays light."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.table import Table

from delta_cache.reader import Store
from delta_cache.schema import SampleRecord, Status
from delta_pipelines import console

if TYPE_CHECKING:
    from delta.metrics import Agreement
    from delta.train import StepReport
    from delta_pipelines.demo import DemoSummary
    from delta_pipelines.distill import Summary, Watcher

SHOWN_FAILURES = 5


@contextmanager
def cache_progress(store: Path) -> Iterator[Callable[[int, int, tuple[SampleRecord, ...]], None]]:
    """A bar that counts photos, and a line for each photo that is left out."""
    with console.progress("images") as bar:
        task = bar.add_task(f"cache {store.name}", total=None, note="")
        failed = 0

        def on_chunk(done: int, total: int, samples: tuple[SampleRecord, ...]) -> None:
            nonlocal failed
            if not samples:
                bar.update(task, total=total, completed=done, note="resumed" if done else "")
                return
            for sample in samples:
                if sample.failure:
                    failed += 1
                    console.say(f"left out {sample.path}: {sample.failure}")
            bar.update(task, advance=len(samples), note=f"{failed} left out" if failed else "")

        yield on_chunk


def cache_built(store: Store) -> None:
    """Say where the store is and what it holds."""
    status = store.status()
    cached, failed = int((status == Status.OK).sum()), int((status == Status.FAILED).sum())
    per_photo = sum(store.bytes_on_disk().values()) / len(status)
    left_out = f", {failed} left out (`delta cache info {store.path}` says why)" if failed else ""
    print(f"{store.path}: {cached} photos, {console.size_text(per_photo)} a photo{left_out}")


def cache_info(store: Store, as_json: bool) -> None:
    """Print what a store holds, as a table or as JSON."""
    facts = _cache_facts(store)
    if as_json:
        console.show_json(facts)
        return
    contract, counts = store.contract, facts["photos"]
    console.facts(
        f"cache {store.path}",
        {
            "complete": "yes"
            if facts["complete"]
            else f"no, {facts['chunks_missing']} of {contract.chunks} chunks missing",
            "photos": f"{counts['cached']} cached, {counts['failed']} left out, {counts['missing']} to do",
            "teacher": f"{contract.teacher['name']} ({contract.teacher['dtype']})",
            "weights": contract.teacher["weights_sha256"][:16],
            "view": f"{contract.recipe['view']}, {contract.recipe['size_px']} px",
            "chunks": f"{contract.chunks} of {contract.chunk_samples} photos",
            "bytes a photo": console.size_text(facts["bytes_per_photo"]),
            "fingerprint": facts["fingerprint"][:16],
            "made with": ", ".join(f"{name} {v}" for name, v in store.provenance.get("tools", {}).items()),
        },
    )
    table = Table("array", "sample", "dtype", "a photo", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for spec in contract.arrays:
        bytes_per_photo = facts["bytes"][spec.name] / max(1, counts["cached"] + counts["failed"])
        shape = "×".join(map(str, spec.shape)) or "scalar"
        table.add_row(spec.name, shape, spec.dtype, console.size_text(bytes_per_photo))
    console.out.print(table)
    for path, reason in list(facts["failures"].items())[:SHOWN_FAILURES]:
        console.out.print(f"left out {path}: {reason}", markup=False, highlight=False)
    if len(facts["failures"]) > SHOWN_FAILURES:
        console.out.print(f"… and {len(facts['failures']) - SHOWN_FAILURES} more; --json lists all")


@contextmanager
def training_progress() -> "Iterator[Watcher]":
    """A bar that counts steps with the loss, and a line for each held-out evaluation."""
    from delta_pipelines.distill import Watcher

    with console.progress("steps") as bar:
        task = bar.add_task("train", total=None, note="")

        def step(report: "StepReport", total: int) -> None:
            if bar.tasks[0].total is None:
                bar.update(task, total=total, completed=report.step - 1)
            bar.update(task, advance=1, note=f"loss {report.terms['total']:.3f}")

        def evaluation(step: int, agreement: "Agreement") -> None:
            console.say(f"step {step}: held-out r {agreement.pearson_r:.3f}, delta1 {agreement.delta1:.3f}")

        yield Watcher(say=console.say, step=step, evaluation=evaluation)


def training_done(run: Path, summary: "Summary") -> None:
    """Show how the student agrees with its teacher, beside the mean map."""
    rows = {
        f"student (step {summary.best_step} of {summary.steps})": summary.student,
        "mean map of training": summary.mean_map,
    }
    console.out.print(_agreement_table(f"agreement with the teacher, {summary.student.n} held-out photos", rows))
    for name in ("student.safetensors", "samples.png", "loss.png"):
        print(run / name)


def demo(summary: "DemoSummary") -> None:
    """End the demo: two tables and the panel's path."""
    console.facts("what it took", summary.facts())
    console.out.print(
        _agreement_table(f"agreement with the teacher, {summary.student.n} held-out photos", summary.agreements())
    )
    for line in summary.remarks:
        console.say(line)
    print(f"panel: {summary.panel}")


class Stopwatch:
    """Wall time of named stages, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and take its time."""
        console.say(f"── {name}")
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def _agreement_table(title: str, rows: "dict[str, Agreement]") -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    for name in ("Pearson r", "delta1", "AbsRel"):
        table.add_column(name, justify="right")
    for name, value in rows.items():
        table.add_row(name, f"{value.pearson_r:.3f}", f"{value.delta1:.3f}", f"{value.abs_rel:.3f}")
    return table


def _cache_facts(store: Store) -> dict[str, Any]:
    status, missing = store.status(), store.missing_chunks()
    done = max(1, int((status != Status.MISSING).sum()))
    sizes = store.bytes_on_disk()
    return {
        "path": str(store.path),
        "complete": not missing,
        "chunks_missing": len(missing),
        "photos": {
            "cached": int((status == Status.OK).sum()),
            "failed": int((status == Status.FAILED).sum()),
            "missing": int((status == Status.MISSING).sum()),
        },
        "bytes": sizes,
        "bytes_per_photo": sum(sizes.values()) / done,
        "fingerprint": store.contract.fingerprint,
        "contract": msgspec.to_builtins(store.contract),
        "provenance": store.provenance,
        "failures": store.failures(),
    }
