import io
import math
import pickle
import zipfile

import numpy as np
import pytest
import scipy.linalg
import torch
from inception_peers import torchvision_or_skip

from sde_gen.metrics import Estimate, Moments, frechet, frechet_distance, frechet_to, inception_score, kernel_distance


def draw(count, width, seed=0, stretch=0.0, shift=0.0):
    """Rows whose directions have spreads from 1 down to 1/sqrt(width), each but the first stretched by its own
    share, rotated, off zero."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.arange(1, width + 1, dtype=torch.float64).rsqrt() * (1 + stretch * torch.sin(torch.arange(width).double()))
    turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(99), dtype=torch.float64))[0]
    x = torch.randn(count, width, generator=generator, dtype=torch.float64) * spread
    return (x + shift * (torch.arange(width) == 0)) @ turn + 0.4


def exact(width, stretch, shift):
    """The distance of the law of `draw` to that without stretch and shift: both covariances have the same directions."""
    spread = torch.arange(1, width + 1, dtype=torch.float64).rsqrt()
    return shift**2 + float((spread * stretch * torch.sin(torch.arange(width).double())).square().sum())


def direct(a, b):
    """The formula with a matrix square root by Schur's method."""
    a, b = a.numpy(), b.numpy()
    s, t = np.cov(a.T), np.cov(b.T)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * np.trace(scipy.linalg.sqrtm(s @ t).real))


@pytest.mark.parametrize(("n", "m", "width"), [(60, 90, 9), (61, 12, 9), (9, 40, 9), (12, 70, 30), (14, 11, 30)])
def test_is_the_distance_of_the_formula(n, m, width):
    a, b = draw(n, width, 1, 0.5, 1.0), draw(m, width, 2)
    found = frechet_to(a, b).value
    assert found.value == pytest.approx(direct(a, b), rel=1e-5)
    assert found.value == pytest.approx(frechet_distance(a, b, bootstrap=2).value, rel=1e-6)
    moments = Moments.of(b)
    assert moments.count == m and frechet_to(a, moments).value.value == pytest.approx(found.value, rel=1e-12)
    assert 0 < frechet_to(a, moments).value.std_error < found.std_error
    assert frechet_to(b, b).value.value == pytest.approx(0, abs=1e-6)


def test_equals_pytorch_fid_and_torch_fidelity():
    torchvision_or_skip()
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    kid, isc = pytest.importorskip("torch_fidelity.metric_kid"), pytest.importorskip("torch_fidelity.metric_isc")
    a, b = draw(80, 30, 1, 0.5, 1.0), draw(100, 30, 2)
    one, two = Moments.of(a), Moments.of(b)
    theirs = fid_score.calculate_frechet_distance(one.mean.numpy(), one.covariance.numpy(), two.mean.numpy(), two.covariance.numpy())
    assert frechet_to(a, two).value.value == pytest.approx(theirs, rel=1e-6)
    settings = {"kid_subsets": 1, "kid_subset_size": 80, "verbose": False}
    theirs = kid.kid_features_to_metric(a, draw(80, 30, 2), **settings)[kid.KEY_METRIC_KID_MEAN]
    assert kernel_distance(a, draw(80, 30, 2)).value == pytest.approx(theirs, rel=1e-6)
    theirs = isc.isc_features_to_metric(3 * a, splits=1)[isc.KEY_METRIC_ISC_MEAN]
    assert inception_score(3 * a, 1).value.value == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(90, 150), (151, 200)])
def test_the_error_is_that_of_leaving_one_out(n, m):
    # Lopsided items, so that the sign of what the means tell matters beside what the covariances tell.
    a, b = draw(n, 12, 3, 0.4, 0.8), draw(m, 12, 4)
    a, b = a + 0.3 * a.square(), b - 0.3 * b.square()
    moments, parts = Moments.of(b), []
    for rows, other in ((a, lambda rest: frechet_to(rest, moments)), (b, lambda rest: frechet_to(a, Moments.of(rest)))):
        left = torch.tensor([other(torch.cat([rows[:i], rows[i + 1 :]])).value.value for i in range(len(rows))])
        parts.append(math.sqrt((len(rows) - 1) * float(left.var(correction=0))))
    own, both = frechet_to(a, moments).value.std_error, frechet_to(a, b).value.std_error
    assert own == pytest.approx(parts[0], rel=0.06) and math.sqrt(both**2 - own**2) == pytest.approx(parts[1], rel=0.06)


