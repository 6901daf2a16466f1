/* The page's side of the worker: start it with what works here, ask it, and replace it when it hangs or dies. */

import { Trouble } from "./trouble.js";

const START_TIMEOUT_MS = { wasm: 60_000, webgpu: 30_000 }; // from the last byte downloaded
const MAX_THREADS = 4; // more do not pay for models this small
// (module (func (result v128) i32.const 0 i8x16.splat i8x16.popcnt)): valid only where SIMD is
const SIMD_PROBE = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

export function hasSimd() {
  return typeof WebAssembly === "object" && WebAssembly.validate(new Uint8Array(SIMD_PROBE));
}

export function isIos() {
  const { userAgent, platform, maxTouchPoints } = navigator;
  return /iPad|iPhone|iPod/.test(userAgent) || (platform === "MacIntel" && maxTouchPoints > 1);
}

/** Threads to use: shared memory needs an isolated page, and on iOS threads are not dependable. */
export function threadsFor(choice) {
  if (!globalThis.crossOriginIsolated) return 1;
  const available = Math.min(MAX_THREADS, navigator.hardwareConcurrency || 1);
  if (choice === "auto") return isIos() ? 1 : available;
  return Math.max(1, Math.min(Number(choice), navigator.hardwareConcurrency || 1));
}

export class Engine {
  #worker = null;
  #pending = new Map();
  #next = 0;
  #onProgress;
  #onStage = () => {};

  constructor(onProgress) {
    this.#onProgress = onProgress;
  }

  /** Start on `backend`; fall back from WebGPU to wasm and from threads to one. Resolves to what runs. */
  async start({ model, backend, threads }) {
    if (!hasSimd()) throw new Trouble("simd");
    const attempts = [{ backend, threads }];
    if (backend === "webgpu") attempts.push({ backend: "wasm", threads });
    if (threads > 1) attempts.push({ backend: "wasm", threads: 1 });
    let fellBack = null;
    for (const [index, attempt] of attempts.entries()) {
      try {
        return { ...(await this.#attempt(model, attempt)), fellBack };
      } catch (error) {
        this.stop();
        const final = ["digest", "network", "simd"].includes(error.code) || index === attempts.length - 1;
        if (final) throw error;
        fellBack = { from: attempt, trouble: error };
      }
    }
  }

  async #attempt(model, { backend, threads }) {
    this.stop();
    if (backend === "webgpu" && !(await navigator.gpu?.requestAdapter())) throw new Trouble("webgpu", "no adapter");
    this.#spawn();
    let timer;
    const tooLate = new Promise((_, reject) => {
      this.#onStage = (stage) => {
        if (stage !== "preparing") return;
        timer = setTimeout(() => reject(new Trouble("timeout")), START_TIMEOUT_MS[backend]);
      };
    });
    try {
      return await Promise.race([this.#ask("start", { model, backend, threads }), tooLate]);
    } finally {
      clearTimeout(timer);
    }
  }

  #spawn() {
    const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module", name: "delta-engine" });
    worker.onmessage = ({ data }) => this.#receive(data);
    worker.onerror = (event) => this.#fail(new Trouble("runtime", event.message));
    worker.onmessageerror = () => this.#fail(new Trouble("crash"));
    this.#worker = worker;
  }

  #receive({ id, result, trouble, progress }) {
    if (progress) {
      this.#onStage(progress.stage);
      this.#onProgress(progress);
      return;
    }
    const { resolve, reject } = this.#pending.get(id) ?? {};
    this.#pending.delete(id);
    trouble ? reject?.(Trouble.from(trouble)) : resolve?.(result);
  }

  #fail(trouble) {
    for (const { reject } of this.#pending.values()) reject(trouble);
    this.#pending.clear();
  }

  #ask(command, body, transfer = []) {
    if (!this.#worker) return Promise.reject(new Trouble("crash", "not started"));
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#pending.set(id, { resolve, reject });
      this.#worker.postMessage({ id, command, body }, transfer);
    });
  }

  /** Disparity of an ImageBitmap or VideoFrame, which is handed over. */
  predict(source, live = false) {
    return this.#ask("predict", { source, live }, [source]);
  }

  /** A PNG of the last answer: "depth", "depth16" or "pair". */
  render(kind, colormap) {
    return this.#ask("render", { kind, colormap });
  }

  forget() {
    return this.#ask("forget");
  }

  stop() {
    this.#worker?.terminate();
    this.#worker = null;
    this.#fail(new Trouble("crash", "stopped"));
  }
}
