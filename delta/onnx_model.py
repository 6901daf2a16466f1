"""An exported student as a file: what it says about itself, and how it is opened. Knows no torch and no onnx."""

import contextlib
import ctypes
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import onnxruntime

from delta.config import Config
from delta.errors import DeltaError

FORMAT = "delta-onnx"
FORMAT_VERSION = 1
METADATA_PREFIX = "delta."
INPUT_NAME = "image"  # float32 1x3xHxW, RGB in [0, 1]
OUTPUT_NAME = "disparity"  # float32 1xHxW, larger is nearer
DYNAMIC_BATCH = "batch"  # the name of the first dimension where any number of images may be given
RECEIPT_KEY = "receipt"
EXPORT_AGAIN = "`delta export` writes such files"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
NVIDIA = (PROVIDERS["cuda"], PROVIDERS["tensorrt"])
CARD_TEXTS = ("encoder", "teacher", "commit", "fingerprint", "precision", RECEIPT_KEY)


class ModelCard(Config, frozen=True, kw_only=True):
    """What an exported model says about itself, from the ONNX metadata `delta.*`."""

    format_version: int
    size_px: tuple[int, int]  # height, width of the graph
    dynamic_batch: bool = False  # else the graph takes one image
    precision: str = "fp32"
    encoder: str = ""
    teacher: str = ""
    commit: str = ""
    fingerprint: str = ""  # of the training that made the weights
    receipt: str = ""  # JSON of `delta.receipt.Receipt`: what a verification found
    extra: dict[str, str] = msgspec.field(default_factory=dict)  # what else the exporter wrote


def providers_named(names: Sequence[str]) -> list[str]:
    """Turn "cpu", "cuda" and "tensorrt" into onnxruntime's names; its own names stay."""
    return list(dict.fromkeys(PROVIDERS.get(name.lower(), name) for name in names))


def read_model_card(path: Path) -> ModelCard:
    """Read what a model says about itself, without preparing it to run.

    Raises:
        DeltaError: missing, damaged, not Delta's, or of a newer format.
    """
    options = _quiet_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _card_of(_load(path, ("CPUExecutionProvider",), options), path)


def open_session(path: Path, providers: Sequence[str], threads: int) -> tuple[onnxruntime.InferenceSession, ModelCard]:
    """Open a model to run on the first of `providers`, with `threads` CPU threads (0: one a core).

    Raises:
        DeltaError: the file is missing, damaged or not Delta's, or the first provider would not be used.
    """
    _require_providers(providers)
    options = _quiet_options()
    options.intra_op_num_threads = threads
    session = _load(path, providers, options)
    used = session.get_providers()[0]
    if used != providers[0]:  # onnxruntime goes on with the CPU, without an error
        raise DeltaError(
            f"{providers[0]} was asked for, but onnxruntime would run on {used}",
            "install the libraries it needs, or ask for CPUExecutionProvider",
        )
    return session, _card_of(session, path)


def _load(path: Path, providers: Sequence[str], options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    if not path.is_file():
        raise DeltaError(f"there is no model {path}", EXPORT_AGAIN)
    # On the GPU TF32 rounds to 10 bits unless told not to: 8.8e-4 instead of 2.7e-6 (microsoft/onnxruntime#19288).
    settings = [{"use_tf32": "0"} if provider == "CUDAExecutionProvider" else {} for provider in providers]
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=list(providers), provider_options=settings, enable_fallback=0
        )
    except Exception as error:  # onnxruntime's exceptions share no narrower base
        raise DeltaError(f"{path} is damaged or not an ONNX model", EXPORT_AGAIN) from error


def _quiet_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes back as an exception, and is said once
    return options


def _require_providers(providers: Sequence[str]) -> None:
    available = onnxruntime.get_available_providers()
    if not providers:
        raise DeltaError("no execution provider was named", f"name one of {', '.join(available)}")
    for provider in providers:
        if provider not in available:
            gpu = " (pip install onnxruntime-gpu, without onnxruntime beside it)" if provider in NVIDIA else ""
            raise DeltaError(f"this onnxruntime has no {provider}", f"it has {', '.join(available)}{gpu}")
    if providers[0] in NVIDIA:
        _load_cuda(providers[0])


def _load_cuda(provider: str) -> None:
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        raise DeltaError(
            f"{provider} was asked for, but there is no NVIDIA driver here", "ask for CPUExecutionProvider"
        ) from None
    if provider == PROVIDERS["tensorrt"]:  # it has no option for TF32, only this switch of the CUDA libraries
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find, needed or not
        onnxruntime.preload_dlls()  # without it the CUDA libraries of pip packages are not found


def _card_of(session: onnxruntime.InferenceSession, path: Path) -> ModelCard:
    try:
        metadata = dict(session.get_modelmeta().custom_metadata_map)
    except UnicodeDecodeError as error:
        raise DeltaError(f"{path} is damaged: its metadata is not text", EXPORT_AGAIN) from error
    if metadata.get(f"{METADATA_PREFIX}format") != FORMAT:
        raise DeltaError(f"{path} is ONNX, but no export of Delta's", EXPORT_AGAIN)
    card = _parse_card(metadata, path)
    _require_graph_of(card, session, path)
    return card


def _parse_card(metadata: Mapping[str, str], path: Path) -> ModelCard:
    fields = {key.removeprefix(METADATA_PREFIX): text for key, text in metadata.items()}
    del fields["format"]
    version = fields.pop("format_version", "")
    if version.isdecimal() and int(version) > FORMAT_VERSION:
        raise DeltaError(
            f"{path} has format version {version}; this Delta reads version {FORMAT_VERSION}",
            "pip install --upgrade delta-depth",
        )
    dynamic_batch = fields.pop("batch", "1") == DYNAMIC_BATCH
    texts = {name: fields.pop(name) for name in CARD_TEXTS if name in fields}
    try:
        size_px = (int(fields.pop("height_px")), int(fields.pop("width_px")))
        return ModelCard(
            format_version=int(version), size_px=size_px, dynamic_batch=dynamic_batch, extra=fields, **texts
        )
    except (KeyError, ValueError) as error:
        raise DeltaError(f"{path} is damaged: its metadata gives no version and size", EXPORT_AGAIN) from error


def _require_graph_of(card: ModelCard, session: onnxruntime.InferenceSession, path: Path) -> None:
    batch = DYNAMIC_BATCH if card.dynamic_batch else 1
    expected = {INPUT_NAME: [batch, 3, *card.size_px], OUTPUT_NAME: [batch, *card.size_px]}
    found = {end.name: end.shape for end in (*session.get_inputs(), *session.get_outputs())}
    if found != expected:
        raise DeltaError(f"{path} does not fit its metadata: it has {found} instead of {expected}", EXPORT_AGAIN)
