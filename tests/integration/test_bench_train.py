"""The benches of training print what they promise, on a store that costs nothing to make."""

import itertools
import json
import math
from contextlib import closing

import msgspec
import pytest
import torch
from PIL import Image

from delta.errors import DeltaError
from delta.random_teacher import SIZES, random_teacher
from delta_cache.reader import open_cache
from delta_pipelines.bench_equivalence import bench_equivalence, codec_errors
from delta_pipelines.bench_train import bench_train, parse_sizes
from delta_pipelines.distill import start_state
from delta_pipelines.feed import Feed, split_store
from delta_pipelines.live import load_live_teacher
from delta_pipelines.recipe import load_recipe
from delta_pipelines.train_recipe import TrainRecipe

CPU = torch.device("cpu")
SMALL = ("batch_size=3", "loss.features=1.0", "feed.holdout=0.25")


def settings() -> TrainRecipe:
    return load_recipe(TrainRecipe, "smoke", SMALL)


def test_bench_train_prints_a_line_a_row(delta, tiny_store):
    pairs = [part for setting in SMALL for part in ("--set", setting)]
    ended = delta("bench", "train", tiny_store, "--recipe", "smoke", *pairs, "--sizes", "", "--rounds", "1", "--json")
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in ended.out.splitlines()]
    assert [row["name"] for row in rows] == ["memory", "cached"]
    assert rows[0]["ratio_to_memory"] == 1
    for row in rows:
        assert row["step_ms"] > 0
        assert row["ratio_to_memory"] == pytest.approx(row["step_ms"] / rows[0]["step_ms"])
        assert row["steps"] == 3
        assert 0 <= row["wait_ms"] <= row["step_ms"]


@pytest.mark.slow
def test_teachers_of_three_sizes_take_part(small_store):
    rows = bench_train(settings(), small_store, device=CPU, rounds=1)
    assert [row.name for row in rows] == ["memory", "cached", "live-vits", "live-vitb", "live-vitl"]
    assert all(row.step_ms > 0 for row in rows)


def test_sizes_are_read_and_an_unknown_one_is_refused():
    assert parse_sizes(" vits , vitl") == ("vits", "vitl")
    assert parse_sizes("") == ()
    with pytest.raises(DeltaError, match="no teacher of size 'vitg'"):
        parse_sizes("vits,vitg")


def test_a_random_teacher_has_the_size_and_shapes_of_the_published_one():
    teacher = random_teacher("vits", taps=(9, 12), device=CPU)
    assert teacher.parameters == pytest.approx(24.8e6, rel=0.01)
    answer = teacher(torch.rand(1, 3, 56, 70))
    assert answer.disparity.shape == (1, 56, 70)
    assert {name: tuple(value.shape) for name, value in answer.features.items()} == {
        "block09": (1, 384, 4, 5),
        "block12": (1, 384, 4, 5),
    }
    assert [SIZES[size].width for size in ("vitb", "vitl")] == [768, 1024]


def test_batches_from_memory_are_those_from_the_cache(compact_store):
    opened, recipe = open_cache(compact_store), settings()
    split = split_store(opened, recipe.feed)
    state = start_state(recipe, opened, split, CPU)
    feed = Feed(opened, split, state.objective.arrays, config=recipe.feed, batch_size=3, seed=0)
    with closing(feed.targets(0, CPU)) as stored:
        kept = [feed.decoded(next(stored)) for _ in range(3)]

    def from_memory():
        yield from kept

    streams = (
        feed.batches(0, recipe.augment, lambda step: 64, CPU),
        feed.augmented(from_memory(), 0, recipe.augment, lambda step: 64),
    )
    for a, b in itertools.islice(zip(*streams, strict=False), 3):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.disparity, b.disparity)
        torch.testing.assert_close(a.features["block12"], b.features["block12"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("which", ["small_store", "compact_store"])
def test_training_from_the_cache_is_training_with_the_teacher_in_the_loop(which, request, tmp_path, fake_teacher):
    path = request.getfixturevalue(which)
    picture = tmp_path / "curves.png"
    # At a high rate three images a step make any rounding grow tenfold within a few steps, the seed's or the codec's.
    slow = msgspec.structs.replace(settings().optimizer, lr_encoder=1e-4, lr_decoder=1e-4)
    recipe = msgspec.structs.replace(settings(), optimizer=slow)
    result = bench_equivalence(recipe, path, fake_teacher(), picture, device=CPU, steps=8)
    codec = codec_errors(open_cache(path))
    # A relative error e of disparity is one of e x median / spread of the normalized map, which is 3 to 8 here.
    assert result.first_step["affine_invariant"] < 8 * codec["disparity"]
    assert result.first_step["raw"] < 8 * codec["disparity"]
    # Unit vectors whose cosine is c are sqrt(2 - 2 c) apart, and so far at most do their cosines with a third differ.
    worst = max((error for name, error in codec.items() if name.startswith("features/")), default=1e-6)
    assert result.first_step["features"] < math.sqrt(2 * worst)
    assert result.curve < 0.2 * result.other_seed
    assert result.live.delta1 == pytest.approx(result.cached.delta1, abs=0.02)
    with Image.open(picture) as drawn:
        assert min(drawn.size) > 300


def test_a_store_states_what_its_codec_loses(small_store, compact_store):
    assert codec_errors(open_cache(small_store)) == {"disparity": 2.0**-11}
    stated = codec_errors(open_cache(compact_store))
    assert stated["disparity"] == 2.0**-8
    assert all(0 <= stated[f"features/{tap}"] < 0.05 for tap in ("block03", "block12"))


def test_another_teacher_than_the_stores_is_refused_by_what_differs(tiny_store, random_student):
    with pytest.raises(DeltaError, match="the teacher is not the one that answered for") as caught:
        load_live_teacher(str(random_student), tiny_store, CPU)
    assert any(line.startswith("  weights_sha256: store ") for line in str(caught.value).splitlines())
    assert "feed.live=false" in caught.value.hint


def test_a_student_trains_with_its_teacher_in_the_loop_by_a_setting(delta, tmp_path, few_photos, random_student):
    store, run = tmp_path / "store.zarr", tmp_path / "run"
    small = ("--set", "size_px=64", "--set", "chunk_samples=2", "--set", "features.fit_photos=3")
    assert delta("cache", "build", few_photos, store, "--teacher", random_student, *small).code == 0
    live = ("--set", "feed.live=true", "--set", "batch_size=2", "--teacher", random_student)
    ended = delta("train", store, run, "--recipe", "smoke", *live)
    assert ended.code == 0, ended.err
    assert str(run / "report.md") in ended.out
    assert msgspec.json.decode((run / "run.json").read_bytes())["recipe"]["feed"]["live"] is True
