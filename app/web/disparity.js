/* What a disparity map looks like: its range, its colors, its levels. The mirror of `delta.predict` and
 * `delta.colormaps`, to the same rounding; a test holds the two together. */

export const COLORMAPS = ["spectral", "viridis", "inferno", "gray"];
export const INVALID_GRAY = 128; // what NaN and infinity look like
const LOW_PERCENTILE = 2;
const HIGH_PERCENTILE = 98;
const BINS = 4096; // of a live frame's histogram: its percentiles are within 1/4096 of the frame's extent
const SMOOTHING_S = 1; // time constant with which the range of the colors follows the scene, as in `delta predict`

/** [low, high]: numpy's 2nd and 98th percentile of the finite values; [NaN, NaN] where there is none. */
export function exactRange(map) {
  const sorted = finiteOnly(map).sort();
  return [percentile(sorted, LOW_PERCENTILE), percentile(sorted, HIGH_PERCENTILE)];
}

/** The same from a histogram, in two passes: for frames that come ten or thirty times a second. */
export function quickRange(map) {
  const [low, high] = extremes(map);
  if (!(high > low)) return [low, high];
  const counts = new Uint32Array(BINS + 1);
  const scale = BINS / (high - low);
  let finite = 0;
  for (let i = 0; i < map.length; i++) {
    const bin = (map[i] - low) * scale;
    if (bin >= 0 && bin <= BINS) {
      counts[bin | 0]++;
      finite++;
    }
  }
  const at = (percent) => low + place(counts, (percent / 100) * finite) / scale;
  return [at(LOW_PERCENTILE), at(HIGH_PERCENTILE)];
}

/** A range that follows the scene slowly and starts anew where a frame's range does not touch it: a cut. */
export class SteadyRange {
  #range = null;

  follow(found, elapsedS) {
    if (!Number.isFinite(found[0])) return this.#range ?? [0, 1];
    const held = this.#range;
    if (!held || found[0] > held[1] || found[1] < held[0]) this.#range = found;
    const share = 1 - Math.exp(-Math.max(elapsedS, 0) / SMOOTHING_S);
    this.#range = this.#range.map((end, i) => end + share * (found[i] - end));
    return this.#range;
  }
}

/** Paint a map as RGBA, one 32-bit word a pixel; `words` are those of `colorWords`. */
export function paintWords(map, [low, high], words, out) {
  const invalid = words[256];
  if (!(high > low)) {
    for (let i = 0; i < map.length; i++) out[i] = Number.isFinite(map[i]) ? words[128] : invalid;
    return out;
  }
  const scale = 1 / (high - low);
  for (let i = 0; i < map.length; i++) {
    const share = (map[i] - low) * scale;
    if (share <= 0) out[i] = Number.isFinite(map[i]) ? words[0] : invalid;
    else if (share >= 1) out[i] = Number.isFinite(map[i]) ? words[255] : invalid;
    else out[i] = share === share ? words[(share * 255 + 0.5) | 0] : invalid;
  }
  return out;
}

/** Paint a map as RGB bytes exactly as `colorize(normalize_for_display(map), colormap, 0, 1)` does. */
export function paintBytes(map, [low, high], table) {
  const out = new Uint8Array(map.length * 3);
  for (let i = 0; i < map.length; i++) {
    if (!Number.isFinite(map[i])) {
      out.fill(INVALID_GRAY, 3 * i, 3 * i + 3);
      continue;
    }
    const share = high > low ? Math.fround((map[i] - low) / (high - low)) : 0.5;
    const row = 3 * rint(Math.min(1, Math.max(0, share)) * 255);
    out[3 * i] = table[row];
    out[3 * i + 1] = table[row + 1];
    out[3 * i + 2] = table[row + 2];
  }
  return out;
}

/** Big-endian 16-bit levels from the map's minimum to its maximum, and these two: `save_disparity_png16`. */
export function levels16(map) {
  const [low, high] = extremes(map);
  const scale = high > low ? 65535 / (high - low) : 0;
  const out = new Uint8Array(map.length * 2);
  for (let i = 0; i < map.length; i++) {
    const level = Number.isFinite(map[i]) ? rint((map[i] - low) * scale) : 0;
    out[2 * i] = level >> 8;
    out[2 * i + 1] = level & 255;
  }
  return { levels: out, low, high };
}

/** The 256 RGB triplets of a table, from their base64. */
export function colorTable(text) {
  return Uint8Array.from(atob(text), (byte) => byte.charCodeAt(0));
}

/** 257 opaque words for `paintWords`: the table, and the color of what is not finite. */
export function colorWords(table) {
  const bytes = new Uint8Array(257 * 4).fill(255);
  for (let i = 0; i < 256; i++) bytes.set(table.subarray(3 * i, 3 * i + 3), 4 * i);
  bytes.fill(INVALID_GRAY, 1024, 1027);
  return new Uint32Array(bytes.buffer);
}

/** Say in words where the nearest and the farthest of nine regions lie, for those who do not see the picture. */
export function describe(map, width, height) {
  const sums = new Float64Array(9);
  const counts = new Uint32Array(9);
  for (let y = 0; y < height; y += 2) {
    for (let x = 0; x < width; x += 2) {
      const cell = Math.floor((3 * y) / height) * 3 + Math.floor((3 * x) / width);
      const value = map[y * width + x];
      if (!Number.isFinite(value)) continue;
      sums[cell] += value;
      counts[cell]++;
    }
  }
  const means = Array.from(sums, (sum, cell) => sum / counts[cell]);
  const near = means.indexOf(Math.max(...means));
  const far = means.indexOf(Math.min(...means));
  if (near < 0 || far < 0 || near === far) return "no depth differences found";
  return `nearest at the ${CELLS[near]}, farthest at the ${CELLS[far]}`;
}

const CELLS = ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"];

function extremes(map) {
  let low = Infinity;
  let high = -Infinity;
  for (let i = 0; i < map.length; i++) {
    const value = map[i];
    if (value < low && value !== -Infinity) low = value;
    if (value > high && value !== Infinity) high = value;
  }
  return low <= high ? [low, high] : [NaN, NaN];
}

/** Where in the histogram, in bins, `rank` values lie below. */
function place(counts, rank) {
  let below = 0;
  for (let bin = 0; bin < counts.length; bin++) {
    if (below + counts[bin] >= rank && counts[bin] > 0) return Math.min(bin + (rank - below) / counts[bin], BINS);
    below += counts[bin];
  }
  return BINS;
}

function finiteOnly(map) {
  const kept = new Float32Array(map.length);
  let count = 0;
  for (let i = 0; i < map.length; i++) if (Number.isFinite(map[i])) kept[count++] = map[i];
  return kept.subarray(0, count);
}

/** numpy's linear percentile of sorted values. */
function percentile(sorted, percent) {
  const at = (percent / 100) * (sorted.length - 1);
  const before = Math.floor(at);
  const [a, b, t] = [sorted[before], sorted[Math.min(before + 1, sorted.length - 1)], at - before];
  return t < 0.5 ? a + (b - a) * t : b - (b - a) * (1 - t);
}

/** Round half to even, as numpy does. */
function rint(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest === 0.5) return floor % 2 === 0 ? floor : floor + 1;
  return rest < 0.5 ? floor : floor + 1;
}
