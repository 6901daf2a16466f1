"""A store that Delta wrote opens in plain zarr and in xarray, without a warning: pytest turns any into an error."""

import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from delta_cache.reader import Store, open_cache
from delta_cache.schema import Basis, Jpeg

DIMENSIONS = {
    "image": {"jpeg": ("sample", "byte"), "plain": ("sample", "y", "x", "rgb")},
    "disparity": ("sample", "y", "x"),
    "view": ("sample", "view_column"),
    "status": ("sample",),
}


@pytest.fixture(params=["small_store", "compact_store"])
def store(request: pytest.FixtureRequest) -> Store:
    """Raw and float16, then JPEG and int8 in three views."""
    return open_cache(request.getfixturevalue(request.param))


def stored(store: Store, name: str) -> np.ndarray:
    return np.concatenate([store.read_chunk(c, [name], decoded=False)[name] for c in range(store.contract.chunks)])


def test_plain_zarr_opens_the_group_with_every_array_in_it(store: Store) -> None:
    group = zarr.open_group(store.url, mode="r")
    names = {name for name, node in group.members(max_depth=None) if isinstance(node, zarr.Array)}
    bases = {f"basis/{tap}/{part}" for tap in store.bases for part in ("mean", "std", "axes", "scale")}
    assert names == {spec.name for spec in store.contract.arrays} | bases
    assert group.attrs["delta"]["fingerprint"] == store.contract.fingerprint
    for spec in store.contract.arrays:
        array = group[spec.name]
        assert isinstance(array, zarr.Array)
        assert array.shape == (store.contract.samples, *spec.shape)
        assert array.chunks == (store.contract.chunk_samples, *spec.shape)
        values = np.asarray(array[...])
        assert values.dtype == spec.dtype
        np.testing.assert_array_equal(values, stored(store, spec.name), err_msg=spec.name)


def test_plain_zarr_opens_each_array_by_itself_and_any_part_of_it(store: Store) -> None:
    for spec in store.contract.arrays:
        array = zarr.open_array(f"{store.url}/{spec.name}", mode="r")
        np.testing.assert_array_equal(np.asarray(array[3:6]), stored(store, spec.name)[3:6], err_msg=spec.name)
        assert array.attrs["encoding"]["kind"] in ("plain", "rounded", "jpeg", "basis")


def test_with_plain_zarr_alone_codes_become_the_features_that_delta_reads(compact_store: Path) -> None:
    store, group = open_cache(compact_store), zarr.open_group(str(compact_store), mode="r")
    for spec in store.contract.arrays:
        if not isinstance(spec.encoding, Basis):
            continue
        tap = spec.name.split("/")[1]
        mean, axes, scale = (np.asarray(group[f"basis/{tap}/{part}"][...]) for part in ("mean", "axes", "scale"))
        codes = np.asarray(group[spec.name][:4]).astype(np.float32)
        features = np.einsum("nkyx,kc->ncyx", codes * scale[:, None, None], axes) + mean[:, None, None]
        np.testing.assert_allclose(features, store.read_chunk(0, [spec.name])[spec.name], rtol=1e-5, atol=1e-5)


def test_with_plain_zarr_and_any_jpeg_decoder_rows_become_the_images_that_delta_reads(compact_store: Path) -> None:
    store = open_cache(compact_store)
    assert isinstance(store.contract.spec("image").encoding, Jpeg)
    rows = np.asarray(zarr.open_array(f"{compact_store}/image", mode="r")[:4])
    for row, image in zip(rows, store.read_chunk(0, ["image"])["image"], strict=True):
        with Image.open(io.BytesIO(row.tobytes())) as decoded:
            np.testing.assert_array_equal(np.asarray(decoded), image)


def test_xarray_opens_the_root_and_every_group_with_named_dimensions(store: Store) -> None:
    xarray = pytest.importorskip("xarray")
    root = xarray.open_zarr(store.url)
    assert set(root.data_vars) == {spec.name for spec in store.contract.arrays if "/" not in spec.name}
    assert root.sizes["sample"] == store.contract.samples
    for name in root.data_vars:
        expected = DIMENSIONS[str(name)]
        if isinstance(expected, dict):
            expected = expected[store.contract.spec(str(name)).encoding.__class__.__name__.lower()]
        assert root[name].dims == expected
        np.testing.assert_array_equal(root[name].values, stored(store, str(name)))
    for group in ("features", "attention"):
        opened = xarray.open_zarr(store.url, group=group, consolidated=False)
        assert set(opened.data_vars) == {"block03", "block12"}
        for tap in opened.data_vars:
            assert opened[tap].dims[0] == "sample"
            np.testing.assert_array_equal(opened[tap].values, stored(store, f"{group}/{tap}"))
    for tap in store.bases:
        basis = xarray.open_zarr(store.url, group=f"basis/{tap}", consolidated=False)
        assert basis["axes"].dims == ("component", "channel")
        np.testing.assert_array_equal(basis["mean"].values, store.bases[tap].mean)


def test_readers_that_list_the_store_themselves_see_the_same(store: Store) -> None:
    """Without the root's copy of all descriptions, Zarr remarks on what it finds beside arrays: two names."""
    xarray = pytest.importorskip("xarray")
    with pytest.warns(UserWarning, match="is not recognized as a component of a Zarr hierarchy") as warned:
        listed = xarray.open_zarr(store.url, consolidated=False)
    assert {str(warning.message).split()[2] for warning in warned} == {"ledger", "photos.jsonl"}
    assert listed.identical(xarray.open_zarr(store.url))


def test_a_reader_takes_rows_in_the_order_it_asks_for(store: Store) -> None:
    names = [spec.name for spec in store.contract.arrays]
    whole, some = store.read_chunk(1, names), store.read_chunk(1, names, np.array([3, 0, 0]))
    for name in names:
        np.testing.assert_array_equal(some[name], whole[name][[3, 0, 0]])


def test_a_store_is_the_same_by_its_path_and_by_a_file_url(store: Store) -> None:
    other = open_cache(f"file://{Path(store.url).absolute()}")
    assert other.contract == store.contract
    names = [spec.name for spec in store.contract.arrays]
    for name, values in other.read_chunk(0, names).items():
        np.testing.assert_array_equal(values, store.read_chunk(0, names)[name])


def test_reading_needs_neither_torch_nor_a_console(
    compact_store: Path, python: Callable[..., subprocess.Popen[str]]
) -> None:
    code = """
import sys
from delta_cache.reader import open_cache
store = open_cache(sys.argv[1])
store.read_chunk(0, [spec.name for spec in store.contract.arrays])
print(sorted({"torch", "transformers", "typer", "rich", "dask", "distributed", "s3fs"} & sys.modules.keys()))
"""
    said, err = python(code, compact_store).communicate()
    assert said == "[]\n", err
