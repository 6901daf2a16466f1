/* The picture as a relief to look around: a grid pushed back by its depth, seen by a camera that a drag turns.
 * Straight ahead it is the photo itself, as every point moves along its own line of sight. */

import { READ_MAP, link, texture, uploadMap } from "./painter.js";

const GRID = 320; // cells along the longer side
const MAX_YAW = 0.28; // radians
const MAX_PITCH = 0.18;
const SWAY_S = 7; // period of the sway that shows, until someone drags, that this turns
const FOV = 0.9; // radians across the longer side

const VERTEX = `#version 300 es
precision highp float;
uniform vec2 extent, turn;
uniform ivec2 grid;
uniform float far, mirror;
out vec2 at;
${READ_MAP}
void main() {
  int cell = gl_VertexID / 6, corner = gl_VertexID % 6;
  ivec2 offset = corner == 0 ? ivec2(0, 0) : corner == 1 || corner == 3 ? ivec2(1, 0)
    : corner == 2 || corner == 5 ? ivec2(0, 1) : ivec2(1, 1);
  vec2 place = vec2(ivec2(cell % grid.x, cell / grid.x) + offset) / vec2(grid);
  at = place;
  float distance = 1.0 / mix(1.0 / far, 1.0, shareOf(valueAt(place)));
  vec3 point = vec3((place.x * 2.0 - 1.0) * extent.x * mirror, (1.0 - place.y * 2.0) * extent.y, -1.0) * distance;
  float pivot = 2.0 * far / (1.0 + far);
  point.z += pivot;
  vec2 c = cos(turn), s = sin(turn);
  point = vec3(c.x * point.x + s.x * point.z, point.y, c.x * point.z - s.x * point.x);
  point = vec3(point.x, c.y * point.y - s.y * point.z, s.y * point.y + c.y * point.z);
  point.z -= pivot;
  float zoom = 1.03 + 0.12 * length(turn) / ${MAX_YAW};
  gl_Position = vec4(point.xy / extent * zoom, -1.0025 * point.z - 0.1001, -point.z); // planes at 0.05 and 40
}`;

const FRAGMENT = `#version 300 es
precision mediump float;
uniform sampler2D photo;
in vec2 at;
out vec4 color;
void main() { color = vec4(texture(photo, at).rgb, 1); }`;

/** Open the relief on a canvas, or return null where there is no WebGL2. */
export function makeRelief(canvas) {
  const gl = canvas.getContext("webgl2", { alpha: true, antialias: true, preserveDrawingBuffer: true });
  return gl ? new Relief(canvas, gl) : null;
}

class Relief {
  #canvas;
  #gl;
  #at = {};
  #mapSize = [0, 0];
  #turn = [0, 0];
  #touched = false;
  #shown = false;
  #frame = 0;
  #scene = null;
  #still = matchMedia("(prefers-reduced-motion: reduce)");
  strength = 0.4;

  constructor(canvas, gl) {
    this.#canvas = canvas;
    this.#gl = gl;
    const program = link(gl, VERTEX, FRAGMENT);
    gl.useProgram(program);
    for (const name of ["range", "extent", "turn", "grid", "far", "mirror", "map", "photo"]) {
      this.#at[name] = gl.getUniformLocation(program, name);
    }
    gl.uniform1i(this.#at.map, 0);
    gl.uniform1i(this.#at.photo, 1);
    gl.enable(gl.DEPTH_TEST);
    this.mapTexture = texture(gl);
    this.photoTexture = texture(gl, gl.LINEAR);
    this.#listen();
  }

  /** Show a scene: the map and its range, and what to draw on it (canvas, frame or bitmap). */
  load({ map, mapWidth, mapHeight, width, height, range }, photo, mirrored) {
    const gl = this.#gl;
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.mapTexture);
    uploadMap(gl, map, mapWidth, mapHeight, this.#mapSize);
    this.#mapSize = [mapWidth, mapHeight];
    gl.activeTexture(gl.TEXTURE1);
    gl.bindTexture(gl.TEXTURE_2D, this.photoTexture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, gl.RGB, gl.UNSIGNED_BYTE, photo);
    this.#scene = { width, height, range, mirrored };
    this.#ask();
  }

  show(shown) {
    this.#shown = shown;
    this.#touched = false;
    this.#turn = [0, 0];
    if (shown) this.#ask();
  }

  setStrength(value) {
    this.strength = value;
    this.#ask();
  }

  /** Turn by steps, as keys do. */
  nudge(x, y) {
    this.#touched = true;
    this.#turn = limit(this.#turn[0] + 0.05 * x, this.#turn[1] + 0.05 * y);
    this.#ask();
  }

  reset() {
    this.#touched = true;
    this.#turn = [0, 0];
    this.#ask();
  }

  #ask() {
    if (!this.#frame && this.#shown) this.#frame = requestAnimationFrame((now) => this.#draw(now));
  }

  #draw(now) {
    this.#frame = 0;
    if (!this.#scene || !this.#shown) return;
    const gl = this.#gl;
    const { width, height, range, mirrored } = this.#scene;
    const long = Math.max(width, height);
    const scale = Math.min(1, 1280 / long);
    const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
    if (this.#canvas.width !== w || this.#canvas.height !== h) Object.assign(this.#canvas, { width: w, height: h });
    const swaying = !this.#touched && !this.#still.matches;
    const phase = (2 * Math.PI * now) / 1000 / SWAY_S;
    const turn = swaying ? [0.45 * MAX_YAW * Math.sin(phase), 0.3 * MAX_PITCH * Math.cos(phase)] : this.#turn;
    const grid = [Math.ceil((GRID * width) / long), Math.ceil((GRID * height) / long)];
    const half = Math.tan(FOV / 2);
    gl.viewport(0, 0, w, h);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.uniform2f(this.#at.range, range[0], range[1]);
    gl.uniform2f(this.#at.extent, (half * width) / long, (half * height) / long);
    gl.uniform2f(this.#at.turn, turn[0], turn[1]);
    gl.uniform2i(this.#at.grid, grid[0], grid[1]);
    gl.uniform1f(this.#at.far, 1 + 4 * this.strength);
    gl.uniform1f(this.#at.mirror, mirrored ? -1 : 1);
    gl.drawArrays(gl.TRIANGLES, 0, grid[0] * grid[1] * 6);
    this.#canvas.dataset.turn = turn.map((angle) => angle.toFixed(3)).join(" ");
    if (swaying) this.#ask();
  }

  #listen() {
    const canvas = this.#canvas;
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      const turn = this.#touched ? this.#turn : [0, 0];
      from = { x: event.clientX, y: event.clientY, turn };
      this.#touched = true;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!from) return;
      const reach = Math.min(canvas.clientWidth, canvas.clientHeight) / 2;
      const [x, y] = [(event.clientX - from.x) / reach, (event.clientY - from.y) / reach];
      this.#turn = limit(from.turn[0] + x * MAX_YAW, from.turn[1] + y * MAX_PITCH);
      this.#ask();
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (from = null));
    canvas.addEventListener("dblclick", () => this.reset());
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      this.nudge(...step);
    });
  }
}

function limit(yaw, pitch) {
  return [Math.max(-MAX_YAW, Math.min(MAX_YAW, yaw)), Math.max(-MAX_PITCH, Math.min(MAX_PITCH, pitch))];
}
