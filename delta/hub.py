"""The model hub, asked with patience for an answer but none for a dead line."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE_S = 5.0


@contextmanager
def without_waiting() -> Iterator[None]:
    """Inside, downloads use the local copy at once where the hub does not answer at all.

    huggingface_hub would retry each file for half a minute and warn each time.
    """
    import huggingface_hub
    from huggingface_hub import constants

    logger = logging.getLogger("huggingface_hub")
    level, offline = logger.level, constants.HF_HUB_OFFLINE
    logger.setLevel(logging.ERROR)
    if not offline:
        try:
            huggingface_hub.get_session().head(constants.ENDPOINT, timeout=PATIENCE_S)
        except Exception:  # its HTTP client has changed before; whatever it raises, there is no answer
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        logger.setLevel(level)
