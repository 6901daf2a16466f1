/* Draws a disparity map in color: by WebGL2 where a GPU is, else on a plain canvas. No copies, no encoding. */

import { colorWords, paintWords } from "./disparity.js";
import { resizeMap } from "./resample.js";

const FINEST_PX = 1600; // of the longer side; a map of 384 px has no more to show

/** Make the painter that suits this device; `choice` is "auto", "webgl2" or "2d". */
export function makePainter(canvas, choice = "auto") {
  if (choice === "webgl2" || (choice === "auto" && !isSoftware())) {
    const context = canvas.getContext("webgl2", {
      alpha: false,
      antialias: false,
      preserveDrawingBuffer: true,
      failIfMajorPerformanceCaveat: choice === "auto",
    });
    if (context) return new GlPainter(canvas, context);
  }
  return new FlatPainter(canvas);
}

/** Whether WebGL is there, but computed by the processor, where a plain canvas is quicker. */
function isSoftware() {
  const gl = document.createElement("canvas").getContext("webgl2");
  const info = gl?.getExtension("WEBGL_debug_renderer_info");
  const name = String(info && gl.getParameter(info.UNMASKED_RENDERER_WEBGL));
  gl?.getExtension("WEBGL_lose_context")?.loseContext();
  return /swiftshader|llvmpipe|softpipe|software|basic render/i.test(name);
}

class FlatPainter {
  kind = "2d";
  #canvas;
  #context;
  #image = null;
  #words;

  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d", { alpha: false });
  }

  setColors(table) {
    this.#words = colorWords(table);
  }

  /** Draw, and return the milliseconds that coloring took of it. A live map stays at its own size and the page
   * stretches it; a photo's is drawn at the photo's. */
  paint({ map, mapWidth, mapHeight, width, height, range, live }) {
    const [w, h] = live ? [mapWidth, mapHeight] : fit(width, height);
    const values = resizeMap(map, mapWidth, mapHeight, w, h);
    if (this.#image?.width !== w || this.#image?.height !== h) {
      this.#image = new ImageData(w, h);
      Object.assign(this.#canvas, { width: w, height: h });
    }
    const began = performance.now();
    paintWords(values, range, this.#words, new Uint32Array(this.#image.data.buffer));
    const took = performance.now() - began;
    this.#context.putImageData(this.#image, 0, 0);
    return took;
  }
}

const VERTEX = `#version 300 es
out vec2 at;
void main() {
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0;
  at = vec2(corner.x, 1.0 - corner.y);
  gl_Position = vec4(corner * 2.0 - 1.0, 0, 1);
}`;

/** GLSL: the map between its pixels, and where in its range a value lies. Float textures are not filtered everywhere, so
 * the four neighbors are mixed here: values, not colors. */
export const READ_MAP = `
uniform highp sampler2D map;
uniform highp vec2 range;
float value(ivec2 p) { return texelFetch(map, clamp(p, ivec2(0), textureSize(map, 0) - 1), 0).r; }
float valueAt(vec2 place) {
  vec2 p = place * vec2(textureSize(map, 0)) - 0.5;
  ivec2 i = ivec2(floor(p));
  vec2 f = p - floor(p);
  float top = mix(value(i), value(i + ivec2(1, 0)), f.x);
  float bottom = mix(value(i + ivec2(0, 1)), value(i + ivec2(1, 1)), f.x);
  return mix(top, bottom, f.y);
}
float shareOf(float d) { return range.y > range.x ? clamp((d - range.x) / (range.y - range.x), 0.0, 1.0) : 0.5; }`;

const FRAGMENT = `#version 300 es
precision highp float;
uniform mediump sampler2D colors;
in vec2 at;
out vec4 color;
${READ_MAP}
void main() {
  float d = valueAt(at);
  bool bad = isnan(d) || isinf(d);
  color = bad ? vec4(vec3(128.0 / 255.0), 1) : texelFetch(colors, ivec2(int(shareOf(d) * 255.0 + 0.5), 0), 0);
}`;

class GlPainter {
  kind = "webgl2";
  #canvas;
  #gl;
  #range;
  #mapTexture;
  #colorTexture;
  #size = [0, 0];
  #table;

  constructor(canvas, gl) {
    this.#canvas = canvas;
    this.#gl = gl;
    this.#build();
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => {
      this.#build();
      if (this.#table) this.setColors(this.#table);
    });
  }

  #build() {
    const gl = this.#gl;
    const program = link(gl, VERTEX, FRAGMENT);
    gl.useProgram(program);
    gl.uniform1i(gl.getUniformLocation(program, "map"), 0);
    gl.uniform1i(gl.getUniformLocation(program, "colors"), 1);
    this.#range = gl.getUniformLocation(program, "range");
    gl.activeTexture(gl.TEXTURE1);
    this.#colorTexture = texture(gl);
    gl.activeTexture(gl.TEXTURE0);
    this.#mapTexture = texture(gl);
    this.#size = [0, 0];
  }

  setColors(table) {
    const gl = this.#gl;
    this.#table = table;
    gl.activeTexture(gl.TEXTURE1);
    gl.bindTexture(gl.TEXTURE_2D, this.#colorTexture);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB8, 256, 1, 0, gl.RGB, gl.UNSIGNED_BYTE, table);
    gl.activeTexture(gl.TEXTURE0);
  }

  paint({ map, mapWidth, mapHeight, width, height, range }) {
    const gl = this.#gl;
    const [w, h] = fit(width, height);
    if (this.#canvas.width !== w || this.#canvas.height !== h) Object.assign(this.#canvas, { width: w, height: h });
    gl.viewport(0, 0, w, h);
    gl.bindTexture(gl.TEXTURE_2D, this.#mapTexture);
    uploadMap(gl, map, mapWidth, mapHeight, this.#size);
    this.#size = [mapWidth, mapHeight];
    gl.uniform2f(this.#range, range[0], range[1]);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    return 0; // the GPU colors while it draws
  }
}

function fit(width, height) {
  const scale = Math.min(1, FINEST_PX / Math.max(width, height));
  return [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
}

/** Upload floats to the bound texture, into the storage that is there when its size is the same. */
export function uploadMap(gl, map, width, height, [oldWidth, oldHeight]) {
  if (width === oldWidth && height === oldHeight) {
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, width, height, gl.RED, gl.FLOAT, map);
  } else {
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.R32F, width, height, 0, gl.RED, gl.FLOAT, map);
  }
}

export function texture(gl, filter = gl.NEAREST) {
  const made = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, made);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, filter);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, filter);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
  return made;
}

export function link(gl, vertex, fragment) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
    throw new Error(gl.getProgramInfoLog(program));
  }
  return program;
}
