"""Networks of image features from files: the user's own weights of Inception-v3, or the package that ships those of ImageNet."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..errors import CheckpointError
from ..metrics.image_features import ImageFeatures
from ..metrics.imagenet import ImageNet
from ..metrics.inception import Inception, PytorchFidInception
from ..tensor_files import read

LABELS = "labels"
"""The classifier of the data's own labels, which is no network of images in general."""
OF_FILE: dict[str, type[Inception]] = {"inception": Inception, "pytorch-fid": PytorchFidInception}
FEATURES = f"{LABELS}, imagenet, {', '.join(f'{kind}:FILE' for kind in OF_FILE)}"
"""What there is, in words."""


def features_named(text: str) -> tuple[str, str | None]:
    """Kind and file of "inception:FILE" and the like; ValueError for a kind that there is not."""
    kind, colon, path = text.partition(":")
    if (kind in (LABELS, "imagenet") and not colon) or (kind in OF_FILE and path):
        return kind, path or None
    raise ValueError(f"unknown features {text!r}; choose from {FEATURES} (FILE: the weights, such as pt_inception-2015-12-05-6726825d.pth)")


def load_features(text: str) -> ImageFeatures:
    """The network of image features that `text` names, on the CPU; nothing in a file is executed.

    Args:
        text: "inception:FILE", Inception-v3 with the weights in a file of torch.save or safetensors and TensorFlow's resizing
            (torch-fidelity, EDM); "pytorch-fid:FILE", the same with pytorch-fid's; "imagenet", EfficientNet-Lite0.

    Raises:
        ValueError: another name. CheckpointError: one line, for a file that is not there, damaged or of another network.
        ImportError: the packages of "imagenet" are not installed.
    """
    kind, path = features_named(text)
    if kind == LABELS:
        raise ValueError(f"features {LABELS!r} are fitted to a data set (metrics.cached_features); choose from {FEATURES}")
    network: type[ImageNet] | type[Inception] = ImageNet if path is None else OF_FILE[kind]
    path = ImageNet.shipped() if path is None else path
    content = read(path)
    state = content.tree
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: it is no state dict, names and tensors, of a network of features")
    try:
        return network.from_state(state, content.sha256)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
