"""The README of a bundle: what a person needs who has the folder and nothing else."""

from pathlib import Path

from delta.bundle import SIDECAR, BundleCard, ModelFile
from delta.files import write_text

PAGE = """# {title}

Depth from one photo, distilled by Delta from {teacher}. Licence: {licence}.

| file | input | batch | precision | size | against the student, {n_images} photos | digest (SHA-256) |
|---|---|---|---|---|---|---|
{rows}

`{sidecar}` says the same and more to a program.

## Input and output

`{input_name}`: {input_dtype}, {layout}, {channels} in [{low:g}, {high:g}], resized to the graph's size ({resize}).
No further normalization: mean {mean}, standard deviation {std}.

`{output_name}`: {output_dtype}, {output_layout}. {meaning}.

```python
import numpy as np, onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("{first}", providers=["CPUExecutionProvider"])
photo = Image.open("photo.jpg").convert("RGB").resize(({width}, {height}), Image.Resampling.BICUBIC)
pixels = np.asarray(photo, np.float32).transpose(2, 0, 1)[None] / 255
disparity = session.run(["{output_name}"], {{"{input_name}": pixels}})[0][0]  # ({height}, {width}), larger is nearer
```

With Delta: `delta predict . PHOTOS -o depth`, and `delta verify . RUN PHOTOS` measures again what the table says.

## Which file

- **fp32**: CPUs, XNNPACK, onnxruntime-web, and CoreML (MLProgram, one partition), which computes in half precision
  by itself.
- **packed**: fp32 in half the bytes: large weights are stored in half precision and cast back as the file is loaded.
- **fp16**: GPUs and neural engines that want half the bytes. A CPU casts back and forth: slower there.
- **int8**: static QDQ on the convolutions, a scale a channel, uint8 activations. For CPUs with int8 dot products,
  NNAPI and QNN; not for CoreML. Whether it is faster depends on the chip: measure it.
- ONNX opset 18, IR version 8: onnxruntime 1.14 or newer by the format, tried with 1.20 and newer.

## Made from

Student {encoder} with the {decoder} decoder, {parameters:.2f} M parameters, training {fingerprint}, commit {commit}.
{agreement}
"""


def write_readme(folder: Path, card: BundleCard) -> Path:
    """Write `README.md` into a bundle."""
    student, first = card.student, card.models[0]
    agreement = student.get("agreement", {})
    said = ", ".join(f"{name} {value:.3f}" for name, value in agreement.items() if name != "n")
    page = PAGE.format(
        title=f"A depth model of {student['parameters'] / 1e6:.1f} M parameters",
        teacher=card.teacher,
        licence=card.licence,
        n_images=first.receipt["measured"][0]["n_images"],
        rows="\n".join(_row(model) for model in card.models),
        sidecar=SIDECAR,
        input_name=card.input.name,
        input_dtype=card.input.dtype,
        layout=card.input.layout,
        channels=card.input.channels,
        low=card.input.range[0],
        high=card.input.range[1],
        resize=card.input.resize,
        mean=list(card.input.mean),
        std=list(card.input.std),
        output_name=card.output.name,
        output_dtype=card.output.dtype,
        output_layout=card.output.layout,
        meaning=card.output.meaning[:1].upper() + card.output.meaning[1:],
        first=first.file,
        height=first.size_px[0],
        width=first.size_px[1],
        encoder=student["config"]["encoder"],
        decoder=student["config"]["decoder"],
        parameters=student["parameters"] / 1e6,
        fingerprint=student["fingerprint"][:12],
        commit=student["commit"][:12] or "unknown",
        agreement=f"Agreement with its teacher on {agreement['n']:.0f} held-out photos: {said}." if said else "",
    )
    return write_text(folder / "README.md", page)


def _row(model: ModelFile) -> str:
    measured = model.receipt["measured"][0]
    found = (
        f"error {measured['max_relative']:.1e} of the range at most"
        if model.precision == "fp32"
        else f"delta1 changes by {measured['delta1_change']:.2%}"
    )
    height, width = model.size_px
    size = f"{model.bytes / 1e6:.2f} MB"
    digest = model.sha256[:16]
    return f"| `{model.file}` | {height}x{width} | {model.batch} | {model.precision} | {size} | {found} | `{digest}…` |"
