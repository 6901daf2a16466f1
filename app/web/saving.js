/* What a person keeps: the names of files, their download, and the system's way to share them. */

const NAMES = { depth: "depth", depth16: "depth-16bit", pair: "photo-and-depth" };

/** Name a file of this kind after its picture, with letters, digits, _ and - alone. */
export function fileName(picture, kind) {
  const stem = picture.replace(/\.\w+$/, "").replace(/[^\p{L}\p{N}_-]+/gu, "-");
  return `${stem}-${NAMES[kind]}.png`;
}

export function download(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Hand a picture to the system; that a person thinks better of it is no error. */
export async function share(blob, name) {
  const file = new File([blob], name, { type: "image/png" });
  await navigator.share({ files: [file], title: "Depth" }).catch((error) => {
    if (error.name !== "AbortError") throw error;
  });
}

export function canShareFiles() {
  const file = new File([new Uint8Array(1)], "depth.png", { type: "image/png" });
  return Boolean(navigator.canShare?.({ files: [file] }));
}
