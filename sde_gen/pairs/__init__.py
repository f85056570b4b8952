"""Pairs: what two kinds of data know of one another. Towers that put pictures and captions into one space (CLIP), and retrieval in it."""

from .clip import CLIP
from .contrast import info_nce, information_bound
from .retrieval import Recall, recall
from .towers import ImageTower, TextTower
from .unclip import UnCLIP

__all__ = ["CLIP", "ImageTower", "Recall", "TextTower", "UnCLIP", "info_nce", "information_bound", "recall"]
