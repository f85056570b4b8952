import math

import numpy as np
import pytest
import torch
from PIL import Image

from sde_gen.report.images import NOT_FINITE, forward_strip, image_grid, level_label, save_gif, save_image, to_uint8


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def durations(path):
    with Image.open(path) as film:
        result = []
        for k in range(film.n_frames):
            film.seek(k)
            result.append(film.info["duration"])
    return result


class TestToUint8:
    def test_known_values(self):
        x = torch.tensor([[-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]])
        assert to_uint8(x, (-1, 1)).tolist() == [[0, 0, 128, 191, 255, 255]]
        assert to_uint8(x, (-1, 1)).dtype == torch.uint8

    def test_without_a_range_the_whole_set_fills_it(self):
        x = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
        assert to_uint8(x).tolist() == [[0, 64], [128, 255]]

    def test_the_samples_are_not_changed(self):
        x = noise(3, 1, 4, 4)
        before = x.clone()
        to_uint8(x, (-0.1, 0.1))
        assert torch.equal(x, before)

    def test_nan_and_infinity_neither_crash_nor_stretch_the_range(self):
        x = torch.tensor([[0.0, 1.0, math.nan, math.inf, -math.inf]])
        assert to_uint8(x).tolist() == [[0, 255, 0, 255, 0]]
        assert to_uint8(torch.full((2, 2), math.nan)).tolist() == [[0, 0], [0, 0]]

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.bfloat16, torch.float64])
    def test_any_real_dtype(self, dtype):
        assert to_uint8(torch.tensor([[0, 1]]).to(dtype), (0, 1)).tolist() == [[0, 255]]

    def test_a_constant_set_is_grey(self):
        assert to_uint8(torch.full((2, 3), 7.0)).unique().tolist() == [128]

    @pytest.mark.parametrize("bad", [(1, 1), (2, 1), (0, math.inf), (math.nan, 1)])
    def test_bad_ranges(self, bad):
        with pytest.raises(ValueError, match="low < high"):
            to_uint8(torch.zeros(1, 1), bad)

    def test_only_real_tensors(self):
        with pytest.raises(TypeError, match="ndarray"):
            to_uint8(np.zeros((1, 1)))
        with pytest.raises(TypeError, match="complex64"):
            to_uint8(torch.zeros(1, 1, dtype=torch.complex64))


