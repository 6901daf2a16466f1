"""Recipes: TOML files that say everything a stage can be told. Unknown keys and values out of range are errors."""

import difflib
import tomllib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from delta.config import Config
from delta.errors import DeltaError

C = TypeVar("C", bound=Config)


def load_recipe(kind: type[C], recipe: str, overrides: Sequence[str] = ()) -> C:
    """Read a recipe by file path or by the name of one that ships with Delta, and apply `key=value` overrides.

    Keys may be dotted (`loss.gradient=2`); values are TOML (`[3, 6]`, `true`, `0.5`), or plain words.

    Raises:
        DeltaError: no such recipe, not TOML, an unknown key, or a value of the wrong type or range.
    """
    tree = _parse(_read(recipe), recipe)
    for override in overrides:
        _apply(tree, override)
    _require_known(tree, kind, recipe)
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        raise DeltaError(f"recipe {recipe}: {error}", f"known keys: {', '.join(_known_keys(kind))}") from None


def shipped_recipes() -> list[str]:
    """Names of the recipes inside the package."""
    folder = resources.files("delta_pipelines") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def _read(recipe: str) -> str:
    if recipe in shipped_recipes():
        return (resources.files("delta_pipelines") / "recipes" / f"{recipe}.toml").read_text(encoding="utf-8")
    path = Path(recipe)
    if not path.is_file():
        raise DeltaError(
            f"there is no recipe {recipe}", f"name a TOML file or one of the shipped: {', '.join(shipped_recipes())}"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DeltaError(f"recipe {recipe} is not TOML: it is not UTF-8 ({error.reason})", "mend that file") from None


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DeltaError(f"recipe {name} is not TOML: {error}", "mend that line") from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise DeltaError(f"override {override!r} is not key=value", "write it as --set size_px=392")
    *parents, last = key.strip().split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise DeltaError(f"override {override!r}: {parent} is one value, not a table", "leave out what follows it")
    try:
        tree[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        tree[last] = text.strip()


def _require_known(tree: dict[str, Any], kind: type[Config], recipe: str) -> None:
    known = _known_keys(kind)
    tables = {key.rpartition(".")[0] for key in known}
    for key in _keys(tree, known):
        if key in known or key in tables:
            continue
        near = difflib.get_close_matches(key, known, n=1) or [
            k for k in known if k.split(".")[-1] == key.split(".")[-1]
        ]
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        raise DeltaError(f"recipe {recipe}: there is no key {key}", hint)


def _keys(tree: dict[str, Any], known: list[str], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in known:
            yield from _keys(value, known, f"{name}.")
        else:
            yield name


def _known_keys(kind: type[Config], prefix: str = "") -> list[str]:
    keys = []
    for field in msgspec.structs.fields(kind):
        nested = isinstance(field.type, type) and issubclass(field.type, Config)
        keys += _known_keys(field.type, f"{prefix}{field.name}.") if nested else [f"{prefix}{field.name}"]
    return keys
