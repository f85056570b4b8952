import gzip
import hashlib
import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_gen.data import DATASETS, SOURCES, Dataset, gaussians8_centres, load_dataset
from sde_gen.data.toys import SINES_CYCLES, blob

MNIST = Path(os.environ.get("SDE_GEN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "mnist"
TOYS = ["gaussians8", "moons", "checkerboard"]


def write_mnist(root, train=5, test=3, gz=False):
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        images, labels = rng.integers(256, size=(count, 28, 28), dtype=np.uint8), rng.integers(10, size=count, dtype=np.uint8)
        for name, header, values in (
            (f"{part}-images-idx3-ubyte", struct.pack(">4I", 0x803, count, 28, 28), images),
            (f"{part}-labels-idx1-ubyte", struct.pack(">2I", 0x801, count), labels),
        ):
            data = header + values.tobytes()
            (root / (name + ".gz" * gz)).write_bytes(gzip.compress(data) if gz else data)


@pytest.mark.parametrize("name", sorted(set(DATASETS) - set(SOURCES)))
def test_every_set_is_what_it_says(name):
    dataset = load_dataset(name)
    assert dataset.name == name and dataset.train.dtype == dataset.test.dtype == (torch.float32 if dataset.codec is None else torch.float64)
    if dataset.levels is not None:
        assert dataset.train.min() == 0 and dataset.train.max() == dataset.levels - 1 and torch.equal(dataset.train, dataset.train.round())
    if dataset.classes is not None:
        assert set(dataset.train_labels.tolist()) == set(range(dataset.classes))
    again = load_dataset(name)
    assert torch.equal(again.train, dataset.train) and torch.equal(again.test, dataset.test)


def test_digits_have_one_split_whatever_the_seed():
    dataset, other = load_dataset("digits"), load_dataset("digits", seed=5)
    assert dataset.train.shape == (1500, 1, 8, 8) and dataset.test.shape == (297, 1, 8, 8) and dataset.levels == 17
    assert torch.equal(dataset.train, other.train)
    from sklearn.datasets import load_digits

    first = np.random.default_rng(0).permutation(1797)[0]
    np.testing.assert_array_equal(dataset.train[0, 0].numpy(), load_digits().images[first])
    assert dataset.train_labels[0] == load_digits().target[first]
    assert torch.cdist(dataset.test.flatten(1), dataset.train.flatten(1)).min() > 0  # no item in both parts


@pytest.mark.parametrize("name", TOYS)
def test_toys_follow_the_seed(name):
    dataset = load_dataset(name, seed=1)
    assert dataset.train.shape == (10_000, 2) and dataset.test.shape == (2_000, 2)
    assert not torch.equal(dataset.train, load_dataset(name, seed=2).train)


def test_gaussians8_are_eight_gaussians():
    dataset = load_dataset("gaussians8", seed=3)
    centres = gaussians8_centres()
    torch.testing.assert_close(centres.norm(dim=1), torch.full((8,), 4.0))
    for i in range(8):
        mode = dataset.train[dataset.train_labels == i]
        assert abs(len(mode) / 10_000 - 0.125) < 0.0132  # four standard errors
        torch.testing.assert_close(mode.mean(0), centres[i], atol=0.03, rtol=0)
        torch.testing.assert_close(mode.std(0), torch.full((2,), 0.25), atol=0.02, rtol=0)


def test_moons_lie_on_their_half_circles():
    dataset = load_dataset("moons")
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.5]])[dataset.train_labels]
    radius = (dataset.train - centres).norm(dim=1)
    assert abs(float(radius.mean()) - 1) < 0.01 and float(radius.std()) == pytest.approx(0.05, abs=0.005)


def test_the_checkerboard_leaves_every_other_square_empty():
    cell = ((load_dataset("checkerboard").train + 4) / 2).floor().long()
    assert cell.min() == 0 and cell.max() == 3 and bool((cell.sum(1) % 2 == 0).all())
    counts = torch.bincount(cell[:, 0] * 4 + cell[:, 1], minlength=16)
    assert (counts > 0).sum() == 8 and counts[counts > 0].min() > 1000


def test_sines_have_all_their_power_at_one_frequency_and_every_phase():
    spectrum = torch.fft.rfft(load_dataset("sines", seed=2).train[:, 0].double())
    power = spectrum.abs() ** 2
    assert float(power[:, SINES_CYCLES].min() / power.sum(1).max()) > 0.999
    phases = spectrum[:, SINES_CYCLES].angle()
    assert abs(float(phases.cos().mean())) < 0.03 and abs(float(phases.sin().mean())) < 0.03


