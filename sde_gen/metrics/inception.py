"""Inception-v3 as the Frechet Inception distance is defined on it: the network that TensorFlow published in December 2015.

Its weights come from a file of the user's own (`sde_gen.external.load_features`): the state dict that pytorch-fid and torch-fidelity
distribute, in PyTorch's names.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_gen.metrics.image_features import ImageFeatures, loaded, resize_pytorch, resize_tensorflow

KNOWN = {
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2": "those of 2015-12-05 that pytorch-fid and "
    "torch-fidelity distribute",
}
"""SHA-256 of the files whose figures compare with published ones: pt_inception-2015-12-05-6726825d.pth (pytorch-fid), which is
weights-inception-2015-12-05-6726825d.pth (torch-fidelity)."""
CLASSES, FEATURES, SIZE = 1008, 2048, 299
_EPS = 1e-3  # of the batch norms
_WHAT = "the TensorFlow weights of Inception-v3 of 2015 in PyTorch's names, 1008 classes"


class _Conv(nn.Module):
    """Convolution without bias, batch norm with fixed statistics, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | tuple[int, int] = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _mean_pool(x: Tensor) -> Tensor:
    # TensorFlow's mean at the border is over the pixels that are there.
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _factors(inputs: int, width: int, outputs: int, count: int, vertical_first: bool) -> list[_Conv]:
    """`count` convolutions of 7 x 1 and 1 x 7 in turn."""
    widths = [inputs, *[width] * (count - 1), outputs]
    shapes = [((7, 1), (3, 0)), ((1, 7), (0, 3))]
    order = [shapes[(k + (not vertical_first)) % 2] for k in range(count)]
    return [_Conv(a, b, kernel, padding=padding) for a, b, (kernel, padding) in zip(widths, widths[1:], order, strict=False)]


class _Mixed(nn.Module):
    """Branches side by side, each a chain of convolutions by name; `pool` is the chain that follows a pooling."""

    def __init__(self, chains: Mapping[str, tuple[nn.Module, ...]]) -> None:
        super().__init__()
        self.chains: list[list[str]] = []
        for prefix, layers in chains.items():
            names = [prefix if len(layers) == 1 else f"{prefix}_{k + 1}" for k in range(len(layers))]
            self.chains.append(names)
            for name, layer in zip(names, layers, strict=True):
                self.add_module(name, layer)

    def along(self, x: Tensor, names: list[str]) -> Tensor:
        for name in names:
            x = self.get_submodule(name)(x)
        return x


