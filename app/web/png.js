/* PNG files from flat bytes: 8-bit RGB and 16-bit gray, which no canvas can write. The browser compresses. */

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const GRAY = 0;
const RGB = 2;
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

/** 8-bit RGB; `pixels` has 3 bytes each. */
export function encodeRgb(pixels, width, height) {
  return encode(pixels, width, height, { depth: 8, kind: RGB, pixelBytes: 3 });
}

/** 16-bit gray; `levels` is big-endian; `texts` become tEXt chunks. */
export function encodeGray16(levels, width, height, texts = {}) {
  return encode(levels, width, height, { depth: 16, kind: GRAY, pixelBytes: 2, texts });
}

async function encode(bytes, width, height, { depth, kind, pixelBytes, texts = {} }) {
  const header = new DataView(new ArrayBuffer(13));
  header.setUint32(0, width);
  header.setUint32(4, height);
  header.setUint8(8, depth);
  header.setUint8(9, kind);
  const body = await deflate(filterUp(bytes, width * pixelBytes, height));
  return new Blob(
    [
      new Uint8Array(SIGNATURE),
      chunk("IHDR", new Uint8Array(header.buffer)),
      ...Object.entries(texts).map(([key, text]) => chunk("tEXt", latin1(`${key}\0${text}`))),
      chunk("IDAT", body),
      chunk("IEND", new Uint8Array()),
    ],
    { type: "image/png" },
  );
}

/** Every row as its difference to the one above (filter 2), which depth maps like. */
function filterUp(bytes, rowBytes, height) {
  const out = new Uint8Array((rowBytes + 1) * height);
  for (let y = 0, from = 0, to = 0; y < height; y++) {
    out[to++] = 2;
    for (let x = 0; x < rowBytes; x++, from++) out[to++] = bytes[from] - (y ? bytes[from - rowBytes] : 0);
  }
  return out;
}

async function deflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function chunk(name, content) {
  const out = new Uint8Array(12 + content.length);
  const view = new DataView(out.buffer);
  view.setUint32(0, content.length);
  out.set(latin1(name), 4);
  out.set(content, 8);
  view.setUint32(8 + content.length, crc(out.subarray(4, 8 + content.length)));
  return out;
}

function crc(bytes) {
  let value = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) value = CRC_TABLE[(value ^ bytes[i]) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

function latin1(text) {
  return Uint8Array.from(text, (letter) => letter.charCodeAt(0) & 255);
}
