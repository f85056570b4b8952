import dataclasses
import functools
import os
from pathlib import Path

import pytest
import torch

from sde_gen.data import load_dataset
from sde_gen.metrics import FeatureNet, cached_features, features


@dataclasses.dataclass(frozen=True)
class Data:
    name: str
    train: torch.Tensor
    test: torch.Tensor | None
    train_labels: torch.Tensor | None
    test_labels: torch.Tensor | None


def blobs(shape=(3,), n=120, offset=0.0):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    x = torch.randn(n, *shape, generator=generator) + 4 * labels.reshape(-1, *[1] * len(shape)) + offset
    return Data("blobs", x[: n // 2], x[n // 2 :], labels[: n // 2], labels[n // 2 :])


def fit(data, seed=0):
    return FeatureNet.fit(data.train, data.train_labels, data.test, data.test_labels, seed=seed)


@functools.cache
def fitted(shape=(3,)):
    """One network for all tests that only read it."""
    return fit(blobs(shape))


@pytest.fixture
def short_fits(monkeypatch):
    """Where the claim is not how well the classifier learns."""
    monkeypatch.setitem(features._SETTINGS, "least_steps", 40)


def test_digits_are_told_apart(tmp_path):
    digits = load_dataset("digits")
    net, x = cached_features(digits, tmp_path), digits.train
    assert net.accuracy >= 0.975
    features = net.features(x)
    assert features.shape == (1500, 64) and features.dtype == torch.float32 and not features.requires_grad
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    torch.testing.assert_close(net.features(x[:7], batch_size=2), features[:7], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(3,), (2, 7), (1, 5, 4), (3, 17, 16), (2, 3, 4, 3), (1, 1, 1)])
def test_any_shape_has_features(shape, monkeypatch):
    monkeypatch.setitem(features._SETTINGS, "least_steps", 120)
    data = blobs(shape)
    net = fit(data)
    assert net.features(data.test).shape == (60, 64) and net.features(data.test[:0]).shape == (0, 64)
    assert net.accuracy > 0.9


def test_the_seed_alone_decides_and_nothing_global_is_touched(short_fits):
    data = blobs()
    torch.manual_seed(1)
    first = fit(data)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))
    again, other = fit(data), fit(data, seed=1)
    assert torch.equal(first.features(data.test), again.features(data.test))
    assert not torch.equal(first.features(data.test), other.features(data.test))


def test_the_number_of_threads_changes_nothing_and_is_put_back(short_fits):
    data, threads = blobs((1, 6, 6), n=240), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = fit(data)
        torch.set_num_threads(2)
        two = fit(data)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


def test_units_do_not_matter():
    data = blobs()
    scaled = dataclasses.replace(data, train=1000 * data.train + 5000, test=1000 * data.test + 5000)
    torch.testing.assert_close(fit(scaled).features(scaled.test), fitted().features(data.test), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("shape", [(3,), (1, 5, 4)])
def test_data_that_need_float64_are_told_apart(shape, tmp_path):
    data = blobs(shape)
    far = dataclasses.replace(data, train=1e9 + data.train.double(), test=1e9 + data.test.double())  # float32 is exact to 64
    net = cached_features(far, tmp_path)
    assert net.accuracy > 0.9
    again = cached_features(far, tmp_path)  # of the file
    assert torch.equal(again.features(far.test), net.features(far.test)) and again.features(far.test).dtype == torch.float32


def test_save_and_load(tmp_path):
    data = blobs((1, 6, 6))
    net = fitted((1, 6, 6))
    net.save(tmp_path / "net.safetensors")
    again = FeatureNet.load(tmp_path / "net.safetensors")
    assert torch.equal(again.features(data.test), net.features(data.test))
    assert (again.accuracy, again.shape, again.classes) == (net.accuracy, net.shape, net.classes) and not again.training
    assert os.listdir(tmp_path) == ["net.safetensors"]


def test_files_that_are_no_network_are_refused(tmp_path):
    net = fitted()
    path = tmp_path / "net.safetensors"
    net.save(path)
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[:-10], b"\xff" * 50, whole.replace(b'\\"classes\\": 3', b'\\"classes\\": 4')):
        assert content != whole
        path.write_bytes(content)
        with pytest.raises(ValueError, match="fit it again") as caught:
            FeatureNet.load(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="absent"):
        FeatureNet.load(tmp_path / "absent")


def test_the_cache_is_used_for_the_same_data_only(tmp_path, monkeypatch, short_fits):
    fits = []
    original = FeatureNet.fit.__func__
    monkeypatch.setattr(FeatureNet, "fit", classmethod(lambda cls, *args, **kwargs: fits.append(1) or original(cls, *args, **kwargs)))
    data, folder = blobs(), tmp_path / "run"
    first = cached_features(data, folder)
    again = cached_features(data, folder)
    assert len(fits) == 1 and torch.equal(first.features(data.test), again.features(data.test)) and again.accuracy == first.accuracy
    changed = data.train.clone()
    changed[5, 1] += 1e-3
    cached_features(dataclasses.replace(data, train=changed), folder)
    cached_features(data, folder)
    cached_features(data, folder, seed=1)
    cached_features(dataclasses.replace(data, train_labels=data.train_labels.roll(1)), folder)
    assert len(fits) == 5
    (folder / "features.safetensors").write_bytes(b"broken")
    cached_features(data, folder)
    assert len(fits) == 6 and len(os.listdir(folder)) == 1
    cached_features(data, folder)
    assert len(fits) == 6


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    net, path = fitted(), tmp_path / "net.safetensors"
    net.save(path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        net.save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["net.safetensors"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": torch.zeros(60, dtype=torch.int64)}, "at least two classes"),
        ({"train_labels": torch.zeros(60)}, "int64"),
        ({"train_labels": torch.zeros(3, dtype=torch.int64)}, r"shape \(3,\)"),
        ({"test_labels": None}, "held-out labels: none"),
        ({"train": torch.full((60, 3), torch.nan)}, "NaN"),
    ],
)
def test_bad_data_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fit(dataclasses.replace(blobs(), **change))


def test_bad_items_and_unlabelled_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"items of shape \(4,\); this network takes \(3,\)"):
        fitted().features(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="'blobs' has no labels"):
        cached_features(dataclasses.replace(blobs(), train_labels=None), Path(tmp_path))
    assert os.listdir(tmp_path) == []
