import math

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from PIL import Image

from sde_gen.report import loss_figure, plot_clouds, plot_loss, plot_pairs, plot_points, plot_points_film
from sde_gen.report.images import NOT_FINITE


def reds(path):
    with Image.open(path) as image:
        return int((np.asarray(image.convert("RGB")) == NOT_FINITE).all(-1).sum())


def points(n=300, d=2, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def history(n=200):
    rows = [{"step": 10 * k, "seconds": 0.1 * k, "loss": 1 / (1 + k)} for k in range(n)]
    for k in range(9, n, 10):
        rows[k] |= {"validation": 2 / (1 + k), "levels": [3.0, -3.0, 0.0], "level_loss": [0.9, 0.1 + 1 / k, 0.4]}
    return rows


BASELINES = {"levels": [-4.0, 4.0], "zero": [2.0, 2.0], "linear": [0.5, 1.9]}


class TestLoss:
    def lines(self, axes):
        return {line.get_label(): line for line in axes.lines}

    def test_every_panel_holds_what_was_recorded(self):
        training, held_out, right = loss_figure(history(), BASELINES).axes
        assert set(self.lines(training)) == {"each entry", "smoothed"}  # of another scale than the held-out error: not on one axis
        (line,) = held_out.lines
        assert line.get_xdata().tolist() == [10 * k for k in range(9, 200, 10)]
        assert line.get_ydata().tolist() == [2 / (1 + k) for k in range(9, 200, 10)]
        assert "1,990 steps in 20 s" in training.get_title(loc="left")
        lines = self.lines(right)
        bold = lines["network, step 1,990"]
        assert bold.get_xdata().tolist() == [-3, 0, 3]  # sorted
        assert bold.get_ydata().tolist() == pytest.approx([(0.1 + 1 / 199) / 2, 0.2, 0.45])  # over the zero predictor's 2
        assert lines["zero predictor"].get_ydata() == [1, 1]
        assert lines["optimal linear denoiser"].get_ydata().tolist() == pytest.approx([0.25, 0.95])
        earlier = [line for name, line in lines.items() if name.startswith("network") and line is not bold]
        assert len(earlier) == 4 and all(line.get_linewidth() < bold.get_linewidth() for line in earlier)

    def test_no_legend_lies_on_a_curve_by_noise_level(self):
        figure = loss_figure(history(), BASELINES | {"best": [1.0, 0.0]})
        figure.canvas.draw()
        right = figure.axes[2]
        assert right.get_legend().get_window_extent().y1 < right.get_window_extent().y0

    def test_where_nothing_was_held_out_there_is_no_panel_for_it(self):
        training, _ = loss_figure([{"step": k, "loss": 1.0} for k in range(3)]).axes
        assert set(self.lines(training)) == {"training"} and "training step" in training.get_xlabel()

    def test_the_best_on_the_training_data_is_cut_off_where_the_others_end(self):
        best = BASELINES | {"levels": [-4.0, 4.0], "best": [1.0, 0.0]}
        right = loss_figure(history(), best).axes[2]
        line = self.lines(right)["best possible on the training data"]
        bottom = right.get_ylim()[0]
        assert right.get_yscale() == "log" and bottom > 0.01
        assert line.get_ydata()[0] == pytest.approx(0.5) and 0 < line.get_ydata()[1] < bottom
        flat = [{"step": 1, "loss": 1.0, "levels": [-1.0, 1.0], "level_loss": [0.9, 0.8]}]
        right = loss_figure(flat, {"levels": [-1.0, 1.0], "best": [0.7, 0.0]}).axes[1]
        assert right.get_yscale() == "linear" and right.get_ylim()[0] <= 0
        assert self.lines(right)["best possible on the training data"].get_ydata().tolist() == pytest.approx([0.7, 0.0])

    def test_without_zero_the_losses_are_relative_already(self):
        right = loss_figure(history()).axes[2]
        assert self.lines(right)["network, step 1,990"].get_ydata().tolist() == pytest.approx([0.1 + 1 / 199, 0.4, 0.9])
        assert "optimal linear denoiser" not in self.lines(right)

    def test_smoothing_keeps_a_constant_and_passes_over_nan(self):
        rows = [{"step": k, "loss": 0.5 if k != 50 else math.nan} for k in range(100)]
        lines = self.lines(loss_figure(rows).axes[0])
        assert lines["smoothed"].get_ydata().tolist() == pytest.approx([0.5] * 100)
        assert lines["not finite (1)"].get_xdata().tolist() == [50]

    def test_file(self, tmp_path):
        rows = history()
        clean = plot_loss(rows, tmp_path / "a.png", BASELINES)
        assert reds(clean) == 0
        rows[70]["loss"] = math.inf
        assert reds(plot_loss(rows, tmp_path / "b.png")) > 10

    @pytest.mark.parametrize("n", [1, 2, 25])
    def test_short_histories(self, tmp_path, n):
        plot_loss([{"step": k, "loss": math.nan if n == 1 else 0.0} for k in range(n)], tmp_path / "a.png")

    @pytest.mark.parametrize(
        ("rows", "baselines", "message"),
        [
            ([], None, "at least one"),
            ([{"step": 1}], None, "loss"),
            ([{"step": 1, "loss": 1.0, "levels": [1.0], "level_loss": [1.0, 2.0]}], None, "1 and 2"),
            ([{"step": 1, "loss": 1.0, "level_loss": [1.0]}], None, "0 and 1"),
            ([{"step": 1, "loss": 1.0}], {"linear": [1.0]}, "levels"),
            ([{"step": 1, "loss": 1.0}], {"levels": [1.0], "quadratic": [1.0]}, "quadratic"),
            ([{"step": 1, "loss": 1.0}], {"levels": [1.0], "linear": [1.0, 2.0]}, "equal lengths"),
        ],
    )
    def test_bad_histories(self, tmp_path, rows, baselines, message):
        with pytest.raises(ValueError, match=message):
            plot_loss(rows, tmp_path / "a.png", baselines)
        assert not list(tmp_path.iterdir())


class TestPoints:
    def test_two_panels_or_one(self, tmp_path):
        both = plot_points(points(), points(seed=1), tmp_path / "a.png", "title")
        alone = plot_points(points(), None, tmp_path / "b.png")
        with Image.open(both) as a, Image.open(alone) as b:
            assert a.width > 1.7 * b.width

    @pytest.mark.parametrize(("n", "bad"), [(300, math.nan), (5000, math.inf)])
    def test_what_cannot_be_placed_is_red(self, tmp_path, n, bad):
        x, reference = 0.5 * points(n), 2 * points(n)
        assert reds(plot_points(x, reference, tmp_path / "a.png")) == 0
        x[3, 1] = bad
        assert reds(plot_points(x, reference, tmp_path / "a.png")) > 20

    def test_a_point_outside_is_a_cross_on_the_edge(self, tmp_path):
        x, reference = 0.5 * points(), 2 * points()
        x[3] = torch.tensor([1e6, 0.0])
        with Image.open(plot_points(x, reference, tmp_path / "a.png")) as image:
            red = np.argwhere((np.asarray(image.convert("RGB")) == NOT_FINITE).all(-1))
            cross = red[red[:, 1] > 0.95 * image.width]
            assert len(cross) > 5 and abs(cross[:, 0].mean() / image.height - 0.5) < 0.1

    @pytest.mark.parametrize("n", [300, 5000])
    def test_nothing_to_place_at_all(self, tmp_path, n):
        assert reds(plot_points(torch.full((n, 2), math.nan), None, tmp_path / "a.png")) > 20

    def test_identical_points(self, tmp_path):
        plot_points(torch.ones(10, 2), torch.ones(10, 2), tmp_path / "a.png")

    def test_film(self, tmp_path):
        frames = [points(50) * s for s in (3.0, 2.0, 1.0)]
        frames[1][7] = math.nan
        path = plot_points_film(frames, tmp_path / "a.gif", fps=10)
        with Image.open(path) as film:
            assert film.n_frames == 3
            marked = []
            for k in range(3):
                film.seek(k)
                marked.append(bool((np.asarray(film.convert("RGB")) == NOT_FINITE).all(-1).any()))
            assert film.info["duration"] == 1500
        assert marked == [False, True, False]

    def test_bad_shapes(self, tmp_path):
        with pytest.raises(ValueError, match=r"samples must have shape \(N, 2\).*\(300, 3\)"):
            plot_points(points(d=3), None, tmp_path / "a.png")
        with pytest.raises(ValueError, match="2 frames need 2 labels"):
            plot_points_film([points(), points()], tmp_path / "a.gif", labels=["one"])
        with pytest.raises(ValueError, match="at least one frame"):
            plot_points_film([], tmp_path / "a.gif")


class TestVectors:
    @pytest.mark.parametrize("d", [1, 5])
    def test_pairs(self, tmp_path, d):
        x = points(d=d)
        path = plot_pairs(x, points(d=d, seed=1), tmp_path / "a.png", "title")
        assert reds(path) == 0
        x[0, 0] = math.nan
        assert reds(plot_pairs(x, None, tmp_path / "a.png")) > 3

    def test_pairs_of_nothing(self, tmp_path):
        plot_pairs(torch.full((4, 3), math.nan), None, tmp_path / "a.png")

    def test_pairs_need_equal_features(self, tmp_path):
        with pytest.raises(ValueError, match="not 3 and 4"):
            plot_pairs(points(d=3), points(d=4), tmp_path / "a.png")

    @pytest.mark.parametrize("d", [1, 2, 5])
    def test_clouds(self, tmp_path, d):
        columns = [points(d=d) * s for s in (1, 5, 50)]
        columns[1][0] = math.nan
        assert reds(plot_clouds(columns, ["a", "b", "c"], tmp_path / "a.png")) > 10


def test_matplotlib_is_left_as_it_was(tmp_path):
    before, figures = dict(matplotlib.rcParams), list(Gcf.figs)
    plot_loss(history(), tmp_path / "a.png")
    plot_points(points(), points(), tmp_path / "b.png")
    assert dict(matplotlib.rcParams) == before
    assert list(Gcf.figs) == figures  # pyplot's own
