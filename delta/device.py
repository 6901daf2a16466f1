"""Which device a job runs on; decided once, at the edge."""

import torch

from delta.errors import DeltaError


def choose_device(name: str) -> torch.device:
    """Turn "auto" into the GPU where there is one, and check a named device.

    Raises:
        DeltaError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise DeltaError(f"there is no device {name!r} here: {reason}", "give --device cpu, or auto") from None
    return device
