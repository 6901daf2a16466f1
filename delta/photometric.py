"""What happens to the student's pixels alone: color, blur, noise, JPEG, CutMix. The teacher saw the clean photo.

Everything random was drawn before, image by image, on the CPU: a share of a batch is changed as in the whole of it.
"""

import io
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from delta.augment import AugmentConfig
from delta.config import Config

Images = Float[Tensor, "b 3 s s"]
BLUR_KERNEL, BLUR_SIGMA = [5, 5], [1.2]


class ColorDraws(Config, frozen=True, kw_only=True):
    """Uniform numbers in [0, 1) "b 9" (one for each change, in order of use) and a seed an image for its noise."""

    chances: Tensor
    seeds: Tensor

    def rows(self, rows: slice) -> "ColorDraws":
        """Take some images' draws."""
        return ColorDraws(chances=self.chances[rows], seeds=self.seeds[rows])


def draw_color(count: int, config: AugmentConfig, generator: torch.Generator) -> ColorDraws:
    """Draw for each image; what `config` turns off is drawn as well, so that turning it off changes nothing else."""
    return ColorDraws(
        chances=torch.rand(count, 9, generator=generator),
        seeds=torch.randint(2**62, (count,), generator=generator),
    )


def distort(image: Images, draws: ColorDraws, config: AugmentConfig) -> Images:
    """Apply jitter, gray, blur, noise and JPEG, in the order in which a camera would."""
    chance = draws.chances.T.tolist()
    image = _jitter(image, draws.chances.to(image), config)
    if config.hue > 0:
        image = torch.stack([vision.adjust_hue(one, config.hue * (2 * at - 1)) for one, at in _each(image, chance[3])])
    for at, probability, change in ((chance[4], config.gray, _to_gray), (chance[5], config.blur, _blur)):
        chosen = [index for index, each in enumerate(at) if each < probability]
        if chosen:
            image = image.index_copy(0, torch.tensor(chosen, device=image.device), change(image[chosen]))
    if config.noise > 0:
        image = _add_noise(image, draws.chances[:, 6].to(image) * config.noise, draws.seeds.tolist())
    if config.jpeg > 0:
        low, high = config.jpeg_quality
        ones = zip(image, chance[7], chance[8], strict=True)
        image = torch.stack(
            [_jpeg(one, round(low + (high - low) * q)) if at < config.jpeg else one for one, at, q in ones]
        )
    return image


def cut_mix(image: Images, boxes: Float[Tensor, "b 4"]) -> tuple[Images, Bool[Tensor, "b s s"]]:
    """Paste each image's box [left, top, right, bottom; 0 to 1] from its neighbor, and say which pixels that covers.

    Neighbors are 0 and 1, 2 and 3, …: a share of a batch with even numbers mixes as the whole (Yun et al., "CutMix").
    """
    count, side = image.shape[0], image.shape[-1]
    if not boxes.any():
        return image, torch.zeros(count, side, side, dtype=torch.bool, device=image.device)
    left, top, right, bottom = (boxes.to(image.device) * side).round().T[:, :, None]
    at = torch.arange(side, device=image.device)
    covered = ((at >= top) & (at < bottom))[:, :, None] & ((at >= left) & (at < right))[:, None, :]
    neighbor = (torch.arange(count, device=image.device) ^ 1).clamp(max=count - 1)
    return image[neighbor].where(covered[:, None], image), covered


def _jitter(image: Images, chances: Float[Tensor, "b 9"], config: AugmentConfig) -> Images:
    """Brightness, contrast and saturation as torchvision has them, with a factor an image instead of one for all."""
    if config.brightness > 0:
        image = _blend(image, torch.zeros_like(image), config.brightness, chances[:, 0])
    if config.contrast > 0:
        mean = vision.rgb_to_grayscale(image).mean(dim=(1, 2, 3), keepdim=True)
        image = _blend(image, mean, config.contrast, chances[:, 1])
    if config.saturation > 0:
        image = _blend(image, vision.rgb_to_grayscale(image), config.saturation, chances[:, 2])
    return image


def _blend(image: Images, other: Tensor, strength: float, chance: Float[Tensor, " b"]) -> Images:
    factor = (1 + strength * (2 * chance - 1))[:, None, None, None]
    return (factor * image + (1 - factor) * other).clamp(0, 1)


def _to_gray(image: Images) -> Images:
    return vision.rgb_to_grayscale(image, num_output_channels=3)


def _blur(image: Images) -> Images:
    return vision.gaussian_blur(image, BLUR_KERNEL, BLUR_SIGMA)


def _add_noise(image: Images, sigma: Float[Tensor, " b"], seeds: list[int]) -> Images:
    """Add white noise; torchvision's has no generator, so that a resumed run could not repeat it."""
    generator = torch.Generator(image.device)
    noise = [torch.randn(image.shape[1:], generator=generator.manual_seed(s), device=image.device) for s in seeds]
    return (image + sigma[:, None, None, None] * torch.stack(noise)).clamp(0, 1)


def _jpeg(image: Float[Tensor, "3 s s"], quality: int) -> Float[Tensor, "3 s s"]:
    """Code and decode by Pillow: torchvision 0.29 has deprecated its own coder."""
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    coded = io.BytesIO()
    Image.fromarray(pixels).save(coded, "JPEG", quality=quality)
    decoded = torch.from_numpy(np.array(Image.open(coded))).to(image.device)
    return decoded.permute(2, 0, 1).to(torch.float32) / 255


def _each(image: Images, numbers: list[float]) -> Iterator[tuple[Tensor, float]]:
    return zip(image, numbers, strict=True)
