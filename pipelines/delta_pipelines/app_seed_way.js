// How the seed of this project handled a frame: nested lists in, nested lists out, and a PNG between model and screen.
// `delta bench app` runs it beside the app's own way; the model is left out, as it is the same for both.
async ({ frames, side, colors }) => {
  const stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
  const video = Object.assign(document.createElement("video"), { srcObject: stream, muted: true });
  await video.play();
  const table = colors.map((color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)));
  const measured = [];
  for (let frame = 0; frame < frames; frame++) {
    await new Promise((resolve) => video.requestVideoFrameCallback(resolve));
    const stages = {};
    let since = performance.now();
    const clock = (stage) => {
      const now = performance.now();
      stages[stage] = now - since;
      since = now;
    };
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(video, 0, 0);
    const image = context.getImageData(0, 0, canvas.width, canvas.height);
    clock("capture");
    const small = resize(image, side);
    clock("resize");
    const input = [[0, 1, 2].map((channel) => small.map((row) => row.map((pixel) => pixel[channel] / 255)))];
    clock("normalize");
    const depth = input[0][0].map((row, y) => row.map((value, x) => value + (x + y) / side)); // in the model's place
    since = performance.now();
    const flat = depth.flat();
    const low = flat.reduce((a, b) => Math.min(a, b));
    const high = flat.reduce((a, b) => Math.max(a, b));
    const painted = depth.map((row) => row.map((value) => table[Math.round(((value - low) / (high - low)) * 255)]));
    clock("color");
    const shown = new OffscreenCanvas(side, side);
    const drawing = shown.getContext("2d");
    const pixels = drawing.createImageData(side, side);
    painted.forEach((row, y) => row.forEach((color, x) => pixels.data.set([...color, 255], 4 * (y * side + x))));
    drawing.putImageData(pixels, 0, 0);
    const bitmap = await createImageBitmap(await shown.convertToBlob({ type: "image/png" }));
    drawing.drawImage(bitmap, 0, 0);
    clock("draw");
    measured.push(stages);
  }
  for (const track of stream.getTracks()) track.stop();
  return measured;

  function resize({ data, width, height }, to) {
    return Array.from({ length: to }, (_, y) =>
      Array.from({ length: to }, (_, x) => {
        const [sx, sy] = [((x + 0.5) * width) / to - 0.5, ((y + 0.5) * height) / to - 0.5];
        const [x0, y0] = [Math.max(0, Math.floor(sx)), Math.max(0, Math.floor(sy))];
        const [x1, y1] = [Math.min(width - 1, x0 + 1), Math.min(height - 1, y0 + 1)];
        const at = (px, py, channel) => data[4 * (py * width + px) + channel];
        return [0, 1, 2].map((channel) => {
          const top = at(x0, y0, channel) + (at(x1, y0, channel) - at(x0, y0, channel)) * (sx - x0);
          const bottom = at(x0, y1, channel) + (at(x1, y1, channel) - at(x0, y1, channel)) * (sx - x0);
          return top + (bottom - top) * (sy - y0);
        });
      }),
    );
  }
}
