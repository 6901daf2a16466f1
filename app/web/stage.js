/* What is on the stage: the photo, its depth, and how the two are laid over each other. */

import { find } from "./controls.js";
import { colorTable, describe } from "./disparity.js";
import { makePainter } from "./painter.js";
import { makeRelief } from "./relief.js";

const TUNES = { overlay: "Blend", relief: "Relief" };

export class Stage {
  #scene = find("scene");
  #photo = find("photo");
  #painter;
  #relief;
  #tables;
  #view = "slider";
  #tune = { overlay: 60, relief: 40 };
  #picture = null; // what the photo layer shows: a canvas source
  answer = null;
  mirrored = false;

  constructor(tables, renderer) {
    this.#tables = tables;
    this.#painter = makePainter(find("depth"), renderer);
    this.#relief = makeRelief(find("relief"));
    document.body.dataset.painter = this.#painter.kind;
    if (!this.#relief) this.#disableRelief();
    new ResizeObserver(() => this.#arrange()).observe(find("frame"));
    find("split-at").addEventListener("input", ({ target }) => this.#moveSplit(target.value));
    find("tune-value").addEventListener("input", ({ target }) => this.#setTune(Number(target.value)));
  }

  get view() {
    return this.#view;
  }

  setView(view) {
    this.#view = view === "relief" && !this.#relief ? "depth" : view;
    document.body.dataset.view = this.#view;
    const tune = find("tune");
    tune.hidden = !(this.#view in TUNES);
    if (!tune.hidden) {
      find("tune-name").textContent = TUNES[this.#view];
      find("tune-value").value = this.#tune[this.#view];
      this.#setTune(this.#tune[this.#view]);
    }
    this.#arrange();
    this.#refresh();
    this.#relief?.show(this.#view === "relief");
    return this.#view;
  }

  setColors(name) {
    const table = colorTable(this.#tables[name]);
    this.#painter.setColors(table);
    drawRamp(find("ramp"), table);
    document.body.dataset.map = name;
    if (this.answer) this.#painter.paint(this.answer);
  }

  setMirrored(mirrored) {
    this.mirrored = mirrored;
    this.#scene.classList.toggle("mirrored", mirrored);
    this.#moveSplit(find("split-at").value);
  }

  /** Show a picture before its depth is known. */
  showPicture(source, width, height, name) {
    this.#picture = source;
    this.answer = null;
    document.body.dataset.result = "none";
    this.#setRatio(width / height);
    this.#drawPhoto(width, height);
    find("photo").setAttribute("aria-label", name);
  }

  /** Show the depth of `picture` (null: of the picture that is there); returns the milliseconds of coloring it. */
  showAnswer(answer, picture = null) {
    if (picture) this.#picture = picture;
    this.answer = answer;
    document.body.dataset.result = "shown";
    this.#setRatio(answer.width / answer.height);
    const coloring = this.#painter.paint(answer);
    if (picture && this.#needsPhoto()) this.#drawPhoto(answer.width, answer.height);
    if (this.#view === "relief") this.#relief.load(answer, this.#photo, this.mirrored);
    return coloring;
  }

  /** Bring layers up to date that live frames leave alone while they are hidden. */
  #refresh() {
    if (!this.answer || !this.#picture) return;
    this.#drawPhoto(this.answer.width, this.answer.height);
    if (this.#view === "relief") this.#relief.load(this.answer, this.#photo, this.mirrored);
  }

  /** Describe the depth in words for the picture's label; returns them. */
  label() {
    const { map, mapWidth, mapHeight } = this.answer;
    const words = describe(map, mapWidth, mapHeight);
    find("depth").setAttribute("aria-label", `Depth map: ${words}`);
    return words;
  }

  #needsPhoto() {
    const live = document.body.dataset.source === "live";
    return !(live && (this.#view === "depth" || this.#view === "side"));
  }

  #drawPhoto(width, height) {
    const canvas = this.#photo;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    canvas.getContext("2d", { alpha: false }).drawImage(this.#picture, 0, 0, width, height);
  }

  #setRatio(ratio) {
    if (ratio === this.ratio) return;
    this.ratio = ratio;
    this.#scene.style.setProperty("--ratio", ratio.toFixed(4));
    this.#arrange();
  }

  /** Side by side or one above the other, whichever shows more. */
  #arrange() {
    const { clientWidth, clientHeight } = find("frame");
    const ratio = this.ratio ?? 4 / 3;
    const inRow = Math.min(clientWidth / 2, clientHeight * ratio);
    const inColumn = Math.min(clientWidth, (clientHeight / 2) * ratio);
    this.#scene.classList.toggle("stacked", inColumn > inRow);
  }

  /** Move the line between photo and depth; a mirrored layer is clipped from its other side. */
  #moveSplit(value) {
    find("split-at").value = value;
    this.#scene.style.setProperty("--split", `${value}%`);
  }

  /** Let the depth sweep in from the right, once. */
  sweep() {
    this.#moveSplit(100);
    this.#scene.classList.add("sweeping");
    requestAnimationFrame(() => requestAnimationFrame(() => this.#moveSplit(42)));
    setTimeout(() => this.#scene.classList.remove("sweeping"), 1000);
  }

  #setTune(value) {
    this.#tune[this.#view] = value;
    if (this.#view === "overlay") this.#scene.style.setProperty("--blend", value / 100);
    else this.#relief?.setStrength(value / 100);
  }

  #disableRelief() {
    const radio = document.querySelector('#views [value="relief"]');
    radio.disabled = true;
    radio.parentElement.title = "This browser has no WebGL2, which the 3-D view needs";
  }
}

export function drawRamp(canvas, table) {
  const { width } = canvas;
  const image = new ImageData(width, 1);
  for (let x = 0; x < width; x++) {
    const row = 3 * Math.round((x * 255) / (width - 1));
    image.data.set([table[row], table[row + 1], table[row + 2], 255], 4 * x);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}
