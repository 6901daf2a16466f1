"""What can be wrong with a store; every message carries the remedy."""


class CacheError(Exception):
    """One clear sentence about a store and, where there is one, the way out."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class NotAStore(CacheError):
    """There is no Delta cache at the path."""


class ContractMismatch(CacheError):
    """The store was made under another contract; the message lists what differs."""


class IncompleteStore(CacheError):
    """The store lacks chunks; the build resumes it."""


class CorruptStore(CacheError):
    """A recorded chunk is missing, of another length, or of another digest."""
