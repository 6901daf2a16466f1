"""Runs that others can trust: locked while they are trained, reported by the tool, listed side by side."""

import json
import math
import shutil
import threading
from pathlib import Path

import msgspec
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from delta.checkpoint import load_student
from delta.errors import DeltaError
from delta.train import NotFinite
from delta.train_state import TrainState, read_metadata
from delta_cache.reader import open_cache
from delta_pipelines import distill as job
from delta_pipelines.distill import Watcher, distill
from delta_pipelines.run_folder import STATE, RunIdentity, hold
from delta_pipelines.run_report import find_runs, read_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path, tiny_store: Path, tiny_recipe) -> Path:
    """A folder with two runs, one of them below another folder, that differ in a weight and a seed."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(tiny_run, folder / "plain")
    recipe = tiny_recipe("loss.gradient=0.5", "seed=3")
    distill(recipe, tiny_store, folder / "more" / "half", device=CPU, recipe_name="half")
    return folder


def test_a_second_process_is_kept_out_of_a_run(tmp_path, tiny_store, tiny_recipe):
    with hold(tmp_path / "run"), pytest.raises(DeltaError, match=r"another process is training \S+run$") as caught:
        distill(tiny_recipe(), tiny_store, tmp_path / "run", device=CPU)
    assert "wait for it" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_run_is_free_again_when_it_was_refused(tmp_path, tiny_store, tiny_recipe):
    with pytest.raises(DeltaError, match="pairs 4"):
        distill(tiny_recipe("loss.levels=[2, 4, 8, 16]"), tiny_store, tmp_path / "run", device=CPU)
    with hold(tmp_path / "run"):
        pass


def test_the_samples_of_a_batch_that_is_no_number_are_saved(tmp_path, tiny_store, tiny_recipe):
    wild = tiny_recipe("optimizer.lr_encoder=1e30", "optimizer.lr_decoder=1e30", "optimizer.warmup=0")
    said = []
    with pytest.raises(NotFinite) as caught:
        distill(wild, tiny_store, tmp_path / "run", device=CPU, watcher=Watcher(say=said.append))
    saved = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    assert saved["step"] == caught.value.step > 1
    assert saved["samples"] == caught.value.samples
    assert saved["photos"] == [f"{sample:02d}.png" for sample in saved["samples"]]
    assert len(saved["samples"]) == 3
    assert any("not_finite.json" in text for text in said)


def test_every_checkpoint_carries_the_recipe_and_the_contract_of_the_store(tiny_run, tiny_store, tiny_recipe):
    contract = json.loads(msgspec.json.encode(open_cache(tiny_store).contract))
    identity = msgspec.json.decode(read_metadata(tiny_run / STATE)["run"], type=RunIdentity)
    card = load_student(tiny_run)[1]
    assert identity.contract == card.contract == contract
    assert identity.recipe == card.recipe == tiny_recipe().decisive()
    assert card.config.encoder_weights == "none"


def test_a_checkpoint_from_another_run_is_refused_by_what_differs(tmp_path, tiny_run, tiny_store, tiny_recipe):
    run = tmp_path / "run"
    recipe = tiny_recipe("augment.mirror=0.25")
    distill(recipe, tiny_store, run, device=CPU)
    shutil.copy(tiny_run / STATE, run / STATE)
    with pytest.raises(DeltaError, match=r"state\.safetensors is of another run") as caught:
        distill(recipe, tiny_store, run, device=CPU)
    assert str(caught.value).splitlines()[1:] == ["  augment.mirror: run 0.5, asked 0.25"]


def test_a_run_may_go_on_with_other_workers(tmp_path, tiny_run, tiny_store, tiny_recipe):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    distill(tiny_recipe("feed.workers=0", "evaluate_steps=1"), tiny_store, run, device=CPU)
    assert (run / "student.safetensors").read_bytes() == (tiny_run / "student.safetensors").read_bytes()


def test_tensorboard_has_the_losses_the_speed_and_the_panel(tiny_run):
    board = EventAccumulator(str(tiny_run / "tensorboard"))
    board.Reload()
    tags = board.Tags()
    assert {"train/total", "train/features", "holdout/delta1", "speed/images_per_s", "speed/wait_share"} <= set(
        tags["scalars"]
    )
    assert tags["images"] == ["holdout/samples"]
    assert [event.step for event in board.Scalars("train/total")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in board.Images("holdout/samples")] == [2, 4, 6]


def test_a_run_is_reported_with_its_numbers_beside_the_mean_map(tiny_run):
    text = (tiny_run / "report.md").read_text()
    card = load_student(tiny_run)[1]
    assert text.startswith("# Run run\n")
    agreement = " | ".join(f"{card.agreement[key]:.3f}" for key in ("pearson_r", "delta1", "abs_rel"))
    assert f"| student, step {card.step} | {agreement} |" in text
    assert "| mean map of the training photos |" in text
    assert "## Agreement with the teacher, 3 held-out photos" in text
    assert "% of the time was spent waiting for data" in text
    for picture in ("samples.png", "loss.png"):
        assert f"]({picture})" in text
    assert "| `loss.gradient` | 2.0 |" in text


def test_the_facts_of_a_run_are_those_of_its_files(runs):
    facts = read_run(runs / "plain")
    card = load_student(runs / "plain")[1]
    assert (facts.delta1, facts.best_step) == (card.agreement["delta1"], card.step)
    assert (facts.step, facts.steps, facts.state) == (6, 6, "done")
    assert facts.images_per_s is not None
    assert facts.images_per_s > 0
    assert facts.wait_share is not None
    assert 0 <= facts.wait_share <= 1
    assert facts.parameters == sum(p.numel() for p in load_student(runs / "plain")[0].parameters())


def test_runs_are_found_below_and_a_folder_without_any_says_so(runs, tmp_path):
    assert [run.relative_to(runs).as_posix() for run in find_runs(runs)] == ["more/half", "plain"]
    assert find_runs(runs / "plain") == [runs / "plain"]
    with pytest.raises(DeltaError, match="there are no runs in"):
        find_runs(tmp_path)
    with pytest.raises(DeltaError, match="there is no folder"):
        find_runs(tmp_path / "nowhere")


def test_runs_are_listed_side_by_side_with_what_differs(delta, runs):
    ended = delta("runs", runs)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("half", "plain"))] == ["half", "plain"]
    assert ["loss.gradient", "0.5", "2.0"] in [line.split() for line in lines]
    assert ["seed", "3", "0"] in [line.split() for line in lines]
    assert not [line for line in lines if line.startswith("batch_size")]


def test_runs_are_listed_for_a_machine(delta, runs):
    listed = json.loads(delta("runs", runs, "--json").out)
    assert [Path(run["run"]).name for run in listed] == ["half", "plain"]
    assert [run["recipe"] for run in listed] == ["half", ""]
    assert all(run["state"] == "done" and math.isfinite(run["delta1"]) for run in listed)


def test_runs_are_written_as_markdown_best_first_with_their_curves(delta, runs, tmp_path):
    ended = delta("runs", runs, "-o", tmp_path / "sweep.md")
    assert ended.out.splitlines()[-1] == str(tmp_path / "sweep.md")
    text = (tmp_path / "sweep.md").read_text()
    rows = [line.split(" | ")[0].lstrip("| ") for line in text.splitlines() if line.startswith(("| half ", "| plain "))]
    best = sorted((read_run(run) for run in find_runs(runs)), key=lambda run: -(run.delta1 or 0))
    assert rows == [Path(run.run).name for run in best]
    assert "](sweep.png)" in text
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    assert "different stores" not in text


def test_a_run_that_is_cut_short_is_listed_by_how_far_it_came(tmp_path, tiny_store, tiny_recipe):
    class Stop(Exception):
        pass

    def stop(report: object, _total: int) -> None:
        if report.step == 3:
            raise Stop

    with pytest.raises(Stop):
        distill(tiny_recipe(), tiny_store, tmp_path / "run", device=CPU, watcher=Watcher(step=stop))
    assert read_run(tmp_path / "run").state == "step 3 of 6"


def test_memory_that_does_not_suffice_ends_with_what_to_lower(delta, tmp_path, tiny_store, monkeypatch):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    begin = job.start_state

    def starved(*arguments: object, **more: object) -> TrainState:
        state = begin(*arguments, **more)
        state.forward.forward = full
        return state

    monkeypatch.setattr(job, "start_state", starved)
    small = ("--set", "size_px=64", "--set", "batch_size=4")
    ended = delta("train", tiny_store, tmp_path / "run", "--recipe", "smoke", *small)
    assert ended.code == 2
    assert "ran out of memory on 4 images of 64 px in 1 part(s)" in ended.err
    assert "optimizer.accumulate" in ended.err
    assert "Traceback" not in ended.err


def test_nothing_of_a_run_is_left_running(tiny_run):
    assert tiny_run.is_dir()
    assert not [t for t in threading.enumerate() if t.name.startswith(("feed", "batches"))]
