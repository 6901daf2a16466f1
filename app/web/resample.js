/* Pillow's antialiased resize over flat arrays: the same integers as `delta.images.resize`, and as a tensor the same
 * floats as `to_tensor_layout`. resample.wat holds the loops; this file places the tables that they read. */

const PRECISION_BITS = 22; // of Pillow's fixed point: 32 less 8 of a pixel and 2 of headroom (Resample.c)
const PAGE = 65536;
const BICUBIC = { support: 2, weight: bicubic };
const BILINEAR = { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) };

let compiled;

/** Compile the kernel once; `bytes` are those of resample.wasm. */
export async function loadKernel(bytes) {
  compiled = await WebAssembly.compile(bytes);
}

/** A resize from one size to one other: write RGBA into `input`, call `resize`, then `normalize`. */
export class Resampler {
  constructor(width, height, outWidth, outHeight) {
    Object.assign(this, { width, height, outWidth, outHeight });
    const across = width === outWidth ? null : fixedPoint(taps(width, outWidth, BICUBIC), 4);
    const down = height === outHeight ? null : fixedPoint(taps(height, outHeight, BICUBIC), outWidth * 4);
    const kernel = new WebAssembly.Instance(compiled).exports;
    const place = allocator();
    this.src = place(width * height * 4);
    this.mid = across ? place(outWidth * height * 4) : this.src;
    this.out = down ? place(outWidth * outHeight * 4) : this.mid;
    this.planes = place(outWidth * outHeight * 12);
    const tables = [across, down].map((table) => table && { ...table, at: place(table.bytes) });
    kernel.memory.grow(Math.ceil(place(0) / PAGE));
    const buffer = kernel.memory.buffer;
    for (const table of tables.filter(Boolean)) {
      new Int32Array(buffer, table.at, table.bounds.length).set(table.bounds);
      new Int32Array(buffer, table.at + table.bounds.byteLength, table.coefficients.length).set(table.coefficients);
    }
    [this.across, this.down] = tables;
    this.kernel = kernel;
    this.input = new Uint8ClampedArray(buffer, this.src, width * height * 4);
    this.resized = new Uint8ClampedArray(buffer, this.out, outWidth * outHeight * 4);
    this.tensor = new Float32Array(buffer, this.planes, outWidth * outHeight * 3);
  }

  fits(width, height, outWidth, outHeight) {
    return this.width === width && this.height === height && this.outWidth === outWidth && this.outHeight === outHeight;
  }

  /** Fill `resized` from `input`. */
  resize() {
    const { kernel, across, down, width, height, outWidth, outHeight } = this;
    if (across) {
      const coefficients = across.at + across.bounds.byteLength;
      kernel.horizontal(this.src, this.mid, width * 4, outWidth, height, across.at, coefficients, across.stride);
    }
    if (down) {
      const coefficients = down.at + down.bounds.byteLength;
      kernel.vertical(this.mid, this.out, outWidth * 4, outHeight, down.at, coefficients, down.stride);
    }
    return this.resized;
  }

  /** Fill `tensor` (3 planes, RGB in [0, 1]) from `resized`. */
  normalize() {
    this.kernel.normalize(this.out, this.planes, this.outWidth * this.outHeight);
    return this.tensor;
  }
}

/** Resize a map of floats as Pillow's BILINEAR resizes mode F: sums in double, each pass rounded to float32. */
export function resizeMap(map, width, height, outWidth, outHeight) {
  const rows = width === outWidth ? map : acrossMap(map, width, height, outWidth);
  return height === outHeight ? rows : downMap(rows, outWidth, height, outHeight);
}

function acrossMap(map, width, height, outWidth) {
  const { first, count, weights, size } = taps(width, outWidth, BILINEAR);
  const result = new Float32Array(outWidth * height);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < outWidth; x++, at++) {
      let sum = 0;
      const from = y * width + first[x];
      for (let k = 0; k < count[x]; k++) sum += map[from + k] * weights[x * size + k];
      result[at] = sum;
    }
  }
  return result;
}

function downMap(map, width, height, outHeight) {
  const { first, count, weights, size } = taps(height, outHeight, BILINEAR);
  const result = new Float32Array(width * outHeight);
  const sums = new Float64Array(width);
  for (let y = 0; y < outHeight; y++) {
    sums.fill(0);
    for (let k = 0; k < count[y]; k++) {
      const weight = weights[y * size + k];
      const from = (first[y] + k) * width;
      for (let x = 0; x < width; x++) sums[x] += map[from + x] * weight;
    }
    result.set(sums, y * width);
  }
  return result;
}

/** Which input pixels make each output pixel, and how much of each: Pillow's precompute_coeffs. */
function taps(inSize, outSize, filter) {
  const scale = inSize / outSize;
  const filterScale = Math.max(scale, 1);
  const support = filter.support * filterScale;
  const size = Math.ceil(support) * 2 + 1;
  const first = new Int32Array(outSize);
  const count = new Int32Array(outSize);
  const weights = new Float64Array(outSize * size);
  for (let x = 0; x < outSize; x++) {
    const center = (x + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(inSize, Math.trunc(center + support + 0.5));
    let sum = 0;
    for (let k = 0; k < end - start; k++) {
      const weight = filter.weight((k + start - center + 0.5) * (1 / filterScale));
      weights[x * size + k] = weight;
      sum += weight;
    }
    for (let k = 0; k < end - start && sum !== 0; k++) weights[x * size + k] /= sum;
    first[x] = start;
    count[x] = end - start;
  }
  return { first, count, weights, size };
}

function fixedPoint({ first, count, weights, size }, bytesEach) {
  const bounds = new Int32Array(first.length * 2);
  first.forEach((start, x) => bounds.set([start * bytesEach, count[x]], 2 * x));
  const one = 2 ** PRECISION_BITS;
  const coefficients = Int32Array.from(weights, (w) => Math.trunc(w < 0 ? w * one - 0.5 : w * one + 0.5));
  return { bounds, coefficients, stride: size * 4, bytes: bounds.byteLength + coefficients.byteLength };
}

function allocator() {
  let end = PAGE; // the first page stays free: address 0 is nobody's
  return (bytes) => {
    const start = end;
    end += (bytes + 15) & ~15;
    return start;
  };
}

function bicubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}
