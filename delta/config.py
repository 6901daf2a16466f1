"""The base of every configuration: frozen, and unknown keys are errors."""

import msgspec


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record that TOML and JSON convert to, with types, ranges and names checked.

    Subclasses say `frozen=True, kw_only=True` again: msgspec does not hand the second down, nor type checkers the first.
    """