def test_the_error_where_both_covariances_are_diagonal():
    """The map between the two laws then stretches each direction: an item of b moves d by the sum of (1 - s_k) y_k^2, one of a by that
    of (1 - 1/s_k) x_k^2, also where one direction is a thousand times as wide as the others and alike in both."""
    axes = torch.linalg.qr(draw(60, 5) - draw(60, 5).mean(0))[0]
    b = axes * torch.tensor([1000.0, 1, 0.5, 2, 1])
    s = torch.tensor([1.0, 3, 0.5, 1, 2], dtype=torch.float64)
    a = b * s
    expected = [math.sqrt(float((rows.square() @ weights).var()) / 60) for rows, weights in ((a, 1 - 1 / s), (b, 1 - s))]
    found = frechet_to(a, b).value
    assert found.value == pytest.approx(float(((s - 1).square() * b.var(0)).sum()), rel=1e-6)
    assert frechet_to(a, Moments.of(b)).value.std_error == pytest.approx(expected[0], rel=1e-6)
    assert found.std_error == pytest.approx(math.hypot(*expected), rel=1e-6)
    assert frechet_to(a, Moments.of(b), drawn=b[1:]).value.std_error == pytest.approx(found.std_error, rel=0.1)
    many = Moments(Moments.of(b).mean, Moments.of(b).covariance, 600)
    error = frechet_to(a, many, drawn=b).value.std_error
    assert error == pytest.approx(math.hypot(expected[0], expected[1] / math.sqrt(10)), rel=1e-6)


@pytest.mark.parametrize(("stretch", "shift"), [(0.0, 0.0), (0.3, 0.8)])
def test_error_bars_cover_and_the_bias_is_taken_out(stretch, shift):
    width, n = 24, 200
    reference = Moments.of(draw(200_000, width, 7))
    found = [frechet_to(draw(n, width, 10 + k, stretch, shift), reference) for k in range(60)]
    values, errors = (torch.tensor([getattr(one.value, name) for one in found]) for name in ("value", "std_error"))
    free, free_errors = (torch.tensor([getattr(one.unbiased, name) for one in found]) for name in ("value", "std_error"))
    truth, several = exact(width, stretch, shift), float(values.std()) / math.sqrt(len(found))
    assert float(values.mean()) > truth + 4 * several  # so few items: too large
    left = float(free.mean()) - truth
    assert abs(left) < 0.15 * (float(values.mean()) - truth) + 2 * several
    covered = ((values - values.mean()).abs() < 1.96 * errors).double().mean()
    assert covered > 0.85 and ((free - free.mean()).abs() < 1.96 * free_errors).double().mean() > 0.85
    if shift:
        assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.3)


def test_few_items_are_said_and_an_odd_one_is_left_over():
    reference = Moments.of(draw(300, 10))
    few = frechet_to(draw(39, 10), reference).unbiased
    assert math.isnan(few.value) and few.reason == "39 items; 40, 4 times the number of features, are needed to tell the bias of so few"
    odd = draw(41, 10, 5)
    found = frechet_to(odd, reference, splits=3, seed=4)
    halves = []
    for pair in frechet.half_samples(41, 2, 3, 4):
        halves += [frechet_to(odd[rows], reference).value.value for rows, _ in pair]
    assert found.unbiased.value == pytest.approx(2 * found.value.value - sum(halves) / 6, rel=1e-9)
    assert found.unbiased.std_error >= found.value.std_error and found.size == 41


def test_moments_are_kept_and_read_as_others_write_them(tmp_path):
    moments = Moments.of(draw(50, 6).float())
    moments.write(tmp_path / "ours.npz")
    again = Moments.read(tmp_path / "ours.npz")
    assert torch.equal(again.mean, moments.mean) and torch.equal(again.covariance, moments.covariance) and again.count == 50
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as file:
        assert {name: file[name].dtype.kind for name in file} == {"mu": "f", "sigma": "f", "count": "i"}
    theirs = {"mu": moments.mean.numpy(), "sigma": moments.covariance.numpy(), "mu_s": np.ones(3, np.float32)}
    np.savez(tmp_path / "edm.npz", **theirs)
    found = Moments.read(tmp_path / "edm.npz")
    assert found.count is None and torch.equal(found.covariance, moments.covariance) and found.source.endswith("edm.npz")


def archives():
    mu, sigma = np.zeros(3), np.eye(3)
    yield "keys", {"mu": mu, "m2": sigma}, "it holds mu, m2, not mu and sigma"
    yield "shape", {"mu": mu, "sigma": np.eye(4)}, r"mu is float64 \(3,\) and sigma float64 \(4, 4\)"
    yield "rank", {"mu": sigma, "sigma": sigma}, "are needed"
    yield "type", {"mu": mu.astype(int), "sigma": sigma}, "floating-point numbers"
    yield "nan", {"mu": mu, "sigma": sigma * np.nan}, "NaN or infinite"
    yield "negative", {"mu": mu, "sigma": -sigma}, "negative variance"
    yield "skewed", {"mu": mu, "sigma": sigma + np.triu(np.ones((3, 3)))}, "not symmetric"
    yield "objects", {"mu": np.array([{}], dtype=object), "sigma": sigma}, "no moments can be read"


def test_files_that_are_no_moments_are_one_line(tmp_path):
    for name, content, message in archives():
        np.savez(tmp_path / f"{name}.npz", **content)
        with pytest.raises(ValueError, match=message) as raised:
            Moments.read(tmp_path / f"{name}.npz")
        assert "\n" not in str(raised.value) and f"{name}.npz" in str(raised.value)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"mu": 1}))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "keys.npz").read_bytes()[:-30])
    np.save(tmp_path / "array.npy", np.ones(3))
    for name in ("pickle.npz", "cut.npz", "array.npy", "none.npz"):
        with pytest.raises(ValueError, match="no such file" if name == "none.npz" else "no moments can be read"):
            Moments.read(tmp_path / name)
    with pytest.raises(ValueError, match="finite numbers"):
        Moments.of(torch.tensor([[1.0], [math.nan]]))


