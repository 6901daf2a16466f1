/* Installing, working offline and updating: the page's side of the service worker. */

/** Register the service worker and say how far it is: "none", "saving", "ready", "update". */
export async function registerWorker(onState) {
  if (!("serviceWorker" in navigator) || !isSecureContext) return onState("none");
  try {
    const registration = await navigator.serviceWorker.register(new URL("./sw.js", import.meta.url), { type: "classic" });
    watch(registration, onState);
  } catch {
    onState("none");
  }
}

function watch(registration, onState) {
  const follow = (worker, isUpdate) => {
    if (!worker) return;
    const tell = () => {
      if (worker.state === "installed" && isUpdate) onState("update", () => activate(worker));
      else if (worker.state === "activated") onState("ready");
      else if (worker.state === "redundant" && !registration.active) onState("none");
    };
    worker.addEventListener("statechange", tell);
    tell();
  };
  if (registration.active) onState("ready");
  else onState("saving");
  follow(registration.waiting ?? registration.installing, Boolean(registration.active));
  registration.addEventListener("updatefound", () => follow(registration.installing, Boolean(registration.active)));
}

function activate(worker) {
  navigator.serviceWorker.addEventListener("controllerchange", () => location.reload(), { once: true });
  worker.postMessage("activate");
}

/** Offer to install where the browser does; `onOffer` gets a function that asks, or null once done. */
export function watchInstall(onOffer) {
  addEventListener("beforeinstallprompt", (event) => {
    event.preventDefault();
    onOffer(async () => {
      event.prompt();
      await event.userChoice;
      onOffer(null);
    });
  });
  addEventListener("appinstalled", () => onOffer(null));
}
