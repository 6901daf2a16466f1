"""Two processes with a half of the batch each are one process with the whole of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from delta.distributed import ALONE, World, join, mean_between, share_batch_norms
from delta.student import StudentConfig, build_student

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
# Each process takes its rows of the batches that one process would take whole; torchrun starts it.
PROGRAM = """
import itertools, json, pathlib, sys
import msgspec, torch
from test_train import EXACT, batch_of, start
from delta.distributed import join
from delta.train import fit
from delta.train_state import TrainState
def in_double(batch):
    widened = {"image": batch.image.double(), "disparity": batch.disparity.double()}
    features = {tap: value.double() for tap, value in batch.features.items()}
    return msgspec.structs.replace(batch, features=features, feature_weight=batch.feature_weight.double(), **widened)
with join(torch.device("cpu")) as (world, device):
    fresh = start()
    state = TrainState(fresh.student.double(), fresh.objective.double(), EXACT, device, world)
    batches = (in_double(batch_of(step)).split(world.size)[world.rank] for step in itertools.count())
    reports = [msgspec.to_builtins(report) for report in fit(state, batches, EXACT, 3)]
    if world.leads:
        folder = pathlib.Path(sys.argv[1])
        state.save(folder / "state.safetensors")
        (folder / "curve.json").write_text(json.dumps(reports))
"""


def test_one_process_alone_is_no_world():
    with join(torch.device("cpu")) as (world, device):
        assert world == ALONE
        assert world.leads
        assert device == torch.device("cpu")
    assert mean_between(torch.tensor([1.0, 3.0]), ALONE).tolist() == [1, 3]
    student = build_student(StudentConfig(width=16))
    assert share_batch_norms(student, ALONE) is student


def test_shared_norms_keep_every_name_and_value_of_the_state():
    student = build_student(StudentConfig(width=16)).eval()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = student(image)
    shared = share_batch_norms(student, World(rank=0, size=2))
    assert shared.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in shared.state_dict().items())
    assert torch.equal(shared.eval()(image), expected)


def torchrun(folder: Path, processes: int) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    folder.mkdir()
    (folder / "program.py").write_text(PROGRAM)
    rooms = os.pathsep.join(str(path) for path in (HERE, ROOT, ROOT / "cache", ROOT / "pipelines"))
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*starter, str(folder / "program.py"), str(folder)],
        env=os.environ | {"PYTHONPATH": rooms, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "curve.json").read_text()), load_file(folder / "state.safetensors")


@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one_with_the_doubled_batch(tmp_path):
    one, two = torchrun(tmp_path / "one", 1), torchrun(tmp_path / "two", 2)
    assert [report["images"] for report in two[0]] == [2, 2, 2]
    # In float64: a sum in another order flips a ReLU here and there, which float32 would show as 1 % of a gradient.
    for alone, together in zip(one[0], two[0], strict=True):
        assert together["terms"] == pytest.approx(alone["terms"], rel=1e-5)
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
    assert one[1].keys() == two[1].keys()
    weight = "student.encoder.stem.conv.weight"
    torch.testing.assert_close(two[1][weight], one[1][weight], rtol=1e-4, atol=1e-6)
