"""Which values of a table's samples are missing, as the command line says it: like the data, none, or as in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..conditions import Condition, ValidFeatures
from ..data.arrays import open_npy
from ..data.columns import Codec
from ..data.columns.codec import VALID
from ..data.columns.known import read_known
from ..data.columns.patterns import KEY, of_columns, of_rows
from ..data.tables import ENDINGS
from .given_conditions import Given


def told_of_gaps(encoders: Mapping[str, Condition], config: Mapping[str, Any] | None) -> Codec | None:
    """The codec of `config` where the network is told of a table's gaps, else None."""
    if config is None or not isinstance(encoders.get(VALID), ValidFeatures) or KEY not in config:
        return None
    return Codec.from_config(config)


def gaps_in_file(codec: Codec, path: str, samples: int) -> Given:
    """The gaps of as many rows as there are samples, or of one: of a table (.csv, .tsv, .parquet) with the run's columns, in which what
    else its cells hold means nothing, or of a .npy file (N, columns whose gaps are a condition) of ones and of zeros for gaps.

    Raises ValueError, one line, for a file that is neither, or leaves a row nothing.
    """
    file, ending = Path(path), Path(path).suffix.lower()
    names = [name for name, masked in zip(codec.names, codec.masked, strict=True) if masked]
    if ending in ENDINGS:
        if not file.is_file():
            raise ValueError("no such file; a table whose gaps are those of the samples is needed")
        valid = of_rows(codec, read_known(file, codec))
    elif ending == ".npy":
        known = np.asarray(open_npy(file))
        if known.ndim != 2 or known.shape[1] != len(names) or not np.isin(known, (0, 1)).all():
            raise ValueError(
                f"it holds {known.dtype} of shape {known.shape}; ones and zeros (N, {len(names)}) of {', '.join(names[:8])} are needed"
            )
        valid = of_columns(codec, [known[:, k] != 0 for k in range(len(names))])
    else:
        raise ValueError("a table or a .npy file, whose gaps are those of the samples, is needed, or nothing for rows without gaps")
    if len(valid) not in (1, samples):
        raise ValueError(f"it has {len(valid):,} rows for {samples:,} samples; one, or as many, are needed")
    if not valid.any(1).all():
        raise ValueError(f"row {int((~valid.any(1)).argmax())} has nothing but gaps; at least one value of each must be there")
    return Given(path, valid, None, hashlib.sha256(file.read_bytes()).hexdigest())


def split_texts(texts: Sequence[str]) -> tuple[list[str], str | None]:
    """The conditions "NAME=VALUE" without that which says where gaps are, and its value: None where it is not there, "" for none."""
    ours = [text for text in texts if text.partition("=")[0] == VALID and "=" in text]
    if len(ours) > 1:
        raise ValueError(f"--cond {ours[1]}: condition {VALID!r} is given twice")
    return [text for text in texts if text not in ours], ours[0].partition("=")[2] if ours else None