def packed(path, **members):
    """An archive of arrays, each given by its bytes, compressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def array_of(shape, numbers=0):
    """An array's header that claims a shape, and so many zeros of float64."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return header.getvalue() + bytes(8 * numbers)


def test_archives_made_to_do_harm_are_one_line(tmp_path):
    """Arrays that are large once unpacked, or claim to be; damage inside of what is compressed."""
    file = tmp_path / "a.npz"
    mu = array_of((3,), 3)
    for members, message in (
        ({"mu": array_of((1 << 20,), 1 << 20), "sigma": array_of((3, 3), 9)}, "mu claims 8388736 bytes"),
        ({"mu": mu, "sigma": array_of((1 << 10, 1 << 10), 1 << 20)}, "sigma claims 8388736 bytes, more than 9 numbers"),
        ({"mu": array_of((1 << 50,)), "sigma": mu}, "no moments can be read"),
        ({"mu": mu, "sigma": array_of((3, 3), 9), "count": array_of((1000,), 1000)}, "count claims"),
    ):
        packed(file, **members)
        with pytest.raises(ValueError, match=message) as raised:
            Moments.read(file)
        assert "\n" not in str(raised.value)
    packed(file, mu=mu, sigma=bytes(range(256)) * 10)
    content = bytearray(file.read_bytes())
    at = content.index(b"sigma.npy") + 9
    content[at : at + 8] = b"\xff" * 8
    file.write_bytes(content)
    with pytest.raises(ValueError, match="no moments can be read"):
        Moments.read(file)
    for count in (-5, 1):
        np.savez(file, mu=np.zeros(3), sigma=np.eye(3), count=np.int64(count))
        with pytest.raises(ValueError, match=f"count is {count}"):
            Moments.read(file)
    np.savez(file, mu=np.zeros(3), sigma=np.eye(3), count=np.float64(np.inf))
    with pytest.raises(ValueError, match="no moments can be read"):
        Moments.read(file)


def test_bad_arguments_are_one_line(tmp_path):
    a, b = draw(20, 4), draw(20, 4)
    with pytest.raises(ValueError, match="4 numbers an item and the reference of here 5"):
        frechet_to(a, Moments.of(draw(20, 5), "here"))
    for call, message in (
        (lambda: frechet_to(a[:3], b), "N >= 4"),
        (lambda: frechet_to(a, b[:3]), "reference of shape"),
        (lambda: frechet_to(a / 0, b), "NaN or infinite"),
        (lambda: frechet_to(a, b, splits=0), "splits 0"),
        (lambda: inception_score(a[:3]), "N >= 4"),
        (lambda: inception_score(a, 11), "at most 10 parts"),
        (lambda: inception_score(a, 0), "splits 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def logits(count, seed, classes=40):
    """Images of as many clear classes; a classifier of 40 that errs."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(classes, classes, generator=torch.Generator().manual_seed(5))
    return centres[torch.randint(classes, (count,), generator=generator)] + 2 * torch.randn(count, classes, generator=generator)


def test_the_score_of_known_classes():
    sure = 200 * torch.eye(8).repeat(5, 1)
    found = inception_score(sure, 1)
    assert found.value.value == pytest.approx(8) and found.value.std_error == pytest.approx(0, abs=1e-6)
    assert found.published.value == pytest.approx(8) and math.isnan(found.published.std_error)
    assert inception_score(torch.zeros(20, 8)).value == Estimate(1.0, 0.0)
    some = torch.tensor([[0.0, 1], [2, 0], [0, 0], [3, 1]])
    p = some.double().softmax(1)
    by_hand = math.exp(float((p * (p / p.mean(0)).log()).sum(1).mean()))
    assert inception_score(some, 2).value.value == pytest.approx(by_hand, rel=1e-12)


def test_the_score_of_few_images_is_too_small_and_its_error_covers():
    truth = inception_score(logits(40_000, 0), 1).value.value
    found = [inception_score(logits(150, 1 + k), 10, k) for k in range(80)]
    plain, free, parts = (torch.tensor([getattr(one, name).value for one in found]) for name in ("value", "unbiased", "published"))
    errors = torch.tensor([one.value.std_error for one in found])
    several = float(plain.std()) / math.sqrt(len(found))
    assert float(parts.mean()) < float(plain.mean()) - 10 * several < truth - 12 * several
    assert abs(float(free.mean()) - truth) < 0.25 * (truth - float(plain.mean())) + 2 * several
    assert float(errors.mean()) == pytest.approx(float(plain.std()), rel=0.3)
    again = inception_score(logits(150, 1), 10, 0)
    assert again == found[0] and again.published != inception_score(logits(150, 1), 10, 1).published
