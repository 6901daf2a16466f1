/* What someone chose, kept in this browser; the address can say otherwise for one visit (`?view=side&map=viridis`). */

import { COLORMAPS } from "./disparity.js";

const KEY = "delta";
const DEFAULTS = {
  theme: "auto",
  map: "spectral",
  view: "slider",
  model: "",
  engine: "wasm",
  threads: "auto",
  renderer: "auto",
};

const VALUES = {
  theme: ["auto", "light", "dark"],
  map: COLORMAPS,
  view: ["depth", "side", "overlay", "slider", "relief"],
  engine: ["wasm", "webgpu"],
  threads: ["auto", "1", "2", "4"],
  renderer: ["auto", "webgl2", "2d"],
};

export function loadPrefs() {
  const asked = Object.fromEntries(new URLSearchParams(location.search));
  const prefs = { ...DEFAULTS };
  for (const choices of [stored(), asked]) {
    for (const name of Object.keys(DEFAULTS)) {
      const value = choices[name];
      if (typeof value === "string" && (!VALUES[name] || VALUES[name].includes(value))) prefs[name] = value;
    }
  }
  return prefs;
}

export function savePref(name, value) {
  try {
    localStorage.setItem(KEY, JSON.stringify({ ...stored(), [name]: value }));
  } catch {
    // private windows keep nothing, and nothing depends on it
  }
}

function stored() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
}
