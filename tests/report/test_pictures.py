import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from sde_gen.report import film_images, picture_film, picture_forward, picture_samples, pictures
from sde_gen.report.images import NOT_FINITE

SHAPES = {
    "points": (60, 2),
    "vectors": (60, 3),
    "signals": (4, 2, 32),
    "images": (6, 1, 8, 8),
    "volumes": (6, 1, 5, 8, 8),
}


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def digits(n=100):
    return torch.tensor(load_digits().images[:n]).float()[:, None]


def has_red(image):
    return bool((np.asarray(image.convert("RGB")) == NOT_FINITE).all(-1).any())


def spoiled(x):
    x = x.clone()
    x[0] = math.nan
    return x


@pytest.mark.parametrize("kind", SHAPES)
def test_the_kind_follows_from_the_shape(kind):
    assert pictures.data_kind(SHAPES[kind]) == kind


@pytest.mark.parametrize("kind", SHAPES)
def test_samples_of_every_shape(tmp_path, kind):
    x = noise(*SHAPES[kind])
    path = picture_samples(x, tmp_path / "a.png", reference=noise(*SHAPES[kind], seed=1))
    with Image.open(path) as image:
        assert not has_red(image) and image.format == "PNG"
    with Image.open(picture_samples(spoiled(x), path)) as image:
        assert has_red(image)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("kind", SHAPES)
def test_films_of_every_shape(tmp_path, kind):
    frames = [s * noise(*SHAPES[kind]) for s in (50.0, 2.0, 1.0)]
    frames[1] = spoiled(frames[1])
    images = film_images(frames)
    assert len({image.size for image in images}) == 1
    assert [has_red(image) for image in images] == [False, True, False]
    with Image.open(picture_film(frames, tmp_path / "a.gif", fps=10)) as film:
        assert film.n_frames == 3 and film.info["duration"] == 100
        film.seek(2)
        assert film.info["duration"] == 1500


@pytest.mark.parametrize("kind", SHAPES)
def test_forward_of_every_shape(tmp_path, kind):
    rows = torch.stack([s * noise(*SHAPES[kind]) for s in (1.0, 2.0, 50.0)], 1)
    labels = ["t = 0\nσ = 0", "t = 0.5\nσ = 2", "t = 1\nσ = 50"]
    with Image.open(picture_forward(rows, labels, tmp_path / "a.png")) as image:
        assert not has_red(image)
    with Image.open(picture_forward(list(spoiled(rows)), labels, tmp_path / "b.png")) as image:
        assert has_red(image)


def test_digits_fill_a_ten_by_ten_grid_in_their_own_units(tmp_path):
    x = digits()
    path = picture_samples(x, tmp_path / "a.png", value_range=(0, 16))
    pixels = np.asarray(Image.open(path))
    scale = (pixels.shape[0] - 2) // 10 // 8
    assert pixels.shape == (10 * (8 * scale + 2) + 2,) * 2 and 600 <= pixels.shape[0] <= 900
    for k in (0, 37, 99):
        top, left = (2 + place * (8 * scale + 2) for place in divmod(k, 10))
        tile = pixels[top : top + 8 * scale : scale, left : left + 8 * scale : scale]
        assert np.array_equal(tile, np.round(x[k, 0].numpy() * 255 / 16))


def test_the_reference_gives_the_range(tmp_path):
    x = torch.full((4, 1, 4, 4), 0.25)
    path = picture_samples(x, tmp_path / "a.png", reference=torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
    assert Image.open(path).getpixel((20, 20)) == 64
    x[0] = 99.0
    assert Image.open(picture_samples(x, path, value_range=(0, 1))).getpixel((20, 20)) == 255


def test_a_volume_is_its_middle_slice(tmp_path):
    x = torch.zeros(4, 1, 5, 4, 4)
    x[:, :, 2] = 1
    pixels = np.asarray(Image.open(picture_samples(x, tmp_path / "a.png", value_range=(0, 1))).convert("L"))
    assert pixels[20, 20] == 255


def test_the_film_of_digits(tmp_path):
    x, end = noise(100, 1, 8, 8), digits() / 8 - 1
    frames = [(1 - a) * x + a * end for a in torch.linspace(0, 1, 6)]
    path = picture_film(frames, tmp_path / "a.gif")
    with Image.open(path) as film:
        assert film.n_frames == 6
        first = np.asarray(film.convert("L"))
        film.seek(5)
        last = np.asarray(film.convert("L"))
    assert 500 <= last.shape[1] <= 600
    inside = slice(0, 560)
    assert (last[inside, inside] < 10).mean() > 0.3 > (first[inside, inside] < 10).mean()  # black ground appears


@pytest.mark.parametrize("shape", [(3,), (0, 2), (2, 1, 2, 2, 2, 2), (2, 0, 4, 4)])
def test_shapes_without_a_picture(tmp_path, shape):
    with pytest.raises(ValueError, match=r"\(N, D\) or \(N, C, \*spatial\)"):
        picture_samples(torch.zeros(shape), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_bad_films_and_strips(tmp_path):
    with pytest.raises(ValueError, match="at least one frame"):
        picture_film([], tmp_path / "a.gif")
    with pytest.raises(ValueError, match=r"last one's shape \(3, 2\), not \(4, 2\) \(frame 0\)"):
        picture_film([torch.zeros(4, 2), torch.zeros(3, 2)], tmp_path / "a.gif")
    with pytest.raises(ValueError, match="one shape"):
        picture_forward([torch.zeros(2, 4), torch.zeros(3, 4)], ["a", "b"], tmp_path / "a.png")
    with pytest.raises(ValueError, match="T labels"):
        picture_forward(torch.zeros(2, 3, 1, 4, 4), ["one"], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