class TestGrid:
    def test_size_and_place_of_every_tile(self):
        x = torch.arange(6.0)[:, None, None, None].expand(6, 1, 2, 3)
        grid = image_grid(x, rows=2, columns=3, scale=4, padding=5, value_range=(0, 5))
        assert grid.mode == "L" and grid.size == (3 * (12 + 5) + 5, 2 * (8 + 5) + 5)
        pixels = np.asarray(grid)
        for k in range(6):
            top, left = 5 + k // 3 * 13, 5 + k % 3 * 17
            assert (pixels[top : top + 8, left : left + 12] == 51 * k).all()
            assert (pixels[top - 5 : top, left : left + 12] == 96).all()

    def test_nearest_neighbours(self):
        x = noise(1, 1, 8, 8)
        pixels = np.asarray(image_grid(x, scale=3, padding=0))
        assert (pixels.reshape(8, 3, 8, 3).transpose(0, 2, 1, 3).reshape(8, 8, 9) == to_uint8(x)[0, 0].numpy()[..., None]).all()

    @pytest.mark.parametrize("side", [(8, 8), (33, 47), (64, 64)])
    def test_about_the_width_of_a_page(self, side):
        assert 450 <= max(image_grid(torch.rand(100, 1, *side)).size) <= 900

    def test_channels(self):
        x = torch.tensor([1.0, 0.0, 0.5])[None, :, None, None].expand(1, 3, 2, 2)
        colour = image_grid(x, scale=1, padding=0, value_range=(0, 1))
        assert colour.mode == "RGB" and colour.getpixel((0, 0)) == (255, 0, 128)
        for channels in (1, 2, 5):
            first = torch.zeros(1, channels, 2, 2)
            first[:, 0] = 0.2
            grey = image_grid(first, scale=1, padding=0, value_range=(0, 1))
            assert grey.mode == "L" and grey.getpixel((1, 1)) == 51

    def test_the_range_is_that_of_the_channels_shown(self):
        x = torch.tensor([[0.0, 1.0], [-100.0, 100.0]])[None, :, None, :]
        assert np.asarray(image_grid(x, scale=1, padding=0)).tolist() == [[0, 255]]

    def test_not_finite_is_red_and_nothing_else_is(self):
        x = torch.zeros(2, 3, 2, 2)
        x[0, 1, 0, 1], x[1, 2, 1, 0] = math.nan, -math.inf
        pixels = np.asarray(image_grid(x, rows=1, columns=2, scale=1, padding=0, value_range=(0, 1)))
        red = (pixels == NOT_FINITE).all(-1)
        assert red.tolist() == [[False, True, False, False], [False, False, True, False]]
        assert (pixels[~red] == 0).all()

    def test_fewer_images_than_places(self):
        assert image_grid(torch.zeros(3, 1, 2, 2), scale=1, padding=1).size == (10, 4)
        grid = image_grid(torch.ones(3, 1, 2, 2), rows=2, columns=2, scale=1, padding=0, value_range=(0, 1))
        assert np.asarray(grid)[2:, 2:].tolist() == [[96, 96], [96, 96]]

    @pytest.mark.parametrize("shape", [(3, 4), (0, 1, 2, 2), (2, 1, 3), (1, 1, 0, 2)])
    def test_bad_shapes(self, shape):
        with pytest.raises(ValueError, match=r"\(N, C, H, W\)"):
            image_grid(torch.zeros(shape))

    @pytest.mark.parametrize("bad", [{"rows": 0}, {"columns": -1}, {"scale": -2}, {"scale": 0}, {"padding": -1}])
    def test_bad_counts(self, bad):
        with pytest.raises(ValueError, match=next(iter(bad))):
            image_grid(torch.zeros(1, 1, 2, 2), **bad)


