"""A run's folder belongs to one recipe and store; its numbers survive a kill."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from delta.errors import DeltaError
from delta.metrics import Agreement
from delta.train import StepReport
from delta_pipelines.run_folder import IDENTITY, METRICS, Journal, RunIdentity, claim, draw_losses, read_metrics

OURS = RunIdentity(
    fingerprint="f" * 64,
    recipe={"batch_size": 4, "seed": 0, "loss": {"raw": 1.0}},
    init_sha256="",
    store="a" * 64,
    contract={"teacher": {"name": "a teacher"}, "samples": 12},
    steps=10,
)


def other(**changes: Any) -> RunIdentity:
    return msgspec.structs.replace(OURS, fingerprint="e" * 64, **changes)


def report(step: int, loss: float = 0.5) -> StepReport:
    return StepReport(
        step=step,
        terms={"raw": loss, "total": 2 * loss},
        grad_norm=1.5,
        learning_rate=1e-3,
        images=4,
        step_s=0.5,
        wait_s=0.1,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "one"


@pytest.fixture
def begun(run: Path) -> Path:
    """A run that has taken three steps."""
    claim(run, OURS)
    with Journal(run, 0) as journal:
        for step in (1, 2, 3):
            journal.step(report(step, 1 / step))
        journal.evaluation(3, Agreement(pearson_r=0.5, delta1=0.25, abs_rel=0.125, n=2))
    return run


def test_a_new_folder_is_made_and_says_whose_it_is(run):
    claim(run, OURS)
    assert msgspec.json.decode((run / IDENTITY).read_bytes(), type=RunIdentity) == OURS


def test_an_empty_folder_is_taken(run):
    run.mkdir(parents=True)
    claim(run, OURS)
    assert (run / IDENTITY).is_file()


def test_the_same_run_may_come_again(begun):
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    claim(begun, OURS)
    assert {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"recipe": OURS.recipe | {"batch_size": 8}}, "batch_size: run 4, asked 8"),
        ({"recipe": OURS.recipe | {"init": "bundled"}}, "init: run None, asked bundled"),
        ({"store": "b" * 64}, f"store: run {'a' * 16}, asked {'b' * 16}"),
        ({"contract": OURS.contract | {"samples": 13}}, "store.samples: run 12, asked 13"),
        ({"recipe": OURS.recipe | {"loss": {"raw": 2.0}}}, "loss.raw: run 1.0, asked 2.0"),
        ({"processes": 2}, "processes: run 1, asked 2"),
        ({"init_sha256": "c" * 64}, f"init_sha256: run , asked {'c' * 16}"),
    ],
)
def test_a_run_of_another_student_is_refused_with_a_line_for_each_difference(begun, changes, line):
    with pytest.raises(DeltaError) as caught:
        claim(begun, other(**changes))
    first, *differences = str(caught.value).splitlines()
    assert first == f"{begun} is a run of another student:"
    assert differences == [f"  {line}"]
    assert "name a new folder" in caught.value.hint
    assert msgspec.json.decode((begun / IDENTITY).read_bytes(), type=RunIdentity) == OURS


def test_a_claim_that_came_to_no_step_does_not_bar_the_folder(run):
    claim(run, other(recipe={"init": "a typo"}))
    claim(run, OURS)
    assert msgspec.json.decode((run / IDENTITY).read_bytes(), type=RunIdentity) == OURS


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(run):
    run.mkdir(parents=True)
    (run / "thesis.tex").write_text("years of work")
    with pytest.raises(DeltaError, match="is not empty and not a Delta run"):
        claim(run, OURS)
    assert [entry.name for entry in run.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(run):
    run.parent.mkdir()
    run.write_text("a file")
    with pytest.raises(DeltaError, match="is not empty and not a Delta run"):
        claim(run, OURS)
    assert run.read_text() == "a file"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "delta-run", "heads": 3}'])
def test_a_damaged_identity_is_refused(begun, content):
    (begun / IDENTITY).write_text(content)
    with pytest.raises(DeltaError, match=r"run\.json is damaged or of another Delta"):
        claim(begun, OURS)


def test_the_journal_keeps_every_number_in_the_order_it_came(begun):
    lines = read_metrics(begun)
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 1),
        ("train", 2),
        ("train", 3),
        ("holdout", 3),
    ]
    assert lines[1] == {
        "kind": "train",
        "step": 2,
        "raw": 0.5,
        "total": 1.0,
        "grad_norm": 1.5,
        "learning_rate": 1e-3,
    }
    assert lines[3]["delta1"] == 0.25
    assert any((begun / "tensorboard").iterdir())


def test_numbers_are_on_disk_while_the_run_goes_on(run):
    claim(run, OURS)
    with Journal(run, 0) as journal:
        journal.step(report(1))
        assert [line["step"] for line in read_metrics(run)] == [1]


def test_a_resumed_run_drops_what_came_after_its_step(begun):
    with Journal(begun, 2) as journal:
        journal.step(report(3, 7.0))
    assert [(line["kind"], line["step"]) for line in read_metrics(begun)] == [("train", 1), ("train", 2), ("train", 3)]
    assert read_metrics(begun)[2]["raw"] == 7.0


# Without its newline alone a line is still whole.
@pytest.mark.parametrize(("cut", "steps"), [(1, [1, 2, 3, 3, 4]), (2, [1, 2, 3, 4]), (30, [1, 2, 3, 4])])
def test_a_last_line_cut_short_is_left_out_and_the_run_goes_on(begun, cut, steps):
    path = begun / METRICS
    path.write_bytes(path.read_bytes()[:-cut])
    assert [line["step"] for line in read_metrics(begun)] == steps[:-1]
    with Journal(begun, 3) as journal:
        journal.step(report(4))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == steps


def test_a_run_without_numbers_has_none(run):
    assert read_metrics(run) == []


def test_the_curve_is_a_picture_of_the_losses(begun):
    with Image.open(draw_losses(begun)) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    colors = {tuple(color) for color in np.unique(pixels, axis=0).tolist()}
    assert {(0, 114, 178), (213, 94, 0)} <= colors  # a line each for "raw" and "total"


def test_a_curve_without_a_step_is_a_sentence(run):
    claim(run, OURS)
    with pytest.raises(DeltaError, match="no training step"):
        draw_losses(run)


def test_a_run_of_another_format_version_is_refused(begun):
    identity = json.loads((begun / IDENTITY).read_text(encoding="utf-8"))
    (begun / IDENTITY).write_text(json.dumps(identity | {"version": 1}), encoding="utf-8")
    with pytest.raises(DeltaError, match=r"run\.json is of version 1, not 2"):
        claim(begun, OURS)
