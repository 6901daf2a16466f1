/* The models of this build: `models.json` lists them, each bundle's own `delta.json` promises sizes and digests. */

import { Trouble } from "./trouble.js";

const at = (path) => new URL(path, import.meta.url).href;

async function json(path) {
  const found = await fetch(at(path)).catch(() => null);
  if (!found?.ok) throw new Trouble("network", path);
  return found.json().catch(() => {
    throw new Trouble("model", `${path} is no JSON`);
  });
}

/** List what the picker offers: id, name, card, file. */
export async function listModels() {
  const { models } = await json("./models.json");
  return models;
}

/** Everything the engine needs to load one: url, bytes, sha256, size_px. */
export async function modelCard({ id, name, card, file }) {
  const { models } = await json(card);
  const found = models.find((model) => model.file === file);
  if (!found) throw new Trouble("model", `${card} does not list ${file}`);
  const { bytes, sha256, size_px, precision } = found;
  return { id, name, url: at(`${card.slice(0, card.lastIndexOf("/") + 1)}${file}`), bytes, sha256, size_px, precision };
}

export const colorTables = () => json("./colormaps.json");
export const exampleList = () => json("./examples/examples.json").catch(() => []);
