"""The ranges of the augmentation: what may happen to a view, and what to the student's pixels alone."""

from typing import Annotated

from msgspec import Meta

from delta.config import Config

Probability = Annotated[float, Meta(ge=0, le=1)]
Share = Annotated[float, Meta(gt=0, le=1)]
Ratio = Annotated[float, Meta(gt=0)]
Quality = Annotated[int, Meta(ge=1, le=100)]


class AugmentConfig(Config, frozen=True, kw_only=True):
    """Ranges of the augmentation; zeros and [1, 1] turn it off.

    Geometry, for image and targets alike: `crop_scale` is the share of the view's area, `crop_ratio` the aspect ratio's
    range (log-uniform), `rotation_deg` the largest angle. Features and attention follow a crop and a turn up to
    `replay_deg` by interpolation; a mirrored, further turned or mixed image sits out of their terms.

    The student's image alone: jitters are as in torchvision's ColorJitter; `noise` is the largest standard deviation;
    `gray`, `blur`, `jpeg` and `cutmix` are probabilities, `jpeg_quality` a range. What CutMix covers is not valid.
    """

    crop_scale: tuple[Share, Share] = (0.4, 1.0)
    crop_ratio: tuple[Ratio, Ratio] = (0.75, 1.333)
    mirror: Probability = 0.5
    rotation_deg: Annotated[float, Meta(ge=0, le=45)] = 0.0
    replay_deg: Annotated[float, Meta(ge=0, le=45)] = 10.0
    brightness: Probability = 0.3
    contrast: Probability = 0.3
    saturation: Probability = 0.3
    hue: Annotated[float, Meta(ge=0, le=0.5)] = 0.05
    gray: Probability = 0.05
    blur: Probability = 0.1
    noise: Annotated[float, Meta(ge=0, le=0.5)] = 0.0
    jpeg: Probability = 0.0
    jpeg_quality: tuple[Quality, Quality] = (40, 95)
    cutmix: Probability = 0.0


NO_AUGMENTATION = AugmentConfig(
    crop_scale=(1.0, 1.0),
    crop_ratio=(1.0, 1.0),
    mirror=0,
    brightness=0,
    contrast=0,
    saturation=0,
    hue=0,
    gray=0,
    blur=0,
)
