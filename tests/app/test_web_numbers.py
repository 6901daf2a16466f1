"""The web app's arithmetic is Python's: tensors, maps, ranges and tables, on vectors that Python makes."""

import base64

import numpy as np
import pytest
from PIL import Image

from delta import bundled, colormaps
from delta.images import read_photo, resize, to_tensor_layout
from delta.predict import normalize_for_display
from delta_pipelines.predict_video import SteadyRange

pytestmark = pytest.mark.app
# (width, height) of the picture and of the graph: shrunk, enlarged, one axis only, none, and larger than any camera
SIZES = [
    ((640, 480), (384, 384)),
    ((640, 480), (256, 192)),
    ((100, 71), (256, 192)),
    ((256, 481), (256, 256)),
    ((639, 256), (256, 256)),
    ((128, 64), (128, 64)),
    ((1931, 1087), (384, 256)),
    ((33, 32), (64, 64)),
]
# Runs `body` with `input` (bytes or floats) and sends what it returns, a typed array, back as base64.
CALL = """async ({ input, options, body }) => {
    const bytes = Uint8Array.from(atob(input), (letter) => letter.charCodeAt(0));
    const module = (name) => import(new URL(name, location.href).href);
    const made = await (VECTORS[body])(bytes, options, module);
    const out = new Uint8Array(made.buffer, made.byteOffset, made.byteLength);
    let text = "";
    for (let i = 0; i < out.length; i += 8192) text += String.fromCharCode(...out.subarray(i, i + 8192));
    return btoa(text);
}"""
VECTORS = """{
    async tensor(bytes, { from, to }, module) {
        const { Resampler, loadKernel } = await module("./resample.js");
        await loadKernel(await (await fetch("./resample.wasm")).arrayBuffer());
        const resampler = new Resampler(...from, ...to);
        resampler.input.set(bytes);
        resampler.resize();
        return resampler.normalize();
    },
    async map(bytes, { from, to }, module) {
        const { resizeMap } = await module("./resample.js");
        return resizeMap(new Float32Array(bytes.buffer), ...from, ...to);
    },
    async exact(bytes, _, module) {
        return Float64Array.from((await module("./disparity.js")).exactRange(new Float32Array(bytes.buffer)));
    },
    async quick(bytes, _, module) {
        return Float64Array.from((await module("./disparity.js")).quickRange(new Float32Array(bytes.buffer)));
    },
    async steady(bytes, { count, elapsed }, module) {
        const { SteadyRange, exactRange } = await module("./disparity.js");
        const frames = new Float32Array(bytes.buffer), size = frames.length / count, steady = new SteadyRange();
        const ranges = elapsed.map((s, i) => steady.follow(exactRange(frames.slice(i * size, (i + 1) * size)), s));
        return Float64Array.from(ranges.flat());
    },
    async words(bytes, { range, table }, module) {
        const { colorTable, colorWords, paintWords } = await module("./disparity.js");
        const map = new Float32Array(bytes.buffer);
        return paintWords(map, range, colorWords(colorTable(table)), new Uint32Array(map.length));
    },
}"""


@pytest.fixture(scope="module")
def call(browser, address):
    """`call(name, array, dtype, **options)` runs one of VECTORS in a page on a flat array."""
    page = browser.new_page(service_workers="block")
    page.goto(address)
    script = CALL.replace("VECTORS", f"({VECTORS})")

    def run(body: str, array: np.ndarray, dtype: type, **options: object) -> np.ndarray:
        given = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
        found = page.evaluate(script, {"input": given, "options": options, "body": body})
        return np.frombuffer(base64.b64decode(found), dtype)

    yield run
    page.close()


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rgba(image: np.ndarray) -> np.ndarray:
    return np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])


@pytest.mark.parametrize(("size", "graph"), SIZES)
def test_a_tensor_of_noise_is_pythons_to_the_last_bit(call, size, graph):
    image = noise(*size)
    expected = to_tensor_layout(resize(image, graph[1], graph[0]))
    found = call("tensor", rgba(image), np.float32, **{"from": size, "to": graph})
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_a_tensor_of_a_photo_is_pythons(call):
    image = read_photo(bundled.PHOTOS / "kodak_0008.jpg")
    expected = to_tensor_layout(resize(image, 256, 256))
    found = call("tensor", rgba(image), np.float32, **{"from": (image.shape[1], image.shape[0]), "to": (256, 256)})
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize(("size", "to"), [((64, 48), (300, 201)), ((128, 64), (128, 90)), ((96, 96), (50, 31))])
def test_a_map_is_resized_as_pillow_resizes_it(call, size, to):
    values = np.random.default_rng(0).normal(3, 2, size[::-1]).astype(np.float32)
    expected = np.asarray(Image.fromarray(values).resize(to, Image.Resampling.BILINEAR))
    found = call("map", values, np.float32, **{"from": size, "to": to}).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=2e-7)  # one rounding of float32


def test_the_range_of_a_photo_is_numpys_percentiles(call):
    values = np.random.default_rng(1).gamma(2, 3, 5003).astype(np.float32)
    values[[7, 99]] = np.nan, np.inf
    expected = np.percentile(values[np.isfinite(values)].astype(np.float64), [2, 98])
    np.testing.assert_allclose(call("exact", values, np.float64), expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [1, 1e-6, 1e6])
def test_the_range_of_a_live_frame_is_within_a_bin_of_it(call, scale):
    values = scale * np.random.default_rng(2).gamma(2, 3, 256 * 256).astype(np.float32)
    expected = np.percentile(values.astype(np.float64), [2, 98])
    found = call("quick", values.astype(np.float32), np.float64)
    assert np.abs(found - expected).max() <= np.ptp(values) / 4096


def test_a_flat_frame_has_a_range_without_extent(call):
    assert call("quick", np.full(100, 3, np.float32), np.float64).tolist() == [3, 3]


def test_the_steady_range_follows_as_in_python(call):
    rng = np.random.default_rng(3)
    frames = np.stack([rng.normal(level, 1, 400) for level in (2, 2.2, 2.1, 40, 40.5, 3)]).astype(np.float32)
    elapsed = [0, 0.1, 0.4, 0.1, 2.0, 0.1]
    steady = SteadyRange()
    expected = [end for frame, s in zip(frames, elapsed, strict=True) for end in steady.follow(frame, s)]
    found = call("steady", frames, np.float64, count=len(frames), elapsed=elapsed)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("name", colormaps.COLORMAPS)
def test_live_colors_are_pythons_table(call, name):
    values = np.linspace(-1, 6, 5000).astype(np.float32)
    values[10] = np.nan
    table = base64.b64encode(colormaps.color_table(name)).decode()
    found = call("words", values, np.uint8, range=[0, 4], table=table).reshape(-1, 4)
    expected = colormaps.colorize(values[None], name, 0, 4)[0]
    assert np.abs(found[:, :3].astype(int) - expected).max() <= 3  # a neighbor, where float32 is on the edge of two
    assert (found[:, :3] == expected).mean() > 0.999
    assert (found[:, 3] == 255).all()


def test_normalizing_for_display_spans_the_range_the_app_shows(call):
    values = np.random.default_rng(4).gamma(2, 3, 3000).astype(np.float32)
    low, high = call("exact", values, np.float64)
    expected = normalize_for_display(values[None])[0]
    np.testing.assert_allclose(((values - low) / (high - low)).clip(0, 1), expected, atol=1e-6)
