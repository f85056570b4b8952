"""Networks that were trained on photographs and are the same for everybody, whose features images are compared in.

Images go in as 8-bit numbers, as published figures are made: `as_bytes` rounds samples as a PNG file would.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_gen.devices import float32_products

GREY = "grey images, repeated to three equal channels"


def as_bytes(x: Tensor, value_range: tuple[float, float] | None) -> Tensor:
    """Images in the data's own units as uint8: 255 (x - low)/(high - low), rounded, with what lies outside of the range clipped to it.

    Args:
        x: (N, C, H, W), any real type.
        value_range: (low, high), black and white.

    Raises:
        ValueError: an unknown or empty range, or values that are not finite.
    """
    if value_range is None or not value_range[0] < value_range[1]:
        raise ValueError(f"value range {value_range!r}; the values that are black and white are needed to make 8-bit images")
    bad = int((~torch.isfinite(x)).sum()) if x.is_floating_point() else 0
    if bad:
        raise ValueError(f"images hold {bad} NaN or infinite value(s) among {x.numel()}; finite numbers are needed")
    low, high = value_range
    return ((x.double() - low) * (255 / (high - low))).round().clamp(0, 255).to(torch.uint8)


def check_images(shape: tuple[int, ...]) -> str | None:
    """ValueError unless items of this shape are images of 1 or 3 channels; what is done with grey ones, or None."""
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
        raise ValueError(
            f"items of shape {tuple(shape)}; images (1 or 3 channels, height, width) are needed for the features of photographs"
        )
    return GREY if shape[0] == 1 else None


class ImageFeatures(nn.Module):
    """A network of fixed weights that makes features of 8-bit images. A subclass gives `embed` and the class attributes.

    Attributes:
        name: which network and which resizing, in words.
        distance, kernel: what the Frechet and the kernel distance in these features are called.
        width: number of features.
        known: by SHA-256, files of weights whose figures compare with others'.
        sha256: of the file of weights.
    """

    name: ClassVar[str]
    distance: ClassVar[str]
    kernel: ClassVar[str]
    width: ClassVar[int]
    known: ClassVar[Mapping[str, str]] = {}
    sha256: str = ""

    def embed(self, x: Tensor) -> Tensor:
        """(B, width) of images (B, 3, H, W) in 0 .. 255, of the type of the weights."""
        raise NotImplementedError

    def logits(self, features: Tensor) -> Tensor | None:
        """(N, classes) of features, for the Inception Score; None of a network for which none is defined."""
        return None

    @property
    def source(self) -> str:
        """Network and weights in words."""
        which = self.known.get(self.sha256, "unknown here, so that nothing published stands beside them")
        return f"{self.name}; weights of SHA-256 {self.sha256[:16] or 'unknown'}: {which}"

    @torch.no_grad()
    def features(self, images: Tensor, batch_size: int = 32) -> Tensor:
        """Features (N, width), float32 on the CPU, of uint8 images (N, 1 or 3, H, W) on any device; one channel is repeated to three.

        Raises:
            ValueError: another type or shape.
        """
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise ValueError(
                f"images are {images.dtype} of shape {tuple(images.shape)}; uint8 (N, 1 or 3, height, width) is needed: as_bytes"
            )
        check_images(tuple(images.shape[1:]))
        like = next(self.parameters())
        parts = []
        for part in images.split(batch_size):
            if len(part):
                x = part.to(like.device).to(like.dtype).expand(-1, 3, -1, -1)
                with float32_products(False):  # a card would round convolutions to 10 bits of mantissa
                    parts.append(self.embed(x).float().cpu())
        return torch.cat(parts) if parts else torch.empty(0, self.width)


def loaded(network: nn.Module, state: Mapping[str, Tensor], what: str, optional: tuple[str, ...] = ()) -> None:
    """Fill a network with a state dict of the same names and shapes; ValueError, one line, for any that is missing, too many or not finite.

    what: names the weights that are needed. optional: endings of names that may be missing or too many.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in state and not name.endswith(optional)]
    other = [name for name in state if name not in own and not name.endswith(optional)]
    if missing or other:
        found = (
            f"{missing[0]!r} and {len(missing) - 1} more are missing" if missing else f"{other[0]!r} and {len(other) - 1} more are too many"
        )
        raise ValueError(f"{found}: {what} are needed")
    for name, value in own.items():
        if name not in state:
            continue
        given = state[name]
        if given.shape != value.shape:
            raise ValueError(f"{name!r} has shape {tuple(given.shape)}, not {tuple(value.shape)}: {what} are needed")
        if given.is_floating_point() and not bool(torch.isfinite(given).all()):
            raise ValueError(f"{name!r} holds NaN or infinite values: {what} are needed")
        value.copy_(given)


def resize_tensorflow(x: Tensor, size: int) -> Tensor:
    """Images (B, C, H, W) at (B, C, size, size) as TensorFlow 1 resized them: pixel i of the result lies at i H/size of the image.

    Bilinear between the two pixels beside it, the last one repeated, without a filter against aliasing. (PyTorch puts it at
    (i + 1/2) H/size - 1/2; between the two the Frechet distance differs.)
    """
    for axis in (3, 2):
        count = x.shape[axis]
        place = torch.arange(size, device=x.device, dtype=torch.float32) * (count / size)
        low = place.long()
        share = (place - low).to(x.dtype).reshape([size if k == axis else 1 for k in range(4)])
        x = x.index_select(axis, low).lerp(x.index_select(axis, (low + 1).clamp(max=count - 1)), share)
    return x


def resize_pytorch(x: Tensor, size: int) -> Tensor:
    """Images (B, C, H, W) at (B, C, size, size), bilinear with pixel centres, without a filter against aliasing."""
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