def test_the_table_is_correlated_skewed_and_bimodal():
    height, weight, income, age = load_dataset("table", seed=2).train.double().T
    matrix = torch.corrcoef(torch.stack((height, weight, income.log(), age)))
    assert float(matrix[0, 1]) == pytest.approx(0.8, abs=0.02) and float(matrix[0, 2]) == pytest.approx(0.5**0.5, abs=0.02)
    assert float(income.log().mean()) == pytest.approx(math.log(3000), abs=0.03) and float(income.min()) > 0
    assert float((age < 40).double().mean()) == pytest.approx(0.5, abs=0.02) and float(((age > 33) & (age < 47)).double().mean()) < 0.005
    assert bool(((weight < 70) == (age < 40)).all())


def test_blobs_are_balls_where_their_centres_are():
    volumes = load_dataset("blobs3d", seed=2).train.double()
    assert volumes.shape == (4000, 1, 12, 12, 12)
    centre = torch.tensor([[3.25, 5.0, 7.5]], dtype=torch.float64)
    assert float(blob(centre)[0, 0, 3, 5, 7]) == pytest.approx(math.exp(-(0.25**2 + 0.5**2) / (2 * 1.6**2)))
    logs = volumes.clamp_min(1e-30).log()  # a quadratic: its differences along an axis give the centre back
    found = torch.stack([5.5 + 1.6**2 * (logs.select(a, 6) - logs.select(a, 5)).mean((1, 2, 3)) for a in (2, 3, 4)], dim=1)
    torch.testing.assert_close(blob(found), volumes, atol=1e-4, rtol=0)
    assert float(found.min()) > 3 - 1e-3 and float(found.max()) < 8 + 1e-3
    torch.testing.assert_close(found.mean(0), torch.full((3,), 5.5, dtype=torch.float64), atol=0.1, rtol=0)


def test_limit_cuts_the_training_part_only():
    dataset = load_dataset("digits", limit=100)
    assert len(dataset.train) == len(dataset.train_labels) == 100 and len(dataset.test) == 297
    assert len(load_dataset("digits", limit=10**6).train) == 1500
    assert torch.equal(load_dataset("digits", limit=40).train, dataset.train[:40])


def test_limit_draws_from_a_set_that_is_sorted(tmp_path, monkeypatch):
    x = torch.arange(300.0)[:, None]
    monkeypatch.setitem(DATASETS, "sorted", lambda root, seed: Dataset("sorted", x, None, torch.arange(300) // 100, classes=3))
    few = load_dataset("sorted", limit=30)
    assert torch.equal(few.train[:, 0] // 100, few.train_labels.float()) and torch.bincount(few.train_labels).min() >= 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cats"}, r"data 'cats' is unknown; allowed: adult, blobs3d, .*, or a path: a folder or archive of images, arrays"),
        ({"name": "digits", "limit": 1}, "1 training item"),
        ({"name": "digits", "limit": 0}, "limit 0"),
        ({"name": "moons", "seed": -1}, "seed -1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(**arguments)


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_is_read_from_its_files(tmp_path, gz, name):
    write_mnist(tmp_path, gz=gz)
    dataset = load_dataset(name, root=tmp_path)
    assert dataset.name == name
    assert dataset.train.shape == (5, 1, 28, 28) and dataset.test.shape == (3, 1, 28, 28)
    expected = np.random.default_rng(0).integers(256, size=(5, 28, 28), dtype=np.uint8)
    np.testing.assert_array_equal(dataset.train[:, 0].numpy(), expected)


def test_mnist_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"needs root.*train-images-idx3-ubyte"):
        load_dataset("mnist")
    with pytest.raises(ValueError, match="not a directory; expected train-images-idx3-ubyte"):
        load_dataset("mnist", root=tmp_path / "absent")
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match="lacks t10k-labels-idx1-ubyte; expected") as caught:
        load_dataset("mnist", root=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_mnist_needs_one_label_an_image(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 4) + bytes(4))
    with pytest.raises(ValueError, match=r"5 images in .* but 4 labels"):
        load_dataset("mnist", root=tmp_path)


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"no MNIST in {MNIST}; set SDE_GEN_DATA to the directory above mnist/")
def test_the_real_mnist():
    dataset = load_dataset("mnist", root=MNIST)
    assert dataset.train.shape == (60_000, 1, 28, 28) and dataset.test.shape == (10_000, 1, 28, 28)
    assert torch.bincount(dataset.test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    header = struct.pack(">4I", 0x803, 10_000, 28, 28)
    assert hashlib.md5(header + dataset.test.to(torch.uint8).numpy().tobytes()).hexdigest() == "2646ac647ad5339dbf082846283269ea"
