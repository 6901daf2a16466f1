/* The page: what a person does becomes a picture on the stage. Reads top to bottom: start, pictures, camera, saving. */

import { Camera } from "./camera.js";
import { Engine, threadsFor } from "./engine.js";
import { FrameTimes } from "./frames.js";
import { colorTables, exampleList, listModels, modelCard } from "./models.js";
import { loadPrefs, savePref } from "./prefs.js";
import { bindNotice, complain, hideNotice, offerInstall, say, showOffline, showProgress, showReadout } from "./messages.js";
import { registerWorker, watchInstall } from "./pwa.js";
import { Stage, drawRamp } from "./stage.js";
import { Trouble } from "./trouble.js";
import { COLORMAPS, colorTable } from "./disparity.js";
import { bindDrops, bindKeys, bindMenu, bindSheet, find, notify, setTheme, showFacts } from "./controls.js";
import { canShareFiles, download, fileName, share } from "./saving.js";

const BITMAP = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
const LARGEST_PX = 4096; // of a photo's longer side; larger ones are scaled down when they are opened

const body = document.body.dataset;
const prefs = loadPrefs();
const times = new FrameTimes();
const engine = new Engine(showProgress);
const camera = new Camera(find("video"));
let stage;
let models = [];
let photo = null; // { bitmap, name, kind }: what is shown when the camera is not
let ready = null; // promise of the running engine
let running = null; // what showEngine was told
let live = null; // token of the running camera loop

// ── start ──

async function main() {
  setTheme(prefs.theme);
  bindControls();
  registerWorker(showOffline);
  watchInstall(offerInstall);
  try {
    const [tables, list, examples] = await Promise.all([colorTables(), listModels(), exampleList()]);
    models = list;
    stage = new Stage(tables, prefs.renderer);
    showChoices(tables);
    stage.setColors(prefs.map);
    chooseView(prefs.view);
    startEngine();
    showExamples(examples);
    if (examples.length) await openExample(examples[0]);
  } catch (error) {
    complain(error, () => location.reload());
  }
}

function startEngine() {
  body.state = "starting";
  ready = loadModel();
  ready.then(showEngine, (error) => complain(error, startAgain));
  return ready;
}

async function loadModel() {
  const chosen = models.find(({ id }) => id === prefs.model) ?? models[0];
  find("model").value = chosen.id;
  say(`Loading ${chosen.name}`);
  const model = await modelCard(chosen);
  const started = await engine.start({ model, backend: prefs.engine, threads: threadsFor(prefs.threads) });
  return { ...started, model };
}

function showEngine({ backend, threads, digest, model, fellBack }) {
  find("progress").hidden = true;
  Object.assign(body, { engine: backend, threads, model: model.id, digest, fellBack: fellBack?.from.backend ?? "" });
  if (body.state === "starting") body.state = "ready";
  say(`${model.name} is ready`);
  if (fellBack) notify(fellBack.from.backend === "webgpu" ? "WebGPU does not work here: the model runs on the processor" : "Threads do not work here: the model runs on one");
  if (digest === "unchecked") notify("Not a secure page: camera, offline use and the check of the model's digest are off");
  running = { backend, threads, digest, model };
}

async function startAgain() {
  await startEngine();
  if (photo) await predictPhoto();
}

async function restart() {
  const wasLive = Boolean(live);
  stopLive();
  engine.stop();
  await startEngine();
  if (wasLive) await startLive();
  else if (photo) await predictPhoto();
}

// ── pictures ──

async function openExample({ file, title }) {
  const found = await fetch(new URL(file, import.meta.url)).catch(() => null);
  if (!found?.ok) return;
  markExample(file);
  await openPhoto(await found.blob(), title, "example");
}

async function openPhoto(blob, name, kind = "photo") {
  stopLive();
  hideNotice();
  try {
    photo = { bitmap: await decode(blob), name, kind };
  } catch (error) {
    complain(error, () => find("file").click());
    return;
  }
  await predictPhoto();
}

