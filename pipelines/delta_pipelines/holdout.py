"""Held-out photos: how well a student agrees with the teacher on them, beside the mean map, and as a picture."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.nn import functional

from delta import images
from delta.colormaps import colorize
from delta.config import Config
from delta.metrics import Agreement, agreement, align
from delta.panel import save_picture, side_by_side
from delta_cache.reader import Store
from delta_pipelines.feed import Split, read_samples

BATCH, SHOWN = 8, 6
MEAN_MAP_SAMPLES = 2048


class Holdout(Config, frozen=True, kw_only=True):
    """Views and teacher disparity of the held-out photos at the student's size, and the training photos' mean map."""

    photos: np.ndarray
    image: Tensor
    disparity: Tensor
    mean_map: Tensor

    def measure(self, student: nn.Module, device: torch.device) -> Agreement:
        """Agreement of a student with the teacher, per image after alignment."""
        return agreement(_predict(student, self.image, device), self.disparity)

    def baseline(self) -> Agreement:
        """Agreement of the training set's mean disparity map with the teacher: what a student has to beat."""
        return agreement(self.mean_map.expand_as(self.disparity), self.disparity)

    def draw(self, path: Path, student: nn.Module) -> None:
        """Write a picture of photo, teacher and student for the first held-out photos."""
        save_picture(self.panel(student, torch.device("cpu")), path)

    def panel(self, student: nn.Module, device: torch.device) -> UInt8[np.ndarray, "h w 3"]:
        """Draw photo, teacher and student for the first held-out photos."""
        rows = []
        predictions = _predict(student, self.image[:SHOWN], device)
        for photo, teacher, predicted in zip(self.photos, self.disparity, predictions, strict=False):
            scale, shift = align(predicted[None], teacher[None], torch.ones_like(teacher[None], dtype=torch.bool))
            aligned = (predicted * scale + shift).float().numpy()
            low, high = float(teacher.min()), float(teacher.max())
            rows.append([photo, colorize(teacher.numpy(), vmin=low, vmax=high), colorize(aligned, vmin=low, vmax=high)])
        return np.asarray(side_by_side(rows, ["photo", "teacher", "student"]))


def load_holdout(store: Store, split: Split, size_px: int) -> Holdout:
    """Read the held-out samples, resized to `size_px` as prediction resizes photos."""
    data = read_samples(store, split.holdout, ["image", "disparity"])
    photos = np.stack([images.resize(photo, size_px, size_px) for photo in data["image"]])
    return Holdout(
        photos=photos,
        image=torch.from_numpy(np.stack([images.to_tensor_layout(photo) for photo in photos])),
        disparity=_resize(torch.from_numpy(data["disparity"].astype(np.float32)), size_px),
        mean_map=_resize(_mean_map(store, split)[None], size_px),
    )


@torch.inference_mode()
def _predict(student: nn.Module, image: Tensor, device: torch.device) -> Tensor:
    """Disparity of photos, in eval mode and float32; the student's mode is put back."""
    was_training = student.training
    student.eval()
    parts = [student(batch.to(device)).float().cpu() for batch in image.split(BATCH)]
    student.train(was_training)
    return torch.cat(parts)


def _mean_map(store: Store, split: Split) -> Tensor:
    samples, size = split.train[:MEAN_MAP_SAMPLES], store.contract.chunk_samples
    total = torch.zeros(
        next(spec.shape for spec in store.contract.arrays if spec.name == "disparity"), dtype=torch.float64
    )
    for chunk in np.unique(samples // size):
        data = read_samples(store, samples[samples // size == chunk], ["disparity"])
        total += torch.from_numpy(data["disparity"].astype(np.float64)).sum(dim=0)
    return (total / len(samples)).float()


def _resize(disparity: Tensor, size_px: int) -> Tensor:
    resized = functional.interpolate(disparity[:, None], size=(size_px, size_px), mode="bilinear", antialias=True)
    return resized[:, 0].contiguous()
