"""The student as phones take it: the same numbers from operations that mobile accelerators know.

timm's MobileViT folds patches by transposing tensors of rank 6 and repeats the context vector with Expand; CoreML takes
neither, and hands such a graph back to the CPU in pieces. Here a patch is taken apart by a depthwise convolution with
one-hot kernels and put together by a pixel shuffle, the context vector is broadcast, and the gain and offset of each
group norm move into the convolution behind it. Nothing is approximated; only the order of float32 sums differs.
"""

from typing import Any

import torch
from jaxtyping import Float
from timm.models.mobilevit import MobileVitBlock, MobileVitV2Block
from torch import Tensor, nn
from torch.nn import functional

from delta.student import Student

SIDE = 2  # of a patch; every MobileViT of timm has 2x2
AREA = SIDE * SIDE


class MobileStudent(nn.Module):
    """Images in [0, 1] to disparity, as `Student`; a normalization that changes nothing is left out."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        self.normalizes = bool((student.mean != 0).any() or (student.std != 1).any())

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
        """Predict disparity; `h` and `w` are multiples of 64."""
        pixels = (image - self.student.mean) / self.student.std if self.normalizes else image
        return self.student.decode(self.student.encoder(pixels))[0]


def to_mobile(student: Student) -> MobileStudent:
    """Rewrite the MobileViT blocks of `student`, which must be in eval mode and is taken apart: give a copy.

    Raises:
        RuntimeError: a block is built otherwise than every MobileViT of timm was when this was written.
    """
    for name, module in list(student.named_modules()):
        kind = next((kind for kind in REWRITES if type(module) is kind), None)
        if kind is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(student.get_submodule(parent), leaf, REWRITES[kind](module))
    return MobileStudent(student).eval()


# Below, a timm module that is taken apart is Any: its attributes are Tensor | Module to a type checker.


class MobileV2Block(nn.Module):
    """MobileViTv2's block: local convolutions, then linear attention over the pixels of each place in a patch."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.local = nn.Sequential(block.conv_kxk, block.conv_1x1)
        self.unfold = Unfold(block.conv_1x1.out_channels, block.patch_size)
        self.transformer = nn.Sequential(*(MobileLinearLayer(layer) for layer in block.transformer))
        self.norm = Standardize(block.norm)
        self.project = block.conv_proj
        self.project.conv = absorb_affine(block.conv_proj.conv, block.norm)

    def forward(self, x: Float[Tensor, "b _ h w"]) -> Float[Tensor, "b _ h w"]:
        """Keep the size."""
        patches = self.norm(self.transformer(self.unfold(self.local(x))))
        return self.project(fold(patches, x.shape[2:]))


