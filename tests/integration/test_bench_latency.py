"""The latency bench times everything in one run and says which goals are met."""

import json

import pytest

ONLY_GIVEN = """
seed_px = 64
teacher_px = 0
precisions = ["fp32"]
warmup = 0
rounds = 2
students = []
goals = []
"""


@pytest.mark.slow  # the seed's export takes most of it
def test_given_files_are_timed_beside_the_seed_a_json_line_each(delta, tmp_path, tiny_bundle):
    (tmp_path / "quick.toml").write_text(ONLY_GIVEN)
    ended = delta("bench", "latency", tiny_bundle, "--recipe", tmp_path / "quick.toml", "--json")
    assert ended.code == 0, ended.err
    rows = {row["name"]: row for row in map(json.loads, ended.out.splitlines())}
    files = [f"{tiny_bundle.name}/depth_64x128_{precision}.onnx" for precision in ("fp32", "fp16", "int8")]
    assert list(rows) == [*files, "seed"]
    assert rows["seed"]["ratio_to_seed"] == 1
    assert rows["seed"]["ratio_to_teacher"] is None
    assert rows["seed"]["parameters"] == 3_373_265
    for name in files:
        row = rows[name]
        assert row["ratio_to_seed"] == pytest.approx(row["ms"] / rows["seed"]["ms"])
        assert 0 < row["ms"] <= row["p95_ms"]
        assert row["gmac"] == pytest.approx(rows[files[0]]["gmac"])
    assert rows[files[2]]["file_bytes"] < rows[files[1]]["file_bytes"] < rows[files[0]]["file_bytes"]


@pytest.mark.slow
def test_the_table_shows_presets_teacher_and_goals(delta, tmp_path, random_student):
    quick = ["rounds=2", "warmup=0", "seed_px=64", "teacher_px=64"]
    settings = [word for entry in quick for word in ("--set", entry)]
    ended = delta("bench", "latency", "--teacher", random_student, *settings)
    assert ended.code == 0, ended.err
    for name in ("delta-xs fp32", "delta-xs int8", "delta-s fp16", "seed", "teacher"):
        assert name in ended.out
    assert ended.out.count("goal met") + ended.out.count("goal MISSED") == 4


def test_a_model_that_is_none_is_said(delta, tmp_path):
    (tmp_path / "quick.toml").write_text(ONLY_GIVEN)
    ended = delta("bench", "latency", tmp_path / "none.onnx", "--recipe", tmp_path / "quick.toml")
    assert ended.code == 2
    assert f"there is no model {tmp_path / 'none.onnx'}" in ended.err
