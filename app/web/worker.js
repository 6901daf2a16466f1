/* The worker: pixels to disparity, and disparity to files. It alone knows onnxruntime; nothing here touches the page. */

import { SteadyRange, colorTable, exactRange, levels16, paintBytes, quickRange } from "./disparity.js";
import { Trouble, asTrouble } from "./trouble.js";
import { encodeGray16, encodeRgb } from "./png.js";
import { Resampler, loadKernel, resizeMap } from "./resample.js";

const MIN_SIDE_PX = 32; // as Python refuses smaller photos
const MAX_PIXELS = 16 * 1024 * 1024; // what every phone's canvas can hold
const RUNTIMES = {
  wasm: { api: "./ort/ort.wasm.min.mjs", core: "ort-wasm-simd-threaded" },
  webgpu: { api: "./ort/ort.webgpu.min.mjs", core: "ort-wasm-simd-threaded.asyncify" },
};

let ort;
let session;
let graph; // { width, height, input, output } of the model
let resampler;
let tables; // of colors, in base64
let steady = new SteadyRange();
let last = null; // what the render commands draw: { rgba, width, height, map, range, live }
let lastAt = 0;

const commands = { start, predict, render, forget };

let queue = Promise.resolve(); // one command at a time: what is saved is what was shown

self.onmessage = ({ data }) => {
  queue = queue.then(() => answer(data));
};

async function answer({ id, command, body }) {
  try {
    const { result, transfer = [] } = await commands[command](body);
    self.postMessage({ id, result }, transfer);
  } catch (error) {
    self.postMessage({ id, trouble: asTrouble(error).plain() });
  }
}

async function start({ model, backend, threads }) {
  const began = performance.now();
  const [bytes, kernel, colors] = await Promise.all([
    download(model.url, model.bytes),
    fetchOk("./resample.wasm").then((found) => found.arrayBuffer()),
    fetchOk("./colormaps.json").then((found) => found.json()),
  ]);
  const digest = await checkDigest(bytes, model.sha256);
  await loadKernel(kernel);
  tables = colors;
  report("preparing");
  ort = await openRuntime(backend, threads);
  session = await openSession(bytes, backend);
  const [height, width] = model.size_px;
  graph = { width, height, input: session.inputNames[0], output: session.outputNames[0] };
  await infer(new Float32Array(3 * width * height)); // the first run allocates, and on a GPU compiles
  return { result: { backend, threads: ort.env.wasm.numThreads, digest, ms: performance.now() - began } };
}

async function openRuntime(backend, threads) {
  const { api, core } = RUNTIMES[backend];
  const runtime = await import(api).catch((error) => {
    throw new Trouble("runtime", String(error));
  });
  const base = new URL("./ort/", import.meta.url);
  runtime.env.wasm.wasmPaths = { mjs: new URL(`${core}.mjs`, base).href, wasm: new URL(`${core}.wasm`, base).href };
  runtime.env.wasm.numThreads = threads;
  runtime.env.logLevel = "error";
  return runtime;
}

async function openSession(bytes, backend) {
  try {
    return await ort.InferenceSession.create(bytes, { executionProviders: [backend], graphOptimizationLevel: "all" });
  } catch (error) {
    throw asTrouble(error, backend === "webgpu" ? "webgpu" : "model");
  }
}

/** One picture in, one disparity map out, with the milliseconds of each stage. */
async function predict({ source, live }) {
  const times = {};
  const clock = stopwatch(times);
  const { width, height } = await readPixels(source);
  clock("capture");
  resampler.resize();
  clock("resize");
  const tensor = resampler.normalize();
  clock("normalize");
  const map = await infer(tensor);
  clock("infer");
  const range = live ? follow(quickRange(map)) : exactRange(map);
  clock("color");
  if (!live) steady = new SteadyRange();
  last = { width, height, map, range, live };
  const copy = map.slice();
  const result = { map: copy, mapWidth: graph.width, mapHeight: graph.height, width, height, range, live, times };
  return { result, transfer: [copy.buffer] };
}

function follow(found) {
  const now = performance.now();
  const range = steady.follow(found, lastAt ? (now - lastAt) / 1000 : 0);
  lastAt = now;
  return range;
}

