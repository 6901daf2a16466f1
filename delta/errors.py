"""What can go wrong in a way that a person can mend; tracebacks are for bugs."""


class DeltaError(Exception):
    """One clear sentence and, where there is one, the way out."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class CheckFailed(DeltaError):
    """A check that was asked for (parity, verification) found a fault."""

    exit_code = 3


class UnreadablePhoto(DeltaError):
    """A photo that cannot be used; the message is the reason, without the path."""
