"""The base of every configuration: frozen, and unknown keys are errors (msgspec wants kw_only said in each class)."""

import msgspec


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A frozen record that TOML and JSON convert to, with types, ranges and names checked."""
