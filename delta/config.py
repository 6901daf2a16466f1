"""The base of every configuration: frozen, and unknown keys are errors."""

import msgspec


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record that TOML and JSON convert to, with types, ranges and names checked.

    Subclasses repeat `frozen=True, kw_only=True`: type checkers do not inherit the first, msgspec not the second.
    """
