"""Transform coding of features: a basis is orthonormal, its step bounds the error, and numpy reads what torch wrote."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from delta.feature_basis import FeatureBasis, fit_basis, mean_cosine, resample_area
from delta_cache.basis import TapBasis, digest_bases


def correlated(count: int, channels: int, seed: int = 0, rank: int = 0) -> Tensor:
    """Vectors of correlated channels of very different spread, off the origin, as a transformer's are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank or channels, channels, generator=generator)
    spread = torch.logspace(-1, 1, channels)
    mean = torch.randn(channels, generator=generator)
    return (torch.randn(count, rank or channels, generator=generator) @ mixing) * spread + mean


def as_maps(vectors: Tensor) -> Tensor:
    """ "n c" as one map "1 c n 1"."""
    return vectors.T[None, :, :, None]


CASES = st.fixed_dictionaries(
    {"channels": st.integers(2, 24), "seed": st.integers(0, 999), "count": st.integers(30, 200)}
)


@settings(max_examples=25)
@given(case=CASES)
def test_principal_axes_are_orthonormal_by_falling_variance_and_of_a_fixed_sign(case: dict[str, int]) -> None:
    vectors = correlated(**case)
    axes = fit_basis(vectors, transform="pca").axes
    torch.testing.assert_close(axes @ axes.T, torch.eye(case["channels"]), rtol=0, atol=1e-5)
    variance = ((vectors - vectors.mean(dim=0)) @ axes.T).var(dim=0)
    assert (variance[1:] <= variance[:-1] * (1 + 1e-3) + 1e-5).all()
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    assert (largest > 0).all()


@settings(max_examples=25)
@given(case=CASES, step=st.sampled_from([0.0, 0.05, 0.5]), transform=st.sampled_from(["pca", "none"]))
def test_every_coefficient_is_rounded_to_within_half_a_step(case: dict[str, int], step: float, transform: str) -> None:
    vectors = correlated(**case)
    basis = fit_basis(vectors, transform=transform, step=step)
    codes = basis.encode(as_maps(vectors))
    assert codes.dtype == torch.int8
    back = basis.decode(codes)[0, :, :, 0].T
    error = (back - vectors) @ basis.axes.T
    slack = 1e-4 * vectors.abs().max()
    assert (error.abs() <= basis.scale / 2 + slack).all()
    assert int(codes.abs().max()) <= 127
    wanted = step * vectors.double().std(dim=0, correction=0).square().mean().sqrt()
    assert (basis.scale >= wanted.float() * (1 - 1e-5)).all()


@settings(max_examples=25)
@given(case=CASES)
def test_int8_without_a_transform_is_nearly_exact(case: dict[str, int]) -> None:
    vectors = correlated(**case)
    basis = fit_basis(vectors, transform="none")
    torch.testing.assert_close(basis.axes, torch.eye(case["channels"]))
    # Rounding moves a vector by up to half the steps' norm: a cosine above 0.999 is sure from 11.2 such norms on.
    told = vectors[vectors.norm(dim=1) > 12 * basis.scale.norm()]
    assert len(told)
    back = basis.decode(basis.encode(as_maps(told)))
    assert mean_cosine(back, as_maps(told)) > 0.999


def test_components_keep_the_axes_of_largest_variance_and_lose_what_is_beyond() -> None:
    vectors = correlated(500, 16, rank=4)
    whole, cut = fit_basis(vectors, transform="pca"), fit_basis(vectors, transform="pca", components=4)
    assert cut.axes.shape == (4, 16)
    assert cut.scale.shape == (4,)
    torch.testing.assert_close(cut.axes, whole.axes[:4])
    maps = as_maps(vectors)
    assert mean_cosine(cut.decode(cut.encode(maps)), maps) > 0.999  # the data has four dimensions
    less = fit_basis(vectors, transform="pca", components=2)
    assert less.encode(maps).shape == (1, 2, 500, 1)
    assert mean_cosine(less.decode(less.encode(maps)), maps) < mean_cosine(cut.decode(cut.encode(maps)), maps)


def test_a_coarser_step_keeps_less_and_packs_smaller() -> None:
    vectors = correlated(2000, 24)
    cosines, zeros = [], []
    for step in (0.1, 0.5, 2.0):
        basis = fit_basis(vectors, transform="pca", step=step)
        codes = basis.encode(as_maps(vectors))
        cosines.append(mean_cosine(basis.decode(codes), as_maps(vectors)))
        zeros.append((codes == 0).float().mean().item())
    assert cosines == sorted(cosines, reverse=True)
    assert zeros == sorted(zeros)
    assert zeros[0] < zeros[2]