async function decode(blob) {
  let bitmap = await createImageBitmap(blob, BITMAP).catch((error) => {
    throw new Trouble("photo-unreadable", String(error));
  });
  const scale = LARGEST_PX / Math.max(bitmap.width, bitmap.height);
  if (scale < 1) {
    const size = { resizeWidth: Math.round(bitmap.width * scale), resizeHeight: Math.round(bitmap.height * scale) };
    bitmap = await createImageBitmap(bitmap, { ...BITMAP, ...size, resizeQuality: "high" });
  }
  return bitmap;
}

async function predictPhoto() {
  const { bitmap, name, kind, mirrored = false } = photo;
  hideNotice();
  Object.assign(body, { source: kind, result: "none" });
  stage.setMirrored(mirrored);
  stage.showPicture(bitmap, bitmap.width, bitmap.height, name);
  try {
    await ready;
    body.state = "working";
    const answer = await engine.predict(await createImageBitmap(bitmap, BITMAP));
    if (photo?.bitmap !== bitmap || live) return;
    present(answer, name);
  } catch (error) {
    if (photo?.bitmap === bitmap && !live) complain(error, startAgain);
  }
}

function present(answer, name) {
  stage.showAnswer(answer);
  if (stage.view === "slider") stage.sweep();
  const took = sum(answer.times);
  showReadout(`${took.toFixed(0)} ms`, "");
  say(`Depth of ${name} in ${took.toFixed(0)} ms: ${stage.label()}`);
  Object.assign(body, { state: "ready", results: Number(body.results) + 1 });
  times.show(answer.times);
}

// ── camera ──

async function startLive() {
  const token = (live = {});
  hideNotice();
  try {
    say("Starting the camera");
    await ready;
    await camera.open((trouble) => live === token && endLive(trouble));
    if (live !== token) return camera.close();
    await engine.forget();
  } catch (error) {
    if (live === token) endLive(error);
    return;
  }
  Object.assign(body, { source: "live", state: "live", frames: 0, dropped: 0 });
  stage.setMirrored(camera.mirrored);
  showLive(true);
  say("The camera is live");
  runLive(token);
}

/** Frame after frame: the next one is taken when the last is drawn, so a slow device drops frames, not behind. */
async function runLive(token) {
  let kept = null;
  let presentedBefore = 0;
  times.start();
  try {
    while (live === token) {
      const presented = await camera.next();
      if (live !== token) break;
      const began = performance.now();
      const frame = await camera.grab();
      const grabbed = performance.now() - began;
      const answer = await engine.predict(frame.sent, true);
      const drawing = performance.now();
      if (live !== token) {
        frame.kept.close();
        break;
      }
      const coloring = stage.showAnswer(answer, frame.kept);
      kept?.close();
      kept = frame.kept;
      const done = performance.now();
      body.frames = Number(body.frames) + 1;
      body.dropped = Number(body.dropped) + Math.max(0, presented - presentedBefore - 1) * (presentedBefore > 0);
      presentedBefore = presented;
      const stages = { ...answer.times };
      stages.capture += grabbed;
      stages.color += coloring;
      stages.draw = done - drawing - coloring;
      showRate(times.add(stages, done - began), answer);
    }
  } catch (error) {
    if (live === token) endLive(error);
  } finally {
    kept?.close();
  }
}

function endLive(error) {
  stopLive();
  complain(error, startLive);
}

function showRate({ fps, due }, { times: { infer } }) {
  if (!due) return;
  showReadout(`${infer.toFixed(0)} ms`, `${fps.toFixed(1)} fps`);
  body.fps = fps.toFixed(1);
}

function stopLive() {
  if (!live) return;
  live = null;
  camera.close();
  showLive(false);
}

/** Keep the frame that is shown as a photo. */
async function freeze() {
  if (!live || !stage.answer) return;
  const video = find("video");
  const bitmap = await createImageBitmap(video);
  photo = { bitmap, name: "picture from the camera", kind: "photo", mirrored: camera.mirrored };
  stopLive();
  await predictPhoto();
}

async function toggleLive() {
  if (!live) return startLive();
  stopLive();
  if (photo) await predictPhoto();
  else Object.assign(body, { source: "none", state: "ready" });
  say("The camera is off");
}

async function turnCamera() {
  camera.turn();
  if (live) await startLive();
}

// ── saving ──

