"""Stage 2 from end to end: a run learns from its store alone, resumes to the same bits, and belongs to one recipe."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.models import _builder

from delta import hub
from delta.checkpoint import load_student
from delta.errors import DeltaError
from delta_cache.reader import Store
from delta_pipelines import feed
from delta_pipelines.distill import Watcher, distill
from delta_pipelines.feed import split_store
from delta_pipelines.holdout import load_holdout
from delta_pipelines.recipe import load_recipe
from delta_pipelines.run_folder import IDENTITY, METRICS, STATE, read_metrics
from delta_pipelines.train_recipe import TrainRecipe

CPU = torch.device("cpu")
STEPS = 6
# Training keeps weights channels-last, a loaded student does not, and sums in another order differ: by 2e-7, seen.
LAYOUT_ERROR = 1e-5

# The command line in a process where no teacher can be had, neither Delta's module nor transformers; each argument is a
# command. A shell may have told its children to ignore Ctrl-C, and Python listens only where nobody did.
WITHOUT_TEACHER = """
import contextlib, signal, sys
class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name == "delta.teacher" or name.split(".")[0] == "transformers":
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, Refusal())
sys.modules["transformers"] = None
signal.signal(signal.SIGINT, signal.default_int_handler)
from delta_pipelines.cli import main
*commands, last = [["delta", *command.split("\\n")] for command in sys.argv[1:]]
for sys.argv in commands:
    with contextlib.suppress(SystemExit):
        main()
