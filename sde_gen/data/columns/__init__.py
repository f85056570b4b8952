"""Columns of tables as they are, words, counts, gaps and angles, and as the real features that a model is trained on."""

from sde_gen.data.columns.codec import Codec, Column
from sde_gen.data.columns.kinds import KINDS, Kind

__all__ = ["KINDS", "Codec", "Column", "Kind"]
