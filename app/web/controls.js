/* Buttons, menus, keys and messages: nothing here knows what a picture is. */

export const find = (id) => document.getElementById(id);

const THEMES = { auto: "as the system", light: "light", dark: "dark" };
const DARK_WHEN = { auto: "(prefers-color-scheme: dark)", light: "not all", dark: "all" };
const GROUNDS = { light: "#f3f2ee", dark: "#0d0e12" };

export function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  find("dark").media = DARK_WHEN[theme];
  find("theme").setAttribute("aria-label", `Theme: ${THEMES[theme]}`);
  find("theme").querySelector("use").setAttribute("href", `#i-${theme}`);
  for (const meta of document.querySelectorAll('[name="theme-color"]')) {
    meta.content = GROUNDS[theme] ?? GROUNDS[meta.media.includes("dark") ? "dark" : "light"];
  }
}

let toastTimer;

/** Show a line for a while, or until its button is pressed. */
export function notify(text, action, act) {
  const button = find("toast-act");
  find("toast-text").textContent = text;
  button.hidden = !action;
  button.textContent = action ?? "";
  button.onclick = () => {
    find("toast").hidden = true;
    act();
  };
  find("toast").hidden = false;
  clearTimeout(toastTimer);
  if (!action) toastTimer = setTimeout(() => (find("toast").hidden = true), 5000);
}

export function bindMenu(choose) {
  const [button, menu] = [find("save"), find("save-menu")];
  const items = () => [...menu.querySelectorAll("button:not([hidden])")];
  const set = (open) => {
    menu.hidden = !open;
    button.setAttribute("aria-expanded", open);
  };
  button.addEventListener("click", () => {
    set(menu.hidden);
    if (!menu.hidden) items()[0].focus();
  });
  menu.addEventListener("click", ({ target }) => {
    const item = target.closest("[data-save]");
    if (!item) return;
    set(false);
    button.focus();
    choose(item.dataset.save);
  });
  menu.addEventListener("keydown", (event) => {
    const all = items();
    const at = all.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      all.at(to % all.length).focus();
    } else if (event.key === "Escape" || event.key === "Tab") {
      set(false);
      button.focus();
    }
  });
  addEventListener("pointerdown", ({ target }) => {
    if (!menu.hidden && !menu.contains(target) && !button.contains(target)) set(false);
  });
}

export function bindSheet(onOpen) {
  const sheet = find("sheet");
  find("more").addEventListener("click", () => {
    onOpen();
    sheet.showModal();
  });
  sheet.addEventListener("click", ({ target }) => target === sheet && sheet.close());
}

export function bindKeys({ open, toggleLive, freeze, save, chooseView, nextMap, nextTheme }) {
  const views = [...document.querySelectorAll("#views input")];
  const acts = { o: open, c: toggleLive, " ": freeze, s: save, m: nextMap, t: nextTheme };
  addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input:not([type=radio]), select, textarea, dialog, [role=menu]");
    const pressing = event.key === " " && event.target.closest?.("button, a, input");
    if (typing || pressing || event.ctrlKey || event.metaKey || event.altKey || find("sheet").open) return;
    const view = views[Number(event.key) - 1];
    const act = view ? () => view.disabled || chooseView(view.value) : acts[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
  });
}

/** Take in a file that is dropped on the page or pasted. */
export function bindDrops(open) {
  const dropping = (on) => document.body.classList.toggle("dropping", on);
  const take = (data) => {
    const file = [...(data?.files ?? [])][0];
    if (file) open(file);
  };
  addEventListener("dragover", (event) => {
    event.preventDefault();
    dropping(true);
  });
  addEventListener("dragleave", (event) => event.relatedTarget || dropping(false));
  addEventListener("drop", (event) => {
    event.preventDefault();
    dropping(false);
    take(event.dataTransfer);
  });
  addEventListener("paste", (event) => take(event.clipboardData));
}

const OFFLINE = { ready: "ready", saving: "being saved", update: "ready, and a new version is here" };

export function showFacts({ backend, threads, digest, model }, { painter, offline }) {
  const facts = {
    Model: model.name,
    Input: `${model.size_px[1]} × ${model.size_px[0]} px, ${model.precision}`,
    Digest: digest === "checked" ? "as promised by delta.json" : "not checked (the page is not secure)",
    Runs: `${backend === "webgpu" ? "WebGPU" : "WebAssembly"}, ${threads} thread${threads === 1 ? "" : "s"}`,
    Draws: painter === "webgl2" ? "WebGL2" : "canvas",
    Offline: OFFLINE[offline] ?? "not here",
  };
  find("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

export function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}
