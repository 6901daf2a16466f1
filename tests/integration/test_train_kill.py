"""A SIGKILL at any instant leaves a run whose checkpoint loads, and which ends as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from delta.checkpoint import load_student
from delta_pipelines.distill import distill
from delta_pipelines.run_folder import STATE, read_metrics

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")
KILLS, LONG = 4, ("epochs=14", "checkpoint_steps=1", "evaluate_steps=3")
COMMAND = "import sys; from delta_pipelines.cli import main; sys.argv = ['delta', *sys.argv[1:]]; main()"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")]


def when_saved(run: Path) -> int:
    return (run / STATE).stat().st_mtime_ns if (run / STATE).is_file() else 0


def options(settings: tuple[str, ...]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


@pytest.mark.timeout(900)
def test_a_run_that_is_killed_again_and_again_ends_as_the_run_in_one_go(
    tmp_path: Path, tiny_store: Path, tiny_settings: tuple[str, ...], tiny_recipe: Callable, python: Callable
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uncut = python(COMMAND, "train", tiny_store, whole, *options((*tiny_settings, *LONG)), OMP_NUM_THREADS="1")
    _out, err = uncut.communicate()
    assert uncut.returncode == 0, err
    total, chance = int(load_file(whole / STATE)["step"]), random.Random(os.getpid())
    command = ["train", tiny_store, killed, *options((*tiny_settings, *LONG))]
    reached: list[int] = []
    for _ in range(KILLS):
        saved = when_saved(killed)
        started = python(COMMAND, *command, OMP_NUM_THREADS="1")
        try:
            while started.poll() is None and when_saved(killed) == saved:
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 0.6))  # in a forward pass, an evaluation, or the writing of a file
            started.send_signal(signal.SIGKILL)
            started.communicate()
        finally:
            started.kill()
        state = load_file(killed / STATE)  # it loads, whenever the kill came
        assert all(value.isfinite().all() for name, value in state.items() if name.startswith("student."))
        reached.append(int(state["step"]))
        if (killed / "student.safetensors").is_file():
            load_student(killed)
    assert reached == sorted(reached)  # each process went on from the one before
    last = python(COMMAND, *command, OMP_NUM_THREADS="1")
    _out, err = last.communicate()
    assert last.returncode == 0, err
    assert 0 < reached[-1] <= total
    for name in (STATE, "student.safetensors"):
        ours, theirs = load_file(killed / name), load_file(whole / name)
        assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
    numbers = [[line for line in read_metrics(run) if line["kind"] != "speed"] for run in (killed, whole)]
    assert numbers[0] == numbers[1]


def torchrun(processes: int, store: Path, run: Path, settings: tuple[str, ...]) -> str:
    rooms = os.pathsep.join(str(ROOT / room) for room in (".", "cache", "pipelines"))
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*starter, "-m", "delta_pipelines", "train", str(store), str(run), "--device", "cpu", *options(settings)],
        env=os.environ | {"PYTHONPATH": rooms, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.timeout(600)
def test_torchrun_trains_one_run_in_two_processes_on_the_batches_of_one(
    tmp_path: Path, tiny_store: Path, tiny_settings: tuple[str, ...], tiny_recipe: Callable
):
    two, one = tmp_path / "two", tmp_path / "one"
    said = torchrun(2, tiny_store, two, (*tiny_settings, "epochs=4", "batch_size=2", "feed.window_chunks=1"))
    distill(
        tiny_recipe("epochs=4", "batch_size=4", "feed.shards=2", "feed.window_chunks=1"), tiny_store, one, device=CPU
    )
    assert said.count("student.safetensors") == 1  # one of them speaks
    curves = [[line for line in read_metrics(run) if line["kind"] == "train"] for run in (two, one)]
    assert len(curves[0]) == len(curves[1]) == 9
    first = [{name: curve[0][name] for name in ("affine_invariant", "gradient", "raw", "features")} for curve in curves]
    # The same batch, its sums in another order; from then on a float32 run is its own (see test_distributed).
    assert first[0] == pytest.approx(first[1], rel=1e-4)
    assert load_student(two)[1].step > 0
    again = torchrun(2, tiny_store, two, (*tiny_settings, "epochs=4", "batch_size=2", "feed.window_chunks=1"))
    assert "resuming at step 9 of 9" in again
