"""Random weights of Inception-v3 under the names of the published file, and the libraries that define the distance, where installed."""

import functools
import importlib
import sys

import pytest
import torch

from sde_gen.metrics.inception import Inception


@functools.cache
def random_state(seed=0):
    """Weights of which every layer keeps the size of what passes through it, and statistics of the norms that are no identity."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    with torch.device("meta"):
        own = Inception().state_dict()
    for name, value in own.items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith(("bn.weight", "running_var")):
            state[name] = 1 + 0.3 * noise.tanh()
        elif value.ndim > 1:
            state[name] = noise * (2 / value[0].numel()) ** 0.5
        else:
            state[name] = 0.3 * noise
    return state


def images(count, height, width, seed=1):
    """uint8 images of blobs and noise, whose values reach both ends."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    x = smooth + 0.2 * torch.randn(smooth.shape, generator=generator)
    return (300 * x - 20).clamp(0, 255).to(torch.uint8)


def torchvision_or_skip():
    """torchvision, whose wheel lacks operators beside a CPU PyTorch: they are declared, for Inception-v3 needs none of them."""
    try:
        return importlib.import_module("torchvision")
    except ImportError:
        pytest.skip("torchvision is not installed")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torchvision_or_skip.library = library
        return importlib.import_module("torchvision")


def pytorch_fid_or_skip(monkeypatch, state):
    """pytorch-fid's network with these weights: images in 0 .. 1 to 2,048 features."""
    torchvision_or_skip()
    module = pytest.importorskip("pytorch_fid.inception")
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: dict(state))
    return module.InceptionV3([3]).eval()


def torch_fidelity_or_skip(path):
    """torch-fidelity's network with the weights in a file: uint8 images to features and logits without the bias."""
    torchvision_or_skip()
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    return module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path))