def test_what_lies_beyond_the_photos_it_was_fitted_on_is_clipped_and_not_wrapped() -> None:
    vectors = correlated(100, 8)
    basis = fit_basis(vectors, transform="pca")
    far = basis.encode(as_maps(vectors.mean(dim=0) + 1000 * basis.axes[:1] * basis.scale[0]))
    assert far[0, 0, 0, 0] == 127
    near = basis.encode(as_maps(vectors.mean(dim=0) - 1000 * basis.axes[:1] * basis.scale[0]))
    assert near[0, 0, 0, 0] == -127


def test_channels_that_never_change_do_no_harm() -> None:
    vectors = correlated(100, 6)
    vectors[:, 2] = 3.5
    for transform in ("pca", "none"):
        basis = fit_basis(vectors, transform=transform)
        back = basis.decode(basis.encode(as_maps(vectors)))
        assert back.isfinite().all()
        torch.testing.assert_close(back[0, 2], as_maps(vectors)[0, 2], rtol=1e-3, atol=1e-2)


@settings(max_examples=25)
@given(
    channels=st.integers(1, 12),
    components=st.integers(1, 12),
    side=st.integers(1, 5),
    count=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_numpy_reads_codes_as_torch_does(channels: int, components: int, side: int, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    arrays = {
        "mean": random.normal(size=channels),
        "std": random.uniform(0.1, 2, channels),
        "axes": random.normal(size=(components, channels)),
        "scale": random.uniform(0.01, 1, components),
    }
    arrays = {name: values.astype(np.float32) for name, values in arrays.items()}
    codes = random.integers(-127, 128, (count, components, side, side), dtype=np.int8)
    ours = TapBasis(**arrays, holdout_cosine=1.0).decode(codes)
    theirs = FeatureBasis(**{name: torch.from_numpy(values) for name, values in arrays.items()})
    assert ours.dtype == np.float32
    assert ours.shape == (count, channels, side, side)
    np.testing.assert_allclose(ours, theirs.decode(torch.from_numpy(codes)).numpy(), rtol=1e-4, atol=1e-3)


def test_the_digest_of_bases_minds_every_number_and_name() -> None:
    arrays = {"mean": np.zeros(3), "std": np.ones(3), "axes": np.eye(2, 3), "scale": np.ones(2)}
    plain = TapBasis(**arrays, holdout_cosine=0.9)
    variants = [{"a": plain}, {"b": plain}, {"a": plain, "b": plain}, {}, {"a": TapBasis(**arrays, holdout_cosine=0.8)}]
    for name, values in arrays.items():
        changed = values.copy()
        changed.flat[1] += 1e-3
        variants.append({"a": TapBasis(**arrays | {name: changed}, holdout_cosine=0.9)})
    assert len({digest_bases(bases) for bases in variants}) == len(variants)
    assert digest_bases({}) == ""
    assert digest_bases({"b": plain, "a": plain}) == digest_bases({"a": plain, "b": plain})


SIDES = {"height": st.integers(1, 12), "width": st.integers(1, 12), "side": st.integers(1, 12)}


@settings(max_examples=40)
@given(seed=st.integers(0, 99), **SIDES)
def test_resampling_by_areas_keeps_the_mean_or_the_sum(height: int, width: int, side: int, seed: int) -> None:
    maps = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    means, sums = (resample_area(maps, side, keep=keep) for keep in ("mean", "sum"))
    assert means.shape == (2, 3, side, side)
    torch.testing.assert_close(means.mean(dim=(2, 3)), maps.mean(dim=(2, 3)))
    torch.testing.assert_close(sums.sum(dim=(2, 3)), maps.sum(dim=(2, 3)))
    assert means.min() >= maps.min() - 1e-12
    assert means.max() <= maps.max() + 1e-12


@settings(max_examples=20)
@given(side=st.integers(1, 12), seed=st.integers(0, 99))
def test_resampling_to_its_own_size_changes_nothing(side: int, seed: int) -> None:
    maps = torch.rand(1, 2, side, side, generator=torch.Generator().manual_seed(seed))
    for keep in ("mean", "sum"):
        assert torch.equal(resample_area(maps, side, keep=keep), maps)


@pytest.mark.parametrize("factor", [2, 3])
def test_resampling_by_a_whole_factor_is_a_pooling_and_mirrors_with_its_map(factor: int) -> None:
    maps = torch.rand(1, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    pooled = torch.nn.functional.avg_pool2d(maps, factor)
    torch.testing.assert_close(resample_area(maps, 12 // factor, keep="mean"), pooled)
    mirrored = resample_area(maps.flip(-1), 5, keep="mean")
    torch.testing.assert_close(mirrored, resample_area(maps, 5, keep="mean").flip(-1))
