/* What the page tells a person: a line, a notice with a way out, how far a download is, how long a picture took. */

import { find, notify } from "./controls.js";
import { asTrouble } from "./trouble.js";

const body = document.body.dataset;
let retry = null; // what "Try again" does

export function say(text) {
  find("state").textContent = text;
}

/** Say what went wrong and what helps; `again` is what "Try again" does. */
export function complain(error, again) {
  const trouble = asTrouble(error);
  find("progress").hidden = true;
  Object.assign(body, { state: "error", error: trouble.code });
  find("notice-title").textContent = trouble.message;
  find("notice-hint").textContent = trouble.hint;
  find("notice").hidden = false;
  retry = again;
  say("");
  console.info(`delta: ${trouble.code}: ${trouble.detail}`);
}

export function hideNotice() {
  find("notice").hidden = true;
  delete body.error;
  if (body.state === "error") body.state = "ready";
}

export function showProgress({ stage: step, share }) {
  const bar = find("progress");
  bar.hidden = false;
  bar.setAttribute("aria-valuenow", Math.round(100 * (step === "preparing" ? 1 : share)));
  bar.firstElementChild.style.setProperty("--share", `${step === "preparing" ? 100 : 100 * share}%`);
  if (step === "preparing") say("Preparing the model");
}

export function showOffline(state, activate) {
  body.offline = state;
  if (state === "update") notify("A new version is here", "Reload", activate);
}

export function offerInstall(ask) {
  find("install").hidden = !ask;
  find("install").onclick = ask;
}

export function showReadout(took, rate) {
  find("readout").hidden = false;
  find("ms").textContent = took;
  find("fps").textContent = rate;
  find("rate").textContent = `${took} ${rate}`;
  find("save").disabled = false;
}

export function bindNotice() {
  find("notice-close").addEventListener("click", hideNotice);
  find("notice-retry").addEventListener("click", () => {
    hideNotice();
    Promise.resolve(retry?.()).catch(() => {}); // told already
  });
}
