"""Pictures of data, samples and training. Each is written whole or not at all, and leaves no global state changed."""

from .comparisons import picture_rows, plot_comparison
from .conditions import picture_conditions
from .images import forward_strip, image_grid, level_label, save_gif, save_image, to_uint8
from .likelihoods import picture_extremes, plot_likelihoods, plot_terms
from .pictures import film_images, picture_film, picture_forward, picture_samples
from .plots import loss_figure, plot_clouds, plot_loss, plot_pairs, plot_points, plot_points_film
from .signals import plot_signals

__all__ = [
    "film_images",
    "forward_strip",
    "image_grid",
    "level_label",
    "loss_figure",
    "picture_conditions",
    "picture_extremes",
    "picture_film",
    "picture_forward",
    "picture_rows",
    "picture_samples",
    "plot_clouds",
    "plot_comparison",
    "plot_likelihoods",
    "plot_loss",
    "plot_pairs",
    "plot_points",
    "plot_points_film",
    "plot_signals",
    "plot_terms",
    "save_gif",
    "save_image",
    "to_uint8",
]
