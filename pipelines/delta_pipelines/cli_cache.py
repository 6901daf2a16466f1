"""`delta cache …`: build, plan, info, show, verify, repair, merge and subset stores."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from delta_pipelines.options import Device, Json, Overrides, Teacher

cache = typer.Typer(help="Plan, build, check and compose teacher caches.", no_args_is_help=True)

Store = Annotated[str, typer.Argument(metavar="STORE", help="Folder or URL (s3://…) of the cache.")]
Photos = Annotated[str, typer.Argument(metavar="PHOTOS", help="Folder or URL of photos, searched recursively.")]
Recipe = Annotated[str, typer.Option(help="TOML file, or the name of a shipped recipe.")]
Output = Annotated[str, typer.Option("--output", "-o", metavar="STORE", help="The store to write.")]
THREADS = os.cpu_count() or 1


@cache.command("build")
def build(
    photos: Photos,
    store: Store,
    teacher: Teacher = None,
    recipe: Recipe = "cache",
    overrides: Overrides = None,
    device: Device = "auto",
    basis: Annotated[
        str | None, typer.Option(metavar="STORE", help="Share this store's feature bases, to merge with it later.")
    ] = None,
    scheduler: Annotated[str, typer.Option(metavar="ADDRESS", help="Dask scheduler, tcp://HOST:PORT.")] = "",
    workers: Annotated[
        int, typer.Option(min=0, help="Start this many worker processes here; a GPU each where there are several.")
    ] = 0,
) -> None:
    """Ask the teacher about every photo and keep its answers in a Zarr store. Run again to resume."""
    from delta.teacher import teacher_name
    from delta_cache.reader import Store as CacheStore
    from delta_pipelines import report_cache
    from delta_pipelines.cache_recipe import CacheRecipe
    from delta_pipelines.recipe import load_recipe
    from delta_pipelines.views import list_photos

    settings = load_recipe(CacheRecipe, recipe, overrides or [])
    list_photos(photos)  # a folder without any is said before the teacher is fetched
    with report_cache.building(store.rstrip("/").rpartition("/")[2]) as watcher:
        if scheduler or workers:
            from delta_pipelines.build_cluster import Job, absolute, build_on_cluster, connect, local_cluster

            name = teacher_name(teacher)
            job = Job(
                recipe=settings,
                photos=absolute(photos),
                store=absolute(store),
                teacher=absolute(name) if Path(name).exists() else name,
                device=device,
                basis=absolute(basis) if basis else None,
            )
            with connect(scheduler) if scheduler else local_cluster(workers) as client:
                built: CacheStore = build_on_cluster(job, client, watcher)
        else:
            from delta_pipelines.build_cache import build_cache

            loaded, chosen = _load_teacher(teacher, settings, device)
            built = build_cache(settings, photos, store, loaded, device=chosen, basis=basis, watcher=watcher)
    report_cache.built(built)


@cache.command("plan")
def plan(
    photos: Photos,
    store: Annotated[
        str | None, typer.Argument(metavar="[STORE]", help="Where the store is to be: its disk is probed.")
    ] = None,
    teacher: Teacher = None,
    recipe: Recipe = "cache",
    overrides: Overrides = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure this disk, decoder and device on some photos and forecast a build: GB, files, hours, break-even."""
    from delta_pipelines import report_cache
    from delta_pipelines.cache_recipe import CacheRecipe
    from delta_pipelines.plan_cache import plan_cache
    from delta_pipelines.recipe import load_recipe
    from delta_pipelines.views import list_photos

    settings = load_recipe(CacheRecipe, recipe, overrides or [])
    list_photos(photos)
    loaded, chosen = _load_teacher(teacher, settings, device)
    with report_cache.building("sample") as watcher:
        made = plan_cache(settings, photos, store, loaded, device=chosen, watcher=watcher)
    report_cache.plan(made, as_json)


@cache.command("info")
def info(store: Store, as_json: Json = False) -> None:
    """Say what a store holds: contract, progress, bytes, failures, and its forecast beside what happened."""
    from delta_cache.reader import Store as CacheStore
    from delta_pipelines import report_cache

    report_cache.info(CacheStore.open(store), as_json)


@cache.command("show")
def show(
    store: Store,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PANEL.png", help="Where to draw.")],
    samples: Annotated[int, typer.Option(min=1, max=64, help="Photos to show.")] = 4,
) -> None:
    """Draw what a store holds: photo, disparity, features as PCA colors, attention."""
    from delta_pipelines.show_cache import show_cache

    print(show_cache(store, output, samples))


