/* How long the stages of a frame take: medians of the last frames, and an event a frame for whoever measures. */

import { element, find } from "./controls.js";

const KEPT = 60;
const SHOWN_EVERY_MS = 500;
export const STAGES = ["capture", "resize", "normalize", "infer", "color", "draw"];

export class FrameTimes {
  #frames = [];
  #ends = [];
  #shownAt = 0;

  start() {
    this.#frames = [];
    this.#ends = [];
  }

  /** Take in a frame's stages and its whole time; returns frames a second and whether to show them now. */
  add(stages, total) {
    const now = performance.now();
    this.#frames.push(stages);
    this.#ends.push(now);
    if (this.#frames.length > KEPT) this.#frames.shift();
    if (this.#ends.length > KEPT) this.#ends.shift();
    document.dispatchEvent(new CustomEvent("delta:frame", { detail: { ...stages, total, at: now } }));
    const due = now - this.#shownAt > SHOWN_EVERY_MS;
    if (due) {
      this.#shownAt = now;
      this.show(this.medians());
    }
    const span = now - this.#ends[0];
    return { fps: span > 0 ? (1000 * (this.#ends.length - 1)) / span : 0, due };
  }

  medians() {
    return Object.fromEntries(STAGES.map((stage) => [stage, median(this.#frames.map((frame) => frame[stage]))]));
  }

  show(stages) {
    const rows = Object.entries(stages).map(([name, ms]) => {
      const row = document.createElement("tr");
      row.append(Object.assign(element("th", name), { scope: "row" }), element("td", `${ms.toFixed(1)} ms`));
      return row;
    });
    find("times").tBodies[0].replaceChildren(...rows);
  }
}

function median(values) {
  return values.slice().sort((a, b) => a - b)[values.length >> 1] ?? 0;
}
