"""A recipe says everything a stage can be told, and what is wrong with it is one sentence."""

import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from delta.config import Config
from delta.errors import DeltaError
from delta_pipelines.bench_app import AppBenchRecipe
from delta_pipelines.bench_latency import LatencyRecipe
from delta_pipelines.cache_recipe import CacheRecipe
from delta_pipelines.evaluate_recipe import EvaluateRecipe
from delta_pipelines.export_bundle import ExportRecipe
from delta_pipelines.ladder_recipe import LadderRecipe
from delta_pipelines.recipe import load_recipe, shipped_recipes
from delta_pipelines.train_recipe import TrainRecipe

KINDS: dict[str, type[Config]] = {
    "app": AppBenchRecipe,
    "cache": CacheRecipe,
    "evaluate": EvaluateRecipe,
    "export": ExportRecipe,
    "latency": LatencyRecipe,
    **dict.fromkeys(("student", "smoke", "cpu-small", "gpu-full", "seed", "delta-xs", "delta-s", "demo"), TrainRecipe),
    **dict.fromkeys(("ladder", "curve", "stages"), LadderRecipe),
}


def refused(kind: type[Config], recipe: str, *overrides: str) -> DeltaError:
    with pytest.raises(DeltaError) as caught:
        load_recipe(kind, recipe, overrides)
    assert caught.value.exit_code == 2
    return caught.value


def test_every_shipped_recipe_has_a_kind_here() -> None:
    assert shipped_recipes() == sorted(KINDS)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_shipped_recipe_loads_with_the_values_in_its_file(name: str) -> None:
    loaded = load_recipe(KINDS[name], name)
    text = (resources.files("delta_pipelines") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    assert_says(loaded, tomllib.loads(text))


def assert_says(loaded: Config, tree: dict[str, object]) -> None:
    for key, value in tree.items():
        held = getattr(loaded, key)
        if isinstance(value, dict):
            assert_says(held, value)
        elif isinstance(value, list) and isinstance(value[0], dict):
            for each, table in zip(held, value, strict=True):
                assert_says(each, table)
        else:
            assert as_lists(held) == value


def as_lists(value: object) -> object:
    return [as_lists(item) for item in value] if isinstance(value, tuple) else value


def test_a_recipe_file_is_read_by_its_path(tmp_path: Path) -> None:
    shipped = (resources.files("delta_pipelines") / "recipes" / "cache.toml").read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(shipped.replace("size_px = 518", "size_px = 392"), encoding="utf-8")
    assert load_recipe(CacheRecipe, str(path)).size_px == 392


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("size_px=392", "size_px", 392),
        ("taps=[2, 4]", "taps", (2, 4)),
        ("compile = true", "compile", True),
        ("precision=bfloat16", "precision", "bfloat16"),
        ('precision="bfloat16"', "precision", "bfloat16"),
        ("seed=7", "seed", 7),
        ("limit=100", "limit", 100),
    ],
)
def test_an_override_replaces_one_value(override: str, key: str, value: object) -> None:
    plain, changed = load_recipe(CacheRecipe, "cache"), load_recipe(CacheRecipe, "cache", [override])
    assert getattr(plain, key) != value
    assert getattr(changed, key) == value
    assert [name for name in plain.__struct_fields__ if getattr(plain, name) != getattr(changed, name)] == [key]


