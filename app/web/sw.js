/* The service worker: keeps the files of this build, answers from them, and adds the headers that isolate the page so
 * that threads work on hosts that cannot send them. `delta app build` fills in what the build holds. */

const BUILD = /*! BUILD */ { version: "", core: {}, later: {} }; // path -> SHA-256 (base64) of each file
const CACHE = `delta:${new URL(registration.scope).pathname}`;
const ISOLATION = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};
const FILES = new Map(
  Object.entries({ ...BUILD.core, ...BUILD.later }).map(([path, digest]) => [new URL(path, registration.scope).href, digest]),
);
const INDEX = new URL("./index.html", registration.scope).href;

addEventListener("install", (event) => event.waitUntil(saveCore()));
addEventListener("activate", (event) => event.waitUntil(dropOld().then(() => clients.claim())));
addEventListener("message", ({ data }) => data === "activate" && skipWaiting());
addEventListener("fetch", (event) => {
  const { request } = event;
  const url = new URL(request.url);
  if (request.method !== "GET" || url.origin !== location.origin) return;
  url.search = url.hash = "";
  const href = url.href === registration.scope ? INDEX : url.href;
  if (FILES.has(href)) event.respondWith(fromCache(href).then(isolated));
});

/** Everything but the other models: each file by its digest, so an update fetches only what changed. */
async function saveCore() {
  for (const path of Object.keys(BUILD.core)) await keep(new URL(path, registration.scope).href);
}

/** A file that no longer has its digest is the host's next build: it is passed on, and not kept. */
function fromCache(href) {
  return keep(href).catch(() => fetch(href));
}

/** Return the file from the cache, fetched and checked against its digest if it was not there. */
async function keep(href) {
  const cache = await caches.open(CACHE);
  const key = `${href}?${encodeURIComponent(FILES.get(href))}`;
  const held = await cache.match(key);
  if (held) return held;
  const found = await fetch(href, { cache: "no-cache", integrity: `sha256-${FILES.get(href)}` });
  if (!found.ok) throw new TypeError(`${href}: ${found.status}`);
  await cache.put(key, found.clone());
  return found;
}

async function dropOld() {
  const cache = await caches.open(CACHE);
  const wanted = new Set([...FILES].map(([href, digest]) => `${href}?${encodeURIComponent(digest)}`));
  for (const { url } of await cache.keys()) if (!wanted.has(url)) await cache.delete(url);
}

function isolated(answer) {
  const headers = new Headers(answer.headers);
  for (const [name, value] of Object.entries(ISOLATION)) headers.set(name, value);
  return new Response(answer.body, { status: answer.status, statusText: answer.statusText, headers });
}