async function infer(tensor) {
  const shape = [1, 3, graph.height, graph.width];
  const answers = await session.run({ [graph.input]: new ort.Tensor("float32", tensor, shape) });
  const output = answers[graph.output];
  return output.location === "cpu" ? output.data : await output.getData();
}

/** Forget the steady range: another camera, another scene. */
async function forget() {
  steady = new SteadyRange();
  lastAt = 0;
  return { result: null };
}

/** Bring a VideoFrame or an ImageBitmap into the resampler's memory as RGBA; closes it. */
async function readPixels(source) {
  try {
    const width = source.displayWidth ?? source.width;
    const height = source.displayHeight ?? source.height;
    if (Math.min(width, height) < MIN_SIDE_PX) throw new Trouble("photo-small", `${width}x${height}`);
    if (width * height > MAX_PIXELS) throw new Trouble("photo-large", `${width}x${height}`);
    if (!resampler?.fits(width, height, graph.width, graph.height)) {
      resampler = new Resampler(width, height, graph.width, graph.height);
    }
    if (!(await copyFrame(source, width, height))) drawFrame(source, width, height);
    return { width, height };
  } finally {
    source.close();
  }
}

/** The quick way where a browser converts frames to RGBA by itself: no canvas between. */
async function copyFrame(frame, width, height) {
  if (!frame.copyTo || frame.rotation || frame.flip) return false;
  const rect = frame.visibleRect;
  if (rect.width !== width || rect.height !== height) return false;
  try {
    await frame.copyTo(resampler.input, { format: "RGBA", colorSpace: "srgb" });
    return true;
  } catch {
    return false;
  }
}

let canvas;

function drawFrame(source, width, height) {
  if (canvas?.width !== width || canvas?.height !== height) canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true, alpha: false });
  context.drawImage(source, 0, 0, width, height);
  resampler.input.set(context.getImageData(0, 0, width, height).data);
}

/** What is shown, as a PNG file of the picture's own size: `depth`, `depth16` or `pair`. */
async function render({ kind, colormap }) {
  if (!last) throw new Trouble("nothing");
  const { width, height } = last;
  const map = resizeMap(last.map, graph.width, graph.height, width, height);
  if (kind === "depth16") {
    const { levels, low, high } = levels16(map);
    const texts = { "delta.disparity_min": String(low), "delta.disparity_max": String(high) };
    return { result: await encodeGray16(levels, width, height, texts) };
  }
  const range = last.live ? last.range : exactRange(map);
  const colors = paintBytes(map, range, colorTable(tables[colormap]));
  if (kind === "depth") return { result: await encodeRgb(colors, width, height) };
  return { result: await encodeRgb(beside(resampler.input, colors, width, height), 2 * width, height) };
}

/** Photo (RGBA) and depth (RGB) next to each other, as RGB. */
function beside(rgba, rgb, width, height) {
  const out = new Uint8Array(2 * width * height * 3);
  for (let y = 0; y < height; y++) {
    const row = 6 * width * y;
    for (let x = 0; x < width; x++) {
      const from = 4 * (y * width + x);
      out[row + 3 * x] = rgba[from];
      out[row + 3 * x + 1] = rgba[from + 1];
      out[row + 3 * x + 2] = rgba[from + 2];
    }
    out.set(rgb.subarray(3 * width * y, 3 * width * (y + 1)), row + 3 * width);
  }
  return out;
}

async function fetchOk(url) {
  const found = await fetch(url).catch(() => null);
  if (!found?.ok) throw new Trouble("network", url);
  return found;
}

async function download(url, total) {
  const found = await fetchOk(url);
  const bytes = new Uint8Array(total);
  let done = 0;
  for (const reader = found.body.getReader(); ; ) {
    const { value, done: ended } = await reader.read();
    if (ended) break;
    if (done + value.length > total) throw new Trouble("digest");
    bytes.set(value, done);
    done += value.length;
    report("downloading", done / total);
  }
  if (done !== total) throw new Trouble("digest");
  return bytes;
}

/** Compare with what delta.json promises; only secure pages can. */
async function checkDigest(bytes, expected) {
  if (!crypto.subtle) return "unchecked";
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== expected) throw new Trouble("digest");
  return "checked";
}

function report(stage, share = 0) {
  self.postMessage({ progress: { stage, share } });
}

function stopwatch(times) {
  let since = performance.now();
  return (stage) => {
    const now = performance.now();
    times[stage] = now - since;
    since = now;
  };
}