def test_dotted_overrides_reach_tables_and_the_last_one_wins() -> None:
    recipe = load_recipe(CacheRecipe, "cache", ["features.kind=float16", "features.grid=1", "features.grid=9"])
    assert (recipe.features.kind, recipe.features.grid) == ("float16", 9)
    assert load_recipe(TrainRecipe, "student", ["loss.gradient=0.25"]).loss.gradient == 0.25


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("size_px=large", "recipe cache: Expected `int`, got `str` - at `$.size_px`"),
        ("size_px=392.5", "recipe cache: Expected `int`, got `float` - at `$.size_px`"),
        ("features=1", "recipe cache: Expected `object`, got `int` - at `$.features`"),
        ("size_px=63", "recipe cache: Expected `int` >= 64 - at `$.size_px`"),
        ("size_px=4096", "recipe cache: Expected `int` <= 2048 - at `$.size_px`"),
        ("chunk_samples=0", "recipe cache: Expected `int` >= 1 - at `$.chunk_samples`"),
        ("batch_size=0", "recipe cache: Expected `int` >= 1 - at `$.batch_size`"),
        ("limit=-1", "recipe cache: Expected `int` >= 0 - at `$.limit`"),
        ("taps=[0]", "recipe cache: Expected `int` >= 1 - at `$.taps["),
        ("seed=-1", "recipe cache: Expected `int` >= 0 - at `$.seed`"),
        ("level=10", "recipe cache: Expected `int` <= 9 - at `$.level`"),
        ("compressor=gzip", "recipe cache: Invalid enum value 'gzip' - at `$.compressor`"),
        ("image.kind=png", "recipe cache: Invalid enum value 'png' - at `$.image.kind`"),
        ("image.quality=0", "recipe cache: Expected `int` >= 1 - at `$.image.quality`"),
        ("disparity.bits=11", "recipe cache: Expected `int` <= 10 - at `$.disparity.bits`"),
        ("features.transform=ica", "recipe cache: Invalid enum value 'ica' - at `$.features.transform`"),
        ("features.step=-1", "recipe cache: Expected `float` >= 0.0 - at `$.features.step`"),
        ("views.crops=65", "recipe cache: Expected `int` <= 64 - at `$.views.crops`"),
        ("views.crop_scale=[0.4, 1.5]", "recipe cache: Expected `float` <= 1.0 - at `$.views.crop_scale["),
        ("precision=int8", "recipe cache: Invalid enum value 'int8' - at `$.precision`"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(override: str, message: str) -> None:
    error = refused(CacheRecipe, "cache", override)
    assert str(error).startswith(message)
    assert error.hint.startswith("known keys: size_px, taps, precision, compile, ")
    assert "image.kind, image.quality" in error.hint


@pytest.mark.parametrize("override", ["size_px", "=3", "", "size_px:3"])
def test_an_override_that_is_not_key_and_value_is_refused(override: str) -> None:
    error = refused(CacheRecipe, "cache", override)
    assert str(error) == f"override {override!r} is not key=value"
    assert error.hint == "write it as --set size_px=392"


def test_an_override_below_a_plain_value_is_refused() -> None:
    error = refused(CacheRecipe, "cache", "size_px.height=3")
    assert str(error) == "override 'size_px.height=3': size_px is one value, not a table"


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "short.toml"
    path.write_text("size_px = 392\n")
    assert "Object missing required field `taps`" in str(refused(CacheRecipe, str(path)))


def test_a_recipe_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    error = refused(CacheRecipe, "cashe")
    assert str(error) == "there is no recipe cashe"
    assert error.hint == f"name a TOML file or one of the shipped: {', '.join(sorted(KINDS))}"
    assert str(refused(CacheRecipe, str(tmp_path))) == f"there is no recipe {tmp_path}"


def test_what_is_not_toml_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("size_px = 392\ntaps = [3,\n")
    error = refused(CacheRecipe, str(path))
    assert str(error).startswith(f"recipe {path} is not TOML: ")
    assert "line" in str(error) or "end of document" in str(error)


def test_what_is_not_even_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "photo.toml"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    assert str(refused(CacheRecipe, str(path))).startswith(f"recipe {path} is not TOML: it is not UTF-8")


def test_a_recipe_of_the_other_stage_is_refused() -> None:
    assert "recipe student: there is no key epochs" in str(refused(CacheRecipe, "student"))
    assert "recipe cache: there is no key" in str(refused(TrainRecipe, "cache", "size_px=384"))


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("sise_px=392", "size_px"),
        ("optimizer.lr_encodr=1e-3", "optimizer.lr_encoder"),
        ("optimiser.lr_encoder=1e-3", "optimizer.lr_encoder"),
        ("loss.features_l1=1", "loss.feature_l1"),
        ("encoder=mobilevit_xs", "student.encoder"),
        ("hue=0.1", "augment.hue"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest(override: str, nearest: str) -> None:
    error = refused(TrainRecipe, "student", override)
    assert str(error) == f"recipe student: there is no key {override.partition('=')[0]}"
    assert error.hint == f"did you mean {nearest}?"


def test_an_unknown_key_like_no_other_lists_those_there_are() -> None:
    assert refused(TrainRecipe, "student", "zzz=1").hint.startswith(
        "known keys: student.encoder, student.encoder_weights,"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["batch_size=8", "optimizer.accumulate=3"], "a batch of 8 cannot be cut into 3 parts"),
        (
            ["batch_size=4", "optimizer.accumulate=4"],
            "a batch of 4 cannot be cut into 4 parts of equal size, at least 2",
        ),
        (["batch_size=4", "feed.shards=3"], "4 images a process for 1 process(es) do not divide into 3 shards"),
    ],
)
def test_a_batch_that_cannot_be_cut_as_asked_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(DeltaError, match=re.escape(message)):
        load_recipe(TrainRecipe, "student", settings).require_parts(1)


def test_how_a_run_is_watched_and_fed_decides_nothing() -> None:
    settings = ["evaluate_steps=7", "checkpoint_steps=7", "feed.workers=3", "feed.method=spawn", "feed.ahead=9"]
    plain = load_recipe(TrainRecipe, "student").decisive()
    assert load_recipe(TrainRecipe, "student", settings).decisive() == plain
    assert load_recipe(TrainRecipe, "student", ["feed.live=true"]).decisive() != plain