class _MixedA(_Mixed):
    """35 x 35: 64 + 64 + 96 + pool features."""

    def __init__(self, inputs: int, pool: int) -> None:
        super().__init__(
            {
                "branch1x1": (_Conv(inputs, 64, 1),),
                "branch5x5": (_Conv(inputs, 48, 1), _Conv(48, 64, 5, padding=2)),
                "branch3x3dbl": (_Conv(inputs, 64, 1), _Conv(64, 96, 3, padding=1), _Conv(96, 96, 3, padding=1)),
                "branch_pool": (_Conv(inputs, pool, 1),),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        *plain, pool = self.chains
        return torch.cat([*(self.along(x, names) for names in plain), self.along(_mean_pool(x), pool)], 1)


class _MixedB(_Mixed):
    """35 x 35 to 17 x 17: 384 + 96 + the inputs, pooled."""

    def __init__(self, inputs: int) -> None:
        super().__init__(
            {
                "branch3x3": (_Conv(inputs, 384, 3, stride=2),),
                "branch3x3dbl": (_Conv(inputs, 64, 1), _Conv(64, 96, 3, padding=1), _Conv(96, 96, 3, stride=2)),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*(self.along(x, names) for names in self.chains), F.max_pool2d(x, 3, stride=2)], 1)


class _MixedC(_Mixed):
    """17 x 17: four times 192, with 7 x 7 in factors."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(
            {
                "branch1x1": (_Conv(inputs, 192, 1),),
                "branch7x7": (_Conv(inputs, width, 1), *_factors(width, width, 192, 2, vertical_first=False)),
                "branch7x7dbl": (_Conv(inputs, width, 1), *_factors(width, width, 192, 4, vertical_first=True)),
                "branch_pool": (_Conv(inputs, 192, 1),),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        *plain, pool = self.chains
        return torch.cat([*(self.along(x, names) for names in plain), self.along(_mean_pool(x), pool)], 1)


class _MixedD(_Mixed):
    """17 x 17 to 8 x 8: 320 + 192 + the inputs, pooled."""

    def __init__(self, inputs: int) -> None:
        factors = _factors(192, 192, 192, 2, vertical_first=False)
        super().__init__(
            {
                "branch3x3": (_Conv(inputs, 192, 1), _Conv(192, 320, 3, stride=2)),
                "branch7x7x3": (_Conv(inputs, 192, 1), *factors, _Conv(192, 192, 3, stride=2)),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*(self.along(x, names) for names in self.chains), F.max_pool2d(x, 3, stride=2)], 1)


class _MixedE(nn.Module):
    """8 x 8: 320 + 768 + 768 + 192. The last of the two pools by the maximum, where the published network's pools by the mean."""

    def __init__(self, inputs: int, maximum: bool) -> None:
        super().__init__()
        self.maximum = maximum
        self.branch1x1 = _Conv(inputs, 320, 1)
        self.branch3x3_1, self.branch3x3dbl_1 = _Conv(inputs, 384, 1), _Conv(inputs, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, padding=1)
        for name in ("branch3x3_2", "branch3x3dbl_3"):
            self.add_module(f"{name}a", _Conv(384, 384, (1, 3), padding=(0, 1)))
            self.add_module(f"{name}b", _Conv(384, 384, (3, 1), padding=(1, 0)))
        self.branch_pool = _Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.maximum else _mean_pool(x)
        one, two = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        split = [self.get_submodule(f"{name}{half}")(y) for name, y in (("branch3x3_2", one), ("branch3x3dbl_3", two)) for half in "ab"]
        return torch.cat([self.branch1x1(x), *split, self.branch_pool(pooled)], 1)


class Inception(ImageFeatures):
    """Inception-v3 (Szegedy et al. 2016, arXiv:1512.00567) as of 2015-12-05: 2,048 features after the last pooling, 1,008 classes.

    Images are resized to 299 x 299 as TensorFlow 1 did, and (x - 128)/128 is taken: what TensorFlow's own FID, torch-fidelity and EDM
    do. It differs from the network of the paper in the poolings: means at a border are over the pixels that are there, and the last
    block pools by the maximum.
    """

    name = "Inception-v3 of 2015, resized as by TensorFlow (torch-fidelity, EDM)"
    distance = "FID"
    kernel = "KID"
    width = FEATURES
    known = KNOWN

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = _Conv(3, 32, 3, stride=2), _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = _Conv(64, 80, 1), _Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _MixedA(192, 32), _MixedA(256, 64), _MixedA(288, 64)
        self.Mixed_6a = _MixedB(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (_MixedC(768, width) for width in (128, 160, 160, 192))
        self.Mixed_7a = _MixedD(768)
        self.Mixed_7b, self.Mixed_7c = _MixedE(1280, maximum=False), _MixedE(2048, maximum=True)
        self.fc = nn.Linear(FEATURES, CLASSES)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], sha256: str = "") -> Inception:
        """The network with the weights of a state dict, in float32, in eval mode, without gradients.

        Raises:
            ValueError: names or shapes of another network (torchvision's own Inception-v3 among them), or values that are not finite.
        """
        if "AuxLogits.fc.weight" in state or tuple(getattr(state.get("fc.weight"), "shape", ())) == (1000, FEATURES):
            raise ValueError(f"these are torchvision's own weights of Inception-v3, whose distances are no FID: {_WHAT} are needed")
        with torch.device("meta"):
            network = cls()
        network.to_empty(device="cpu")
        loaded(network, state, _WHAT, ("num_batches_tracked",))
        network.sha256 = sha256
        return network.eval().requires_grad_(False)

    def resized(self, x: Tensor) -> Tensor:
        """What the first convolution sees of images (B, 3, H, W) in 0 .. 255: (B, 3, 299, 299) in about -1 .. 1."""
        return (resize_tensorflow(x, SIZE) - 128) / 128

    def embed(self, x: Tensor) -> Tensor:
        x = self.resized(x)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """(N, 1008) of features (N, 2048), float32 on the CPU, without the bias, as the Inception Score was published."""
        return features.to(self.fc.weight).matmul(self.fc.weight.T).cpu()


class PytorchFidInception(Inception):
    """The same network with the resizing of pytorch-fid: pixels by their centres, to 2 x/255 - 1."""

    name = "Inception-v3 of 2015, resized as by pytorch-fid"

    def resized(self, x: Tensor) -> Tensor:
        return 2 * resize_pytorch(x / 255, SIZE) - 1