@cache.command("verify")
def verify(
    store: Store,
    full: Annotated[bool, typer.Option("--full", help="Digest every byte, not only presence and size.")] = False,
    live: Annotated[int, typer.Option(min=0, metavar="K", help="Ask the teacher about K samples again.")] = 0,
    teacher: Teacher = None,
    device: Device = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Files digested at once.")] = THREADS,
    as_json: Json = False,
) -> None:
    """Check a store; exit 3 and name the bad chunks where something is wrong."""
    from delta.errors import CheckFailed
    from delta_cache.reader import Store as CacheStore
    from delta_cache.verify import verify as check
    from delta_pipelines import console, report_cache

    opened, began = CacheStore.open(store), time.perf_counter()
    with console.byte_progress() as bar:
        task = bar.add_task("digest", total=None, visible=full)
        seen = check(
            opened,
            full=full,
            threads=threads,
            on_chunk=lambda size, total: bar.update(task, advance=size, total=total),
        )
    seconds, checked = time.perf_counter() - began, None
    if live and not seen.findings:
        from delta_pipelines.check_cache import check_live, recipe_of

        loaded, chosen = _load_teacher(teacher, recipe_of(opened), device)
        checked = check_live(opened, loaded, live, chosen)
    report_cache.verified(opened, seen, seconds, checked, as_json)
    if seen.findings:
        listed = ", ".join(map(str, seen.bad_chunks[:20])) or "none, but its descriptions"
        raise CheckFailed(
            f"{store} is not what was recorded; bad chunks: {listed}{' …' if len(seen.bad_chunks) > 20 else ''}",
            f"`delta cache repair {store} PHOTOS` rebuilds them alone",
        )
    if checked and not checked.passed:
        names = ", ".join(row.name for row in checked.rows if not row.passed)
        raise CheckFailed(f"{store} does not agree with its teacher: {names}", "build it again, on this device")


@cache.command("repair")
def repair(
    store: Store,
    photos: Photos,
    teacher: Teacher = None,
    device: Device = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Files digested at once.")] = THREADS,
) -> None:
    """Digest a store and rebuild the chunks that are not what was recorded, those alone."""
    from delta_cache.reader import Store as CacheStore
    from delta_pipelines import report_cache
    from delta_pipelines.check_cache import recipe_of, repair_cache

    opened = CacheStore.open(store)
    loaded, chosen = _load_teacher(teacher, recipe_of(opened), device)
    with report_cache.building(store) as watcher:
        bad = repair_cache(opened, photos, loaded, device=chosen, threads=threads, watcher=watcher)
    print(f"{store}: rebuilt chunks {', '.join(map(str, bad))}" if bad else f"{store}: nothing to repair")


@cache.command("merge")
def merge(first: Store, second: Store, output: Output) -> None:
    """Write the photos of two stores of one contract to a third."""
    from delta_cache.compose import merge as merge_stores
    from delta_cache.reader import open_cache
    from delta_pipelines import report_cache

    with report_cache.composing(output) as on_chunk:
        merged = merge_stores(open_cache(first), open_cache(second), output, on_chunk)
    report_cache.built(merged)


@cache.command("subset")
def subset(
    store: Store,
    output: Output,
    photos: Annotated[int, typer.Option(min=0, help="Photos to keep, at random; 0 keeps all.")] = 0,
    arrays: Annotated[
        str, typer.Option(help="Arrays to keep, with commas: image,disparity,features/block09 [default: all].")
    ] = "",
) -> None:
    """Write a part of a store to another: fewer photos, fewer arrays. What is kept is copied bit for bit."""
    from delta_cache.compose import subset as take
    from delta_cache.reader import open_cache
    from delta_pipelines import report_cache

    kept = [name.strip() for name in arrays.split(",") if name.strip()]
    with report_cache.composing(output) as on_chunk:
        part = take(open_cache(store), output, photos=photos, arrays=kept, on_chunk=on_chunk)
    report_cache.built(part)


def _load_teacher(name, recipe, device):
    from delta.device import choose_device
    from delta.teacher import load_teacher, teacher_name

    chosen = choose_device(device)
    loaded = load_teacher(
        teacher_name(name), taps=recipe.taps, precision=recipe.precision, compiled=recipe.compile, device=chosen
    )
    return loaded, chosen