class MobileLinearLayer(nn.Module):
    """Linear self-attention and a two-layer perceptron, each on standardized input, each added to it."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = Standardize(layer.norm1), Standardize(layer.norm2)
        self.attention = MobileLinearAttention(layer.attn, layer.norm1)
        self.mlp = nn.Sequential(absorb_affine(layer.mlp.fc1, layer.norm2), layer.mlp.act, layer.mlp.fc2)

    def forward(self, x: Float[Tensor, "b c p n"]) -> Float[Tensor, "b c p n"]:
        """Keep the shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MobileLinearAttention(nn.Module):
    """Linear self-attention (Mehta and Rastegari, 2022) whose context vector is broadcast, not repeated."""

    def __init__(self, attention: Any, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.width = attention.embed_dim
        self.qkv = absorb_affine(attention.qkv_proj, norm)
        self.out = attention.out_proj

    def forward(self, x: Float[Tensor, "b c p n"]) -> Float[Tensor, "b c p n"]:
        """Keep the shape."""
        query, key, value = self.qkv(x).split([1, self.width, self.width], dim=1)
        context = (key * query.softmax(dim=-1)).sum(dim=-1, keepdim=True)
        return self.out(functional.relu(value) * context)


class MobileV1Block(nn.Module):
    """MobileViT's first block: full attention among the pixels of each place in a patch."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        if block.conv_fusion is None:
            raise RuntimeError("a MobileViT block without fusion has no mobile form here")
        self.local = nn.Sequential(block.conv_kxk, block.conv_1x1)
        self.unfold = Unfold(block.conv_1x1.out_channels, block.patch_size)
        self.transformer = nn.Sequential(*(MobileLayer(layer) for layer in block.transformer))
        self.norm = block.norm
        self.project, self.fuse = block.conv_proj, block.conv_fusion

    def forward(self, x: Float[Tensor, "b _ h w"]) -> Float[Tensor, "b _ h w"]:
        """Keep the size."""
        patches = self.unfold(self.local(x))
        batch, width, area, count = patches.shape
        tokens = patches.permute(0, 2, 3, 1).reshape(batch * area, count, width)
        tokens = self.norm(self.transformer(tokens))
        patches = tokens.reshape(batch, area, count, width).permute(0, 3, 1, 2)
        return self.fuse(torch.cat([x, self.project(fold(patches, x.shape[2:]))], dim=1))


class MobileLayer(nn.Module):
    """Self-attention and a two-layer perceptron, each on normalized input, each added to it."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.attention = nn.Sequential(layer.norm1, MobileAttention(layer.attn), layer.ls1)
        self.mlp = nn.Sequential(layer.norm2, layer.mlp, layer.ls2)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Keep the shape."""
        x = x + self.attention(x)
        return x + self.mlp(x)


class MobileAttention(nn.Module):
    """Self-attention of rank 4: query, key and value are three products, not slices of one of rank 5."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        plain = (attention.q_norm, attention.k_norm, attention.norm)
        if attention.gate is not None or not all(isinstance(norm, nn.Identity) for norm in plain):
            raise RuntimeError("a gated or normalized attention has no mobile form here")
        self.heads, self.scale, self.out = attention.num_heads, attention.scale, attention.proj
        weights = attention.qkv.weight.detach().chunk(3)
        biases = [None] * 3 if attention.qkv.bias is None else attention.qkv.bias.detach().chunk(3)
        self.query, self.key, self.value = (_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True))

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Keep the shape."""
        query, key, value = (self._split(part(x)) for part in (self.query, self.key, self.value))
        scores = ((query * self.scale) @ key.transpose(2, 3)).softmax(dim=-1)
        return self.out((scores @ value).transpose(1, 2).reshape(x.shape))

    def _split(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b heads n d"]:
        return x.reshape(*x.shape[:2], self.heads, x.shape[2] // self.heads).transpose(1, 2)


class Unfold(nn.Module):
    """Take 2x2 patches apart, "b c h w" to "b c 4 n", by a depthwise convolution with one-hot kernels: no transpose."""

    kernels: Tensor

    def __init__(self, channels: int, patch_size: tuple[int, int]) -> None:
        super().__init__()
        if tuple(patch_size) != (SIDE, SIDE):
            raise RuntimeError(f"patches of {patch_size} have no mobile form here")
        self.channels = channels
        kernels = torch.eye(AREA).view(AREA, 1, SIDE, SIDE).repeat(channels, 1, 1, 1)
        self.register_buffer("kernels", kernels, persistent=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 4 n"]:
        """Put the four places of a patch side by side."""
        places = functional.conv2d(x, self.kernels, stride=SIDE, groups=self.channels)
        return places.reshape(len(x), self.channels, AREA, places.shape[2] * places.shape[3])


class Standardize(nn.Module):
    """A group norm of one group without its gain and offset, which `absorb_affine` gives to what follows."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        if norm.num_groups != 1:
            raise RuntimeError(f"a norm of {norm.num_groups} groups has no mobile form here")
        self.eps = norm.eps

    def forward(self, x: Float[Tensor, "b c p n"]) -> Float[Tensor, "b c p n"]:
        """Subtract the mean of each image and divide by its deviation."""
        centered = x - _mean(x)
        variance = _mean(centered * centered)
        return centered / (variance + self.eps).sqrt()


def fold(patches: Float[Tensor, "b c 4 n"], size: torch.Size) -> Float[Tensor, "b c h w"]:
    """Undo `Unfold` for maps of `size` (height, width)."""
    batch, channels = patches.shape[:2]
    places = patches.reshape(batch, channels * AREA, size[0] // SIDE, size[1] // SIDE)
    return functional.pixel_shuffle(places, SIDE)


def absorb_affine(convolution: nn.Conv2d, norm: nn.GroupNorm) -> nn.Conv2d:
    """Return the 1x1 convolution that does to standardized input what `convolution` does after `norm`, in float64."""
    weight, gain, offset = (each.detach().double() for each in (convolution.weight, norm.weight, norm.bias))
    bias = weight.flatten(1) @ offset
    if convolution.bias is not None:
        bias = bias + convolution.bias.detach().double()
    absorbed = nn.Conv2d(convolution.in_channels, convolution.out_channels, kernel_size=1)
    absorbed.weight = nn.Parameter((weight * gain[None, :, None, None]).float())
    absorbed.bias = nn.Parameter(bias.float())
    return absorbed


def _mean(x: Float[Tensor, "b c p n"]) -> Float[Tensor, "b 1 1 1"]:
    """The mean of each image, axis by axis: one float32 sum over all would lose digits on flat images (docs/LOG.md)."""
    return x.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True).mean(dim=1, keepdim=True)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight.clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.clone())
    return linear


REWRITES = {MobileVitV2Block: MobileV2Block, MobileVitBlock: MobileV1Block}