class TestStrip:
    labels = ("t = 0.5\nσ = 1", "t = 1.0\nσ = 50")

    def columns(self, n=3):
        base = torch.zeros(n, 1, 4, 4)
        base[:, :, :2] = 1
        return base, [base + 0.5 * noise(n, 1, 4, 4), 50 * noise(n, 1, 4, 4, seed=1)]

    def test_rows_are_images_and_columns_are_times(self):
        grey = torch.tensor([[10, 20, 30], [110, 120, 130]])  # two images at three times
        columns = [column.view(2, 1, 1, 1).expand(2, 1, 4, 4) / 255 for column in grey.T]
        strip = np.asarray(forward_strip(columns[0], columns[1:], self.labels, value_range=(0, 1)).convert("L"))
        step = strip.shape[1] // 3
        for k in range(3):
            line = strip[:, k * step + step // 2]
            values, counts = np.unique(line, return_counts=True)
            assert set(grey[:, k].tolist()) <= set(values[counts > 40].tolist())
            assert np.flatnonzero(line == grey[0, k].item()).max() < np.flatnonzero(line == grey[1, k].item()).min()
        assert 600 <= strip.shape[1] <= 1000

    def test_labels_stand_above_their_columns(self):
        images, levels = self.columns()
        with_label = np.asarray(forward_strip(images, levels, ("", "IIIII")).convert("L"), dtype=int)
        without = np.asarray(forward_strip(images, levels, ("", " ")).convert("L"), dtype=int)
        assert with_label.shape == without.shape
        changed = np.argwhere(with_label != without)
        assert len(changed) and changed[:, 0].max() < 40 and changed[:, 1].min() > 2 / 3 * with_label.shape[1]

    def test_far_noise_is_not_black_and_white(self):
        images, levels = self.columns(6)
        third = -forward_strip(images, levels, self.labels).width // 3
        own = np.asarray(forward_strip(images, levels, self.labels).convert("L"))[60:, third:]
        assert len(np.unique(own)) > 40

    def test_nan_is_red_and_said(self):
        images, levels = self.columns()
        clean = forward_strip(images, levels, self.labels)
        levels[0][1] = math.nan
        marked = forward_strip(images, levels, self.labels)
        assert (np.asarray(marked) == NOT_FINITE).all(-1).any()
        assert not (np.asarray(clean) == NOT_FINITE).all(-1).any()
        assert marked.height > clean.height

    def test_one_label_more_names_the_images(self):
        images, levels = self.columns()
        assert forward_strip(images, levels, ("a", "b", "c")).size == forward_strip(images, levels, ("b", "c")).size

    def test_bad_arguments(self):
        images, levels = self.columns()
        with pytest.raises(ValueError, match="2 levels need 2 labels"):
            forward_strip(images, levels, ("one",))
        with pytest.raises(ValueError, match="level 1"):
            forward_strip(images, [levels[0][:1]], ("t",))

    def test_level_label_doubles_lambda(self):
        assert level_label(0.25, 0.5, -1.5).split("\n") == ["t = 0.25", "σ = 0.5", "log-SNR \N{MINUS SIGN}3.0"]


class TestFiles:
    def test_png_is_lossless(self, tmp_path):
        grid = image_grid(noise(4, 3, 5, 5))
        path = save_image(grid, tmp_path / "a.png")
        with Image.open(path) as read:
            assert np.array_equal(np.asarray(read), np.asarray(grid))
            assert round(read.info["dpi"][0]) == 110

    def test_gif_times_frames_and_colours(self, tmp_path):
        frames = [Image.new("RGB", (40, 30), c) for c in ((255, 255, 255), NOT_FINITE, (0, 0, 0), (0, 114, 178))]
        path = save_gif(frames, tmp_path / "a.gif", fps=10, hold=1.5)
        assert durations(path) == [100, 100, 100, 1500]
        with Image.open(path) as film:
            assert film.info["loop"] == 0
            for k, frame in enumerate(frames):
                film.seek(k)
                difference = np.asarray(film.convert("RGB"), dtype=int) - np.asarray(frame, dtype=int)
                assert np.abs(difference).max() <= (0 if k < 3 else 4)

    def test_one_frame_is_held(self, tmp_path):
        path = save_gif([Image.new("L", (4, 4))], tmp_path / "a.gif", fps=10, hold=2)
        with Image.open(path) as film:
            assert film.n_frames == 1 and film.info["duration"] == 2000

    @pytest.mark.parametrize(
        ("change", "message"),
        [({"fps": 0}, "fps"), ({"fps": 51}, "fps"), ({"hold": -1}, "hold"), ({"hold": math.nan}, "hold"), ({"frames": []}, "0")],
    )
    def test_bad_films(self, tmp_path, change, message):
        arguments = {"frames": [Image.new("L", (4, 4))], "fps": 10.0} | change
        with pytest.raises(ValueError, match=message):
            save_gif(arguments.pop("frames"), tmp_path / "a.gif", **arguments)
        assert not list(tmp_path.iterdir())

    def test_frames_of_two_sizes(self, tmp_path):
        with pytest.raises(ValueError, match="same size"):
            save_gif([Image.new("L", (4, 4)), Image.new("L", (4, 5))], tmp_path / "a.gif")

    def test_wrong_suffix(self, tmp_path):
        with pytest.raises(ValueError, match=r"\.png.*a\.jpg"):
            save_image(Image.new("L", (4, 4)), tmp_path / "a.jpg")
        with pytest.raises(ValueError, match=r"\.gif"):
            save_gif([Image.new("L", (4, 4))], tmp_path / "a.png")

    def test_a_failed_write_leaves_nothing(self, tmp_path, monkeypatch):
        def half(self, path, *args, **kwargs):
            path.write_bytes(b"half")
            raise OSError("disk full")

        path = save_image(Image.new("L", (4, 4)), tmp_path / "a.png")
        old = path.read_bytes()
        monkeypatch.setattr(Image.Image, "save", half)
        with pytest.raises(OSError, match="disk full"):
            save_image(Image.new("L", (8, 8)), path)
        assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == old
