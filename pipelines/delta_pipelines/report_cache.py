"""How the cache commands show their progress and their results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from rich.table import Table

from delta_cache.reader import Store
from delta_cache.schema import ChunkRecord, Status
from delta_cache.verify import Verification
from delta_pipelines import console
from delta_pipelines.chunk_timing import Meter, Work, meter, work

if TYPE_CHECKING:
    from delta_pipelines.build_cache import Watcher
    from delta_pipelines.check_cache import LiveCheck
    from delta_pipelines.plan_cache import Plan

SHOWN_FAILURES = 5
RECENT = 16  # chunks that the live meter looks back on
STATUS_NAMES = {"cached": Status.OK, "failed": Status.FAILED, "missing": Status.MISSING}
DEPTHS = {"fast": "presence and size", "full": "digests"}


@contextmanager
def building(name: str) -> "Iterator[Watcher]":
    """A bar that counts samples and tells the bottleneck, and a line for each photo that is left out."""
    from delta_pipelines.build_cache import Watcher

    with console.progress("images") as bar:
        task = bar.add_task(f"cache {name}", total=None, note="")
        recent: dict[str, list[ChunkRecord]] = {}
        failed = 0

        def begin(done: int, total: int) -> None:
            bar.reset(task, total=total, completed=done, description=f"cache {name}", note="resumed" if done else "")

        def chunk(record: ChunkRecord) -> None:
            nonlocal failed
            for sample in record.samples:
                if sample.failure:
                    failed += 1
                    console.say(f"left out {sample.path}: {sample.failure}")
            mine = recent.setdefault(record.times.worker, [])
            mine.append(record)
            del mine[:-RECENT]
            note = meter_text(meter(mine)) + (f", {failed} left out" if failed else "")
            bar.update(task, advance=len(record.samples), note=note)

        def fitting(done: int, total: int) -> None:
            bar.update(task, total=total, completed=done, description="fit feature bases")

        yield Watcher(fitting=fitting, begin=begin, chunk=chunk)


@contextmanager
def composing(name: str) -> Iterator[Callable[[int], None]]:
    """A bar that counts samples copied."""
    with console.progress("samples") as bar:
        task = bar.add_task(f"write {name}", total=None, note="")
        yield lambda samples: bar.update(task, advance=samples)


def meter_text(seen: Meter) -> str:
    """Say how busy the stages are, and which one holds the others up."""
    shares = ", ".join(f"{stage} {share:.0%}" for stage, share in seen.shares.items())
    return f"{seen.bottleneck}-bound ({shares} busy)"


def built(store: Store) -> None:
    """Say where the store is and what it holds."""
    status = store.status()
    cached, failed = int((status == Status.OK).sum()), int((status == Status.FAILED).sum())
    per_sample = sum(store.bytes_on_disk().values()) / len(status)
    left_out = f", {failed} left out (`delta cache info {store.url}` says why)" if failed else ""
    views = f" in {len(store.contract.views)} views" if len(store.contract.views) > 1 else ""
    noun = "samples" if views else "photos"
    print(f"{store.url}: {cached} {noun}{views}, {console.size_text(per_sample)} each{left_out}")


def info(store: Store, as_json: bool) -> None:
    """Print what a store holds, as a table or as JSON."""
    facts = store_facts(store)
    if as_json:
        console.show_json(facts)
        return
    contract, counts = store.contract, facts["samples"]
    missing = facts["chunks_missing"]
    console.facts(
        f"cache {store.url}",
        {
            "complete": f"no, {missing} of {contract.chunks} chunks missing" if missing else "yes",
            "samples": f"{counts['cached']} cached, {counts['failed']} left out, {counts['missing']} to do",
            "photos, views": f"{contract.photo_count}, {' '.join(contract.views)}",
            "teacher": f"{store.teacher['name']} ({contract.teacher.get('precision', '')})",
            "weights": contract.teacher["weights_sha256"][:16],
            "size": f"{contract.recipe['size_px']} px",
            "chunks": f"{contract.chunks} of {contract.chunk_samples} samples",
            "bytes a photo": console.size_text(facts["bytes_per_photo_total"]),
            "fingerprint": facts["fingerprint"][:16],
            "worked": _worked(facts["build"]),
            "made with": ", ".join(f"{name} {v}" for name, v in store.provenance.get("tools", {}).items()),
        },
    )
    table = Table("array", "sample", "dtype", "kept as", "a photo", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for spec in contract.arrays:
        shape = "×".join(map(str, spec.shape)) or "scalar"
        kept = ", ".join(str(value) for value in msgspec.to_builtins(spec.encoding).values())
        table.add_row(spec.name, shape, spec.dtype, kept, console.size_text(facts["bytes_per_photo"][spec.name]))
    console.out.print(table)
    for tap, cosine in facts["holdout_cosine"].items():
        console.out.print(f"{tap}: cosine {cosine:.4f} with the teacher's features, on photos it was not fitted on")
    if facts["forecast"]:
        forecast_table(facts["forecast"])
    for path, reason in list(facts["failures"].items())[:SHOWN_FAILURES]:
        console.out.print(f"left out {path}: {reason}", markup=False, highlight=False)
    if len(facts["failures"]) > SHOWN_FAILURES:
        console.out.print(f"… and {len(facts['failures']) - SHOWN_FAILURES} more; --json lists all")


def store_facts(store: Store) -> dict[str, Any]:
    """All that `info --json` says."""
    records, status = list(store.records()), store.status()
    photos_done = max(1e-9, float((status != Status.MISSING).sum()) / len(store.contract.views))
    sizes, done = store.bytes_on_disk(), work(records)
    counts = {name: int((status == value).sum()) for name, value in STATUS_NAMES.items()}
    missing = len(store.missing_chunks())
    return {
        "url": store.url,
        "complete": not missing,
        "chunks_missing": missing,
        "samples": counts,
        "photos": store.contract.photo_count,
        "views": store.contract.views,
        "bytes": sizes,
        "bytes_per_photo": {name: size / photos_done for name, size in sizes.items()},
        "bytes_per_photo_total": sum(sizes.values()) / photos_done,
        "build": msgspec.to_builtins(done),
        "holdout_cosine": {tap: basis.holdout_cosine for tap, basis in store.bases.items()},
        "forecast": _compare_forecast(store, done, sum(sizes.values())),
        "fingerprint": store.contract.fingerprint,
        "contract": msgspec.to_builtins(store.contract),
        "provenance": store.provenance,
        "failures": store.failures(),
    }


def verified(store: Store, seen: Verification, seconds: float, live: "LiveCheck | None", as_json: bool) -> None:
    """Show what a check of a store found, the bad chunks by number."""
    if as_json:
        facts = {
            "store": store.url,
            **msgspec.to_builtins(seen),
            "bad_chunks": seen.bad_chunks,
            "seconds": seconds,
            "live": msgspec.to_builtins(live),
        }
        console.show_json(facts)
        return
    for finding in seen.findings[:SHOWN_FAILURES]:
        where = "store" if finding.chunk is None else f"chunk {finding.chunk}"
        console.out.print(f"{where}: {finding.what}", markup=False, highlight=False)
    if len(seen.findings) > SHOWN_FAILURES:
        console.out.print(f"… and {len(seen.findings) - SHOWN_FAILURES} more; --json lists all")
    rate = f", {console.size_text(seen.bytes / max(seconds, 1e-9))}/s" if seen.depth == "full" else ""
    good = seen.chunks - len(seen.bad_chunks)
    size = console.size_text(seen.bytes)
    print(f"{store.url}: {good} of {seen.chunks} chunks good by {DEPTHS[seen.depth]}, {size} in {seconds:.2f} s{rate}")
    if live:
        _live_table(live)


def plan(made: "Plan", as_json: bool) -> None:
    """Show a forecast."""
    if as_json:
        console.show_json(msgspec.to_builtins(made))
        return
    size, disk = console.size_text(made.bytes_per_photo), console.size_text(made.disk_bytes_per_s)
    console.facts(
        f"plan for {made.samples} samples of {made.photos} photos",
        {
            "on disk": f"{made.bytes / 1e9:.2f} GB in {made.files} files, {size} a photo",
            "time": f"{made.seconds / 3600:.2f} h on one worker ({made.samples_per_s:.2f} samples/s)",
            "of it, fitting bases": f"{made.fit_s:.0f} s",
            "bottleneck": meter_text(made.meter),
            "device": made.device,
            "disk": f"{disk}/s written and flushed, {made.free_bytes / 1e9:.0f} GB free",
            "decoder": f"{made.decode_per_s:.1f} photos/s",
            "teacher": f"{made.teacher_per_s:.2f} photos/s, alone",
            "reading back": f"{made.read_per_s:.1f} samples/s on one core",
            "pays for itself": f"after {made.break_even_epochs:.1f} epochs, against the teacher in the training loop",
            "measured on": f"{made.measured_samples} samples",
        },
    )


def forecast_table(compared: dict[str, Any]) -> None:
    """Show a plan beside what happened."""
    table = Table("forecast", "planned", "happened", "off by", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name, row in compared.items():
        table.add_row(name, f"{row['planned']:.4g}", f"{row['happened']:.4g}", f"{row['off']:+.1%}")
    console.out.print(table)


def _live_table(live: "LiveCheck") -> None:
    table = Table(
        "array", "measured", "gate", "", title=f"teacher re-run on {live.samples} samples", title_justify="left",
        box=None, padding=(0, 2, 0, 0), header_style="dim",
    )  # fmt: skip
    for row in live.rows:
        sign = "≥" if row.measure == "cosine" else "≤"
        verdict = "[green]passed[/]" if row.passed else "[red]failed[/]"
        table.add_row(row.name, f"{row.measure} {row.value:.5f}", f"{sign} {row.gate:.5f}", verdict)
    console.out.print(table)


def _compare_forecast(store: Store, done: Work, size: int) -> dict[str, Any]:
    planned = store.provenance.get("forecast")
    if not planned or done.samples != store.contract.samples or not done.seconds:
        return {}
    seconds = done.seconds + store.provenance.get("fit_s", 0.0)
    pairs = {"seconds": (planned["seconds"], seconds), "gigabytes": (planned["bytes"] / 1e9, size / 1e9)}
    return {
        name: {"planned": before, "happened": after, "off": before / after - 1}
        for name, (before, after) in pairs.items()
    }


def _worked(build: dict[str, Any]) -> str:
    if not build["seconds"]:
        return "composed from other stores"
    rate = build["samples"] / build["seconds"]
    return (
        f"{build['seconds']:.0f} s by {build['workers']} worker(s), {rate:.2f} samples/s, "
        f"{build['meter']['bottleneck']}-bound"
    )
