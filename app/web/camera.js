/* The camera: opened with a clear reason when it is not, turned, and read a frame at a time. */

import { Trouble, cameraTrouble } from "./trouble.js";

// A student sees at most 384 px: more pixels from the camera would only be thrown away again.
const SIZE = { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 } };

export class Camera {
  #video;
  #stream = null;
  #device = 0;
  #presented = 0; // frames that the video has shown
  #taken = 0; // what #presented was at the last `next`
  #arrived = () => {};
  facing = "environment";
  canTurn = false;

  constructor(video) {
    this.#video = video;
  }

  get mirrored() {
    return this.#stream?.getVideoTracks()[0]?.getSettings().facingMode !== "environment";
  }

  /** Start, or start anew after `turn`. */
  async open(onLost) {
    this.close();
    if (!navigator.mediaDevices?.getUserMedia) throw new Trouble(isSecureContext ? "camera-none" : "camera-insecure");
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({ video: await this.#wanted(), audio: false });
    } catch (error) {
      throw cameraTrouble(error);
    }
    this.#stream.getVideoTracks()[0].addEventListener("ended", () => onLost(new Trouble("camera-lost")));
    this.#video.srcObject = this.#stream;
    await this.#video.play().catch((error) => {
      throw cameraTrouble(error);
    });
    this.canTurn = (await cameras()).length > 1;
    this.#watch(this.#stream);
  }

  #watch(stream) {
    this.#presented = this.#taken = 0;
    const ask = (note) => {
      if (this.#video.requestVideoFrameCallback) this.#video.requestVideoFrameCallback(note);
      else requestAnimationFrame(() => note(0, { presentedFrames: this.#presented + 1 }));
    };
    const note = (_, { presentedFrames }) => {
      if (this.#stream !== stream) return;
      this.#presented = presentedFrames;
      this.#arrived();
      ask(note);
    };
    ask(note);
  }

  close() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#stream = null;
    this.#video.srcObject = null;
    this.#arrived();
  }

  /** Choose the other side; devices that name no sides take turns. */
  turn() {
    this.facing = this.facing === "environment" ? "user" : "environment";
    this.#device++;
  }

  async #wanted() {
    const known = await cameras();
    const sided = navigator.maxTouchPoints > 0; // phones and tablets know front and back
    if (sided || known.length < 2 || !known[0].deviceId) return { ...SIZE, facingMode: { ideal: this.facing } };
    return { ...SIZE, deviceId: { ideal: known[this.#device % known.length].deviceId } };
  }

  /** Wait for a frame that was not taken yet, or for the camera's end; resolves to how many were presented so far. */
  async next() {
    if (this.#taken === this.#presented) await new Promise((resolve) => (this.#arrived = resolve));
    return (this.#taken = this.#presented);
  }

  /** Take the current frame twice without copying pixels: one to hand to the worker, one to keep. */
  async grab() {
    if (typeof VideoFrame === "function") {
      const frame = new VideoFrame(this.#video);
      return { sent: frame, kept: frame.clone() };
    }
    const [sent, kept] = await Promise.all([createImageBitmap(this.#video), createImageBitmap(this.#video)]);
    return { sent, kept };
  }
}

async function cameras() {
  const devices = (await navigator.mediaDevices.enumerateDevices?.()) ?? [];
  return devices.filter(({ kind }) => kind === "videoinput");
}
