/* What can go wrong, what a person is told about it, and what they can do: one entry a code. */

const HTTPS = "Open the page by https (`delta app serve MODEL --https`) or on localhost.";

const TEXTS = {
  "camera-none": ["No camera found", "This device has no camera, or another program hides it. Photos still work."],
  "camera-denied": [
    "The camera is blocked",
    "Allow the camera for this page in the browser's site settings, then try again. Photos still work without it.",
  ],
  "camera-busy": ["The camera is in use", "Close the other program or tab that uses it, then try again."],
  "camera-insecure": ["Browsers give the camera only to secure pages", HTTPS],
  "camera-lost": ["The camera stopped", "It was unplugged, or another program took it."],
  "photo-unreadable": ["This file is not a picture the browser can read", "Choose a JPEG, PNG, WebP or AVIF photo."],
  "photo-small": ["This picture is too small", "It needs at least 32 pixels on each side to show a scene."],
  "photo-large": ["This picture is too large", "Scale it below 16 megapixels first."],
  simd: [
    "This browser is too old",
    "It lacks WebAssembly SIMD, which the model needs. Chrome 111, Firefox 121, Safari 16.4 and later have all of it.",
  ],
  memory: ["Not enough memory", "Close other tabs or apps and try again, or choose a smaller model."],
  digest: [
    "The model file is damaged",
    "It differs from the digest in delta.json, so it was not loaded. Try again; if it stays, whoever hosts this page has to build it anew.",
  ],
  model: ["The model cannot be loaded", "Build the page anew from a bundle that `delta export` wrote."],
  network: ["A file could not be fetched", "Check the connection and try again. Once loaded, everything works offline."],
  runtime: ["The engine did not load", "Reload the page; if it stays, whoever hosts it has to build it anew."],
  timeout: ["The engine did not start in time", "Reload the page, or choose one thread in the settings."],
  webgpu: ["WebGPU does not work here", "The model runs on the processor instead."],
  crash: ["The engine stopped", "Try again. If it stays, choose a smaller model or one thread in the settings."],
  nothing: ["Nothing to save yet", "Choose a photo or start the camera first."],
  failed: ["Something went wrong", "Try again. If it stays, reload the page."],
};

export class Trouble extends Error {
  constructor(code, detail = "") {
    super(TEXTS[code]?.[0] ?? code);
    this.code = code;
    this.detail = detail;
  }

  get hint() {
    return TEXTS[this.code]?.[1] ?? "";
  }

  plain() {
    return { code: this.code, detail: this.detail };
  }

  static from({ code, detail }) {
    return new Trouble(code, detail);
  }
}

const MEMORY = /out of memory|could not allocate|allocation failed|bad_alloc|Array buffer allocation|Invalid array length/i;

/** Give an error of the browser or the engine its code. */
export function asTrouble(error, otherwise = "failed") {
  if (error instanceof Trouble) return error;
  const text = String(error?.message ?? error);
  return new Trouble(MEMORY.test(text) ? "memory" : otherwise, text);
}

const CAMERA = {
  NotAllowedError: "camera-denied",
  SecurityError: "camera-denied",
  NotFoundError: "camera-none",
  OverconstrainedError: "camera-none",
  NotReadableError: "camera-busy",
  AbortError: "camera-busy",
};

export function cameraTrouble(error) {
  return error instanceof Trouble ? error : new Trouble(CAMERA[error?.name] ?? "camera-busy", String(error));
}