sys.argv = last
main()
"""
ENDLESS = ("epochs=10000", "checkpoint_steps=1", "evaluate_steps=100000")


class Stop(Exception):
    """What ends a run from outside."""


def stopping_at(last: int, said: list[str] | None = None) -> Watcher:
    def step(report: object, _total: int) -> None:
        if report.step == last:
            raise Stop

    return Watcher(step=step, say=(said if said is not None else []).append)


def differing_weights(a: Path, b: Path, name: str = "student.safetensors") -> list[str]:
    ours, theirs = load_file(a / name), load_file(b / name)
    assert ours.keys() == theirs.keys()
    return [key for key in ours if not torch.equal(ours[key], theirs[key])]


def numbers(run: Path) -> list[dict]:
    """What is the same for the same run: all but how fast it went."""
    return [line for line in read_metrics(run) if line["kind"] != "speed"]


def assert_same_run(a: Path, b: Path) -> None:
    assert differing_weights(a, b) == []
    assert differing_weights(a, b, STATE) == []
    assert numbers(a) == numbers(b)
    cards = [msgspec.structs.replace(load_student(run)[1], commit="") for run in (a, b)]
    assert cards[0] == cards[1]


def test_a_run_leaves_its_student_state_numbers_and_pictures(tiny_run):
    names = {entry.name for entry in tiny_run.iterdir()}
    files = {"run.json", "student.safetensors", "state.safetensors", "metrics.jsonl", "samples.png", "loss.png"}
    files |= {"report.md"}
    assert names == files | {"tensorboard"}
    lines = read_metrics(tiny_run)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if line["kind"] == "holdout"] == [2, 4, 6]
    terms = {"affine_invariant", "gradient", "raw", "features", "total"}
    assert lines[0].keys() == terms | {"kind", "step", "grad_norm", "learning_rate"}


@pytest.mark.parametrize("name", ["samples.png", "loss.png"])
def test_the_pictures_of_a_run_are_not_blank(tiny_run, name):
    with Image.open(tiny_run / name) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    assert min(pixels.shape[:2]) > 300
    assert len(np.unique(pixels[::4, ::4].reshape(-1, 3), axis=0)) > 30
    rows, columns = (np.ptp(pixels, axis=axis).max(axis=-1) > 30 for axis in (1, 0))
    assert rows.mean() > 0.5  # most rows and most columns show something
    assert columns.mean() > 0.5


def test_the_samples_show_every_held_out_photo_in_three_columns(tiny_run, tiny_store, tiny_recipe):
    with Image.open(tiny_run / "samples.png") as picture:
        width, height = picture.size
    held_out = len(split_store(Store.open(tiny_store), tiny_recipe().feed).holdout)
    assert held_out == 3
    assert width / height == pytest.approx(3 / held_out, rel=0.15)  # square tiles, besides titles and margins


def test_the_student_kept_is_the_one_that_agreed_best_and_says_so(tiny_run, tiny_store, tiny_recipe):
    loaded, card = load_student(tiny_run)
    evaluations = [line for line in read_metrics(tiny_run) if line["kind"] == "holdout"]
    best = max(evaluations, key=lambda line: (line["delta1"], -line["step"]))
    assert (card.step, card.agreement["delta1"]) == (best["step"], best["delta1"])
    assert (card.teacher, card.size_px, card.config.width) == ("noise", 64, 16)
    assert card.fingerprint == json.loads((tiny_run / IDENTITY).read_text())["fingerprint"]
    store = Store.open(tiny_store)
    holdout = load_holdout(store, split_store(store, tiny_recipe().feed), 64)
    assert msgspec.to_builtins(holdout.measure(loaded, CPU)) == pytest.approx(card.agreement, abs=LAYOUT_ERROR)


def test_a_run_stopped_at_a_step_and_started_again_is_the_run_in_one_go(tmp_path, tiny_store, tiny_run, tiny_recipe):
    run, said = tmp_path / "run", []
    with pytest.raises(Stop):
        distill(tiny_recipe(), tiny_store, run, device=CPU, watcher=stopping_at(5))
    assert [line["step"] for line in read_metrics(run) if line["kind"] == "train"] == [1, 2, 3, 4, 5]
    distill(tiny_recipe(), tiny_store, run, device=CPU, watcher=Watcher(say=said.append))
    assert [text for text in said if "resuming" in text] == ["resuming at step 4 of 6"]
    assert_same_run(run, tiny_run)


def test_a_run_stopped_again_and_again_is_the_run_in_one_go(tmp_path, tiny_store, tiny_run, tiny_recipe):
    run, said = tmp_path / "run", []
    often = tiny_recipe("checkpoint_steps=1")  # how often it is saved is no part of what a run is
    for last in (1, 3, 6):
        with pytest.raises(Stop):
            distill(often, tiny_store, run, device=CPU, watcher=stopping_at(last, said))
    path = run / METRICS
    path.write_bytes(path.read_bytes()[:-20])  # a kill in the middle of a line
    distill(tiny_recipe(), tiny_store, run, device=CPU, watcher=Watcher(say=said.append))
    resumed = [text for text in said if "resuming" in text]
    assert resumed == ["resuming at step 2 of 6", "resuming at step 5 of 6"]  # before a checkpoint: from the start
    assert_same_run(run, tiny_run)


def test_another_seed_is_another_run(tmp_path, tiny_store, tiny_run, tiny_recipe):
    with pytest.raises(Stop):
        distill(tiny_recipe("seed=1"), tiny_store, tmp_path / "run", device=CPU, watcher=stopping_at(1))
    assert read_metrics(tmp_path / "run")[0] != read_metrics(tiny_run)[0]


def test_a_finished_run_is_left_as_it_is_and_told_again(tmp_path, tiny_store, tiny_run, tiny_recipe):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    summary = distill(tiny_recipe("evaluate_steps=1"), tiny_store, run, device=CPU)
    assert_same_run(run, tiny_run)
    assert summary.steps == STEPS
    assert msgspec.to_builtins(summary.student) == pytest.approx(load_student(run)[1].agreement, abs=LAYOUT_ERROR)
    assert summary.student != summary.mean_map
    assert summary.student.n == summary.mean_map.n == 3


def test_a_loss_that_explodes_ends_the_run_and_leaves_the_last_checkpoint(tmp_path, tiny_store, tiny_recipe):
    wild = tiny_recipe(
        "optimizer.lr_encoder=1e30",
        "optimizer.lr_decoder=1e30",
        "optimizer.warmup=0",
        "checkpoint_steps=1",
        "evaluate_steps=100",
    )
    with pytest.raises(DeltaError, match="is not finite at step") as caught:
        distill(wild, tiny_store, tmp_path / "run", device=CPU)
    assert "the last checkpoint is kept" in caught.value.hint
    state = load_file(tmp_path / "run" / STATE)
    assert f"step {int(state['step']) + 1}:" in str(caught.value)
    learned = [value for name, value in state.items() if name.startswith("student.") and "running" not in name]
    assert all(value.isfinite().all() for value in learned)


def test_recipe_seed_runs(tmp_path, tiny_store):
    small = ["size_px=64", "epochs=0.4", "batch_size=4", "student.encoder_weights=none", "loss.levels=[8, 16]"]
    recipe = load_recipe(TrainRecipe, "seed", small)
    summary = distill(recipe, tiny_store, tmp_path / "run", device=CPU)
    assert summary.steps == 1
    trained, card = load_student(tmp_path / "run")
    assert (card.config.encoder, card.config.decoder) == ("mobilevit_xs", "seed")
    assert sum(p.numel() for p in trained.parameters()) == 3_373_265
    terms = {"silog", "sobel", "feature_l1", "attention_l2", "total"}
    assert terms < read_metrics(tmp_path / "run")[0].keys()


def test_a_recipe_that_does_not_fit_the_store_is_refused_and_leaves_the_folder_free(tmp_path, tiny_store, tiny_recipe):
    run = tmp_path / "run"
    with pytest.raises(DeltaError, match="pairs 4 student levels with taps; the store has 2"):
        distill(tiny_recipe("loss.levels=[2, 4, 8, 16]"), tiny_store, run, device=CPU)
    with pytest.raises(Stop):
        distill(tiny_recipe(), tiny_store, run, device=CPU, watcher=stopping_at(1))


def test_without_the_hub_training_starts_from_scratch_and_says_so(
    tmp_path, tiny_store, tiny_run, tiny_recipe, monkeypatch
):
    def offline(*_: object, **__: object) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setattr(_builder, "load_state_dict_from_hf", offline)
    monkeypatch.setattr(hub, "without_waiting", nullcontext)
    said, asking = [], tiny_recipe("student.encoder_weights=imagenet", "evaluate_steps=1")
    with pytest.raises(Stop):
        distill(asking, tiny_store, tmp_path / "a", device=CPU, watcher=stopping_at(2, said))
    assert "the hub cannot be reached for the ImageNet weights of mobilevitv2_050 (OSError)" in said[0]
    assert "training starts from scratch, and the student's card says so" in said[0]
    assert numbers(tmp_path / "a")[0] == numbers(tiny_run)[0]
    assert load_student(tmp_path / "a")[1].config.encoder_weights == "none"


def test_training_starts_from_the_student_that_init_names(tmp_path, tiny_store, tiny_run, tiny_recipe):
    slow = tiny_recipe(f"init={tiny_run}", "optimizer.warmup=0.5", "optimizer.lr_final=1e-12", "checkpoint_steps=1")
    said = []
    with pytest.raises(Stop):
        distill(slow, tiny_store, tmp_path / "run", device=CPU, watcher=stopping_at(2, said))
    assert said == ["training starts from student.safetensors (mobilevitv2_050)"]
    name = "decoder.head.2.weight"
    begun = load_file(tmp_path / "run" / STATE)[f"student.{name}"]
    torch.testing.assert_close(begun, load_file(tiny_run / "student.safetensors")[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("student.width=24", "width 24"),
        ("student.encoder=mobilevit_xxs", "mobilevit_xxs"),
        ("student.decoder=seed", "seed"),
    ],
)
def test_an_init_of_another_shape_is_refused_by_what_differs(
    tmp_path, tiny_store, tiny_run, tiny_recipe, setting, named
):
    with pytest.raises(DeltaError) as caught:
        distill(tiny_recipe(f"init={tiny_run}", setting), tiny_store, tmp_path / "run", device=CPU)
    have, want = str(caught.value).split("the recipe asks for")
    assert named in want
    assert named not in have.replace(str(tiny_run), "")
    assert "student.*" in caught.value.hint


def test_an_init_that_is_not_there_is_refused_and_leaves_the_folder_free(tmp_path, tiny_store, tiny_recipe):
    with pytest.raises(DeltaError, match="there is no student at"):
        distill(tiny_recipe(f"init={tmp_path / 'nowhere'}"), tiny_store, tmp_path / "run", device=CPU)
    with pytest.raises(Stop):
        distill(tiny_recipe(), tiny_store, tmp_path / "run", device=CPU, watcher=stopping_at(1))


def test_the_size_schedule_sets_the_side_of_the_crops(tmp_path, tiny_store, tiny_recipe, monkeypatch):
    sides = []
    whole = feed.make_batch
    monkeypatch.setattr(feed, "make_batch", lambda *args, **kw: sides.append(kw["size_px"]) or whole(*args, **kw))
    scheduled = tiny_recipe("size_px=128", "size_schedule=[[0.0, 64], [0.5, 128]]")
    with pytest.raises(Stop):
        distill(scheduled, tiny_store, tmp_path / "run", device=CPU, watcher=stopping_at(4))
    assert sides == [64, 64, 64, 128]


class Process(NamedTuple):
    """What a process without a teacher left: a whole run, one that was interrupted, and how it ended."""

    whole: Path
    interrupted: Path
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def process(tmp_path_factory, tiny_store: Path, tiny_settings: tuple[str, ...], python: Callable) -> Process:
    """One process trains a run to its end, then another until Ctrl-C: importing torch twice would take seconds."""
    runs = [tmp_path_factory.mktemp("process") / name for name in ("whole", "interrupted")]
    settings = [tiny_settings, (*tiny_settings, *ENDLESS)]
    commands = [
        "\n".join(["train", str(tiny_store), str(run), *(part for pair in pairs for part in ("--set", pair))])
        for run, pairs in zip(runs, settings, strict=True)
    ]
    started = python(WITHOUT_TEACHER, *commands)
    try:
        while not (runs[1] / STATE).is_file() and started.poll() is None:
            time.sleep(0.05)
        started.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGINT)
        out, err = started.communicate()
    finally:
        started.kill()  # a test that is cut short leaves nothing running
    return Process(*runs, started.returncode, out, err)


def test_the_teacher_is_never_loaded(process):
    assert str(process.whole / "student.safetensors") in process.out.split(), process.err
    assert [line["step"] for line in read_metrics(process.whole) if line["kind"] == "train"][-1] == STEPS
    assert load_student(process.whole)[1].teacher == "noise"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one child")
def test_ctrl_c_in_training_ends_with_130_and_the_same_command_goes_on(process, tiny_store, tiny_recipe):
    assert process.code == 130, process.err
    assert "interrupted" in process.err
    assert "run the same command to go on" in process.err
    assert "Traceback" not in process.err
    run, said = process.interrupted, []
    done = int(load_file(run / STATE)["step"])
    with pytest.raises(Stop):
        distill(tiny_recipe(*ENDLESS), tiny_store, run, device=CPU, watcher=stopping_at(done + 1, said))
    assert f"resuming at step {done} of 30000" in said
    assert [line["step"] for line in numbers(run)] == list(range(1, done + 2))


def test_a_process_that_loads_the_teacher_would_be_caught(python):
    started = python(WITHOUT_TEACHER.replace("from delta_pipelines.cli import main", "import delta.teacher"), "demo")
    assert "AssertionError: delta.teacher was imported" in started.communicate()[1]