async function save(kind) {
  if (find("save").disabled) return;
  try {
    const drawn = kind === "share" ? "pair" : kind;
    const name = fileName(photo && !live ? photo.name : "camera", drawn);
    const blob = await engine.render(drawn, body.map);
    if (kind === "share") return await share(blob, name);
    download(blob, name);
    notify(`Saved ${name}`);
  } catch (error) {
    complain(error, () => save(kind));
  }
}

// ── controls ──

function showLive(on) {
  find("live").querySelector("use").setAttribute("href", on ? "#i-stop" : "#i-camera");
  find("live").querySelector("span").textContent = on ? "Stop" : "Camera";
  find("live").setAttribute("aria-label", on ? "Stop the camera" : "Camera");
  find("freeze").hidden = !on;
  find("turn").hidden = !on || !camera.canTurn;
  if (!on) find("readout").hidden = true;
}

function showChoices(tables) {
  find("model").replaceChildren(...models.map(({ id, name }) => new Option(name, id)));
  for (const name of COLORMAPS) {
    const radio = document.querySelector(`#maps [value="${name}"]`);
    drawRamp(radio.nextElementSibling, colorTable(tables[name]));
    radio.checked = name === prefs.map;
  }
  find("engine").value = prefs.engine;
  find("threads").value = prefs.threads;
  find("engine").options[1].disabled = !navigator.gpu;
  find("engine-note").textContent = navigator.gpu ? "WebGPU is tried, with the processor to fall back on" : "This browser has no WebGPU";
  find("threads-note").textContent = crossOriginIsolated ? "Up to four" : "One, until this page is opened again";
  find("threads").disabled = !crossOriginIsolated;
  find("share").hidden = !canShareFiles();
}

function showExamples(examples) {
  find("examples").replaceChildren(
    ...examples.map((example) => {
      const button = Object.assign(document.createElement("button"), { type: "button" });
      const image = Object.assign(new Image(), { src: new URL(example.thumb, import.meta.url).href, alt: example.title });
      button.dataset.file = example.file;
      button.append(image);
      button.addEventListener("click", () => openExample(example));
      return button;
    }),
  );
}

function markExample(file) {
  for (const button of find("examples").children) button.setAttribute("aria-pressed", button.dataset.file === file);
}

function choose(name, value) {
  prefs[name] = value;
  savePref(name, value);
}

function chooseView(view) {
  if (!stage) return;
  const shown = stage.setView(view);
  choose("view", shown);
  document.querySelector(`#views [value="${shown}"]`).checked = true;
}

function chooseMap(map) {
  if (!stage) return;
  choose("map", map);
  stage.setColors(map);
  document.querySelector(`#maps [value="${map}"]`).checked = true;
}

function bindControls() {
  find("open").addEventListener("click", () => find("file").click());
  find("file").addEventListener("change", ({ target }) => {
    if (target.files[0]) openPhoto(target.files[0], target.files[0].name);
    target.value = "";
  });
  find("live").addEventListener("click", toggleLive);
  find("freeze").addEventListener("click", freeze);
  find("turn").addEventListener("click", turnCamera);
  find("views").addEventListener("change", ({ target }) => chooseView(target.value));
  find("maps").addEventListener("change", ({ target }) => chooseMap(target.value));
  for (const name of ["model", "engine", "threads"]) {
    find(name).addEventListener("change", ({ target }) => {
      choose(name, target.value);
      hideNotice();
      restart().catch(() => {}); // told by startEngine
    });
  }
  find("theme").addEventListener("click", nextTheme);
  bindNotice();
  bindMenu(save);
  bindSheet(() => running && showFacts(running, body));
  bindKeys({ open: () => find("file").click(), toggleLive, freeze, save: () => save("depth"), chooseView, nextMap, nextTheme });
  bindDrops((file) => openPhoto(file, file.name));
}

function nextTheme() {
  const order = ["auto", "light", "dark"];
  choose("theme", order[(order.indexOf(prefs.theme) + 1) % 3]);
  setTheme(prefs.theme);
}

function nextMap() {
  chooseMap(COLORMAPS[(COLORMAPS.indexOf(body.map) + 1) % COLORMAPS.length]);
}

function sum(stages) {
  return Object.values(stages).reduce((total, ms) => total + ms, 0);
}

main();
