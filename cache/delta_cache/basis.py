"""The basis in which features are kept as int8: what a store holds of it, and how codes become features again.

value = mean + (code * scale) @ axes. `axes` are the principal axes of the photos' features (rows, orthonormal), or the
identity where the recipe asked for none. How it is fitted is `delta.feature_basis`'s matter.
"""

import hashlib
import math

import msgspec
import numpy as np

ARRAYS = ("mean", "std", "axes", "scale")


class TapBasis(msgspec.Struct, frozen=True, kw_only=True):
    """One tap's basis: `mean` and `std` (c,) of its features over the photos, `axes` (k, c), `scale` (k,), float32.

    `holdout_cosine` is the mean cosine between features and what comes back of them, on photos it was not fitted on.
    """

    mean: np.ndarray
    std: np.ndarray
    axes: np.ndarray
    scale: np.ndarray
    holdout_cosine: float

    def arrays(self) -> dict[str, np.ndarray]:
        """What the store keeps, by name."""
        return {name: np.ascontiguousarray(getattr(self, name), np.float32) for name in ARRAYS}

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes int8 (n, k, g, g) to features float32 (n, c, g, g)."""
        count, components, *grid = codes.shape
        flat = codes.reshape(count, components, math.prod(grid)).astype(np.float32)
        values = np.einsum("kc,nkp->ncp", self.axes * self.scale[:, None], flat, optimize=True)
        return (values + self.mean[:, None]).reshape(count, len(self.mean), *grid)


def digest_bases(bases: dict[str, TapBasis]) -> str:
    """SHA-256 over the bases' numbers, "" for none."""
    if not bases:
        return ""
    digest = hashlib.sha256()
    for tap in sorted(bases):
        for name, values in bases[tap].arrays().items():
            digest.update(f"{tap}/{name}{values.shape}".encode() + values.astype("<f4").tobytes())
        digest.update(np.float64(bases[tap].holdout_cosine).tobytes())
    return digest.hexdigest()
