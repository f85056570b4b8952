"""Tables of words, counts, zeros, gaps and angles: how near samples are to the law of the table, beside other generators of tables.

    python benchmarks/tables.py [--table rain adult kinds] [--of sde_gen ctgan] [--ctgan DIR] [--quick]

Each table is made here, so that its law is known: 10,000 rows are trained on (ours holds a tenth of 11,111 out), and
10,000 samples are compared with rows of the law that no generator has seen. Our network and training are the recipe of tables of kinds
(`sde_gen.commands.recipes.TABLES`), on one thread.

zeros          of each column with exact zeros: the share among samples less that among the training rows.
quantiles      of each column of numbers: the share of samples below the law's quantiles .5, .75, .9, .99 and .999, less that number,
               in standard deviations of what 10,000 training rows and 10,000 samples of the law itself would show. The share of these
               within 2.58, the largest, and what the rows of the law give beside.
categories     of each word and gap: the same of its share. impossible: words that the table does not have, negative values of columns that
               are never negative.
correlations   the largest difference of a correlation of the law's, of Spearman's ranks of numbers and Booleans of words and gaps; and the
               largest of the training rows', which differ from the law's themselves.
classifier     gradient boosting (scikit-learn) told samples from rows of the law, 5-fold: area under the curve and its standard error over
               the folds; 0.5 is no difference. Gaps and words are what they are for it.

sde_gen        ours. gaussian copula: written here: normal scores of the training rows' ranks (words as numbers in the order of their
               frequency, ties broken at random), their correlation matrix, and the training rows' quantiles back. ctgan: ctgan 0.12.1 with
               its defaults (300 epochs), in the folder that --ctgan names. rows of the law: what nothing can better.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

import sde_gen
from sde_gen.commands.recipes import TABLES
from sde_gen.data.toy_tables import adult_table, rain_table
from sde_gen.unknown_numbers import to_json

HERE = Path(__file__).parent
ROWS, TRUTH = 10_000, 200_000
LEVELS = (0.5, 0.75, 0.9, 0.99, 0.999)
BAND = 2.58
Table = Mapping[str, np.ndarray]


def kinds_table(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A column of each kind, not a Gaussian copula: two classes, each with a sign of its own in what depends on what."""
    rng = np.random.default_rng([seed, 3])
    one = rng.uniform(size=count) < 0.4
    u, v, w, s, p = rng.standard_normal((5, count))
    v = np.where(one, 0.8, -0.6) * u + 0.6 * v
    turn = np.where(one, 1.0, 3.5) + 0.5 * w + 0.3 * u
    rate = np.exp(0.4 + 0.7 * v)
    count_of = rng.poisson(rate)
    calls = np.where(rng.uniform(size=count) < 0.3, 0, rng.negative_binomial(2, 1 / (1 + np.exp(0.8 * u) * 4)))
    words = np.array(["ash", "beech", "cedar", "elm", "fir", "larch", "oak", "pine"])
    scores = np.stack([0.4 * k * u * np.where(one, 1, -1) - 0.12 * k**2 * 0.3 for k in range(len(words))], 1)
    tree = words[(scores + rng.gumbel(size=scores.shape)).argmax(1)]
    return {
        "income": np.exp(8 + 0.8 * u + 0.3 * s),
        "bounded": 1 / (1 + np.exp(-1.5 * v)),
        "phase": turn % (2 * np.pi),
        "count": count_of.astype(float),
        "calls": calls.astype(float),
        "tree": tree,
        "class": np.where(one, "first", "second"),
        "level": np.where(rng.uniform(size=count) < 1 / (1 + np.exp(-p - u)) * 0.3, np.nan, p + np.where(one, 2, -2)),
    }


TABLES_MADE = {"rain": rain_table, "adult": adult_table, "kinds": kinds_table}


def ours(table: Table, count: int, quick: bool, options: dict[str, Any]) -> tuple[Table, Table, dict[str, Any]]:
    """Samples of a network trained on the table, the rows that it was trained on, and what it took."""
    data = sde_gen.load_dataset(table)
    training = TABLES["training"] | options.get("training", {}) | ({"steps": 20} if quick else {})
    network = TABLES["model"]["options"] | options.get("network", {})
    began = time.process_time()
    assert data.codec is not None
    model = sde_gen.train(data, network="mlp", network_options=network, **training)
    seconds = time.process_time() - began
    out = sde_gen.sample(
        model, (count, *data.shape), "heun", steps=options.get("steps", TABLES["sampling"]["steps"]), batch_size=count, progress=False
    )
    facts = {"seconds": seconds, "features": data.shape[0], "network": network, "training": training}

    def columns_of(x: torch.Tensor) -> Table:
        assert data.codec is not None
        columns = data.codec.decode(x.numpy())
        return {c.name: np.where(c.missing, "" if c.values.dtype.kind == "U" else np.nan, c.values) for c in columns}

    return columns_of(out.x), columns_of(data.train), facts


def gaussian_copula(table: Table, count: int, seed: int = 0) -> Table:
    """Samples of the Gaussian copula of a table with the margins of its rows."""
    rng = np.random.default_rng(seed)
    scores, sorted_rows = [], {}
    for name, values in table.items():
        number = _as_numbers(values)
        order = np.lexsort((rng.uniform(size=len(number)), number))
        rank = np.empty(len(order))
        rank[order] = np.arange(len(order))
        scores.append(stats.norm.ppf((rank + 0.5) / len(rank)))
        sorted_rows[name] = values[order]
    drawn = stats.norm.cdf(rng.multivariate_normal(np.zeros(len(scores)), np.corrcoef(scores), count))
    return {name: rows[(drawn[:, k] * len(rows)).astype(int).clip(0, len(rows) - 1)] for k, (name, rows) in enumerate(sorted_rows.items())}


def _as_numbers(values: np.ndarray) -> np.ndarray:
    """Words by their frequency, gaps of numbers below all."""
    if values.dtype.kind != "U":
        return np.where(np.isnan(values), -np.inf, values)
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (-counts).argsort(kind="stable").argsort()[index].astype(float)


def ctgan(table: Table, count: int, folder: Path, quick: bool) -> Table:
    """Samples of CTGAN with its defaults; gaps of numbers, which it does not take, are a column of words beside the median."""
    sys.path.append(str(folder))
    import pandas
    from ctgan import CTGAN  # type: ignore[import-not-found]

    columns, discrete = {}, []
    for name, values in table.items():
        if values.dtype.kind == "U":
            columns[name] = values
            discrete.append(name)
            continue
        gone = np.isnan(values)
        columns[name] = np.where(gone, np.nanmedian(values), values)
        if gone.any():
            columns[f"{name}?"] = gone.astype(str)
            discrete.append(f"{name}?")
    torch.manual_seed(0)
    np.random.seed(0)  # ctgan draws from it
    made = CTGAN(epochs=2 if quick else 300, enable_gpu=False)
    made.fit(pandas.DataFrame(columns), discrete)
    found = made.sample(count)
    out = {}
    for name, values in table.items():
        new = found[name].to_numpy()
        if values.dtype.kind == "U":
            out[name] = new.astype(str)
            continue
        known = values[~np.isnan(values)]
        new = np.round(new) if bool((known == np.round(known)).all()) else new
        out[name] = np.where(found[f"{name}?"].to_numpy() == "True", np.nan, new) if f"{name}?" in columns else new.astype(float)
    return out


def measure(samples: Table, law: Table, fresh: Table, trained: Table) -> dict[str, Any]:
    """Samples against the law, many rows of it, as many fresh ones as there are samples, and the rows that were trained on."""
    n = len(next(iter(samples.values())))
    deviation = math.sqrt(1 / n + 1 / ROWS)
    zeros, scores, shares, impossible = {}, [], [], 0
    for name, of_law in law.items():
        mine = samples[name]
        if of_law.dtype.kind == "U":
            for word in np.unique(of_law):
                p = float((of_law == word).mean())
                shares.append((float((mine == word).mean()) - p) / (math.sqrt(p * (1 - p)) * deviation))
            impossible += int((~np.isin(mine, np.unique(of_law))).sum())
            continue
        gone, theirs = np.isnan(mine), np.isnan(of_law)
        if theirs.any():
            p = float(theirs.mean())
            shares.append((float(gone.mean()) - p) / (math.sqrt(p * (1 - p)) * deviation))
        mine, of_law = mine[~gone], of_law[~theirs]
        if of_law.min() >= 0:
            impossible += int((mine < 0).sum())
        if (of_law == 0).mean() > 0.01:
            of_rows = trained[name][~np.isnan(trained[name])]
            zeros[name] = float((mine == 0).mean() - (of_rows == 0).mean())
        for level in LEVELS:
            q = float(np.quantile(of_law, level, method="inverted_cdf"))
            p = float((of_law <= q).mean())  # of whole numbers more than the level
            if p * (1 - p) * n >= 1:
                scores.append((float((mine <= q).mean()) - p) / (math.sqrt(p * (1 - p)) * deviation))
    auc, error = classifier(samples, fresh)
    of_samples = correlations(samples, law)
    return {
        "zeros": zeros,
        "quantiles": {"within": float((np.abs(scores) < BAND).mean()), "largest": float(np.abs(scores).max()), "count": len(scores)},
        "categories": None
        if not shares
        else {"within": float((np.abs(shares) < BAND).mean()), "largest": float(np.abs(shares).max()), "count": len(shares)},
        "impossible": impossible,
        "correlations": float(np.abs(of_samples - correlations(law, law)).max()),
        "correlations of rows": float(np.abs(of_samples - correlations(trained, law)).max()),
        "classifier": [auc, error],
    }


def correlations(table: Table, like: Table) -> np.ndarray:
    """Of Spearman's ranks of numbers, Booleans of words and gaps; gaps of numbers stand at their mean rank."""
    rows = []
    for name, of_law in like.items():
        values = table[name]
        if of_law.dtype.kind == "U":
            rows += [(values == word).astype(float) for word in np.unique(of_law)[1:]]
            continue
        gone = np.isnan(values)
        rank = np.zeros(len(values))
        rank[~gone] = stats.rankdata(values[~gone])
        rank[gone] = rank[~gone].mean()
        rows += [rank] + ([gone.astype(float)] if np.isnan(of_law).any() else [])
    return np.corrcoef(rows)


def classifier(samples: Table, fresh: Table, folds: int = 5) -> tuple[float, float]:
    """Area under the curve of gradient boosting, and its standard error over the folds."""
    parts, categorical = [], []
    for name, of_law in fresh.items():
        both = np.concatenate((samples[name], of_law))
        words = of_law.dtype.kind == "U"
        categorical.append(words)
        parts.append(np.unique(both, return_inverse=True)[1].astype(float) if words else both.astype(float))
    x, y = np.stack(parts, 1), np.repeat([0, 1], (len(next(iter(samples.values()))), len(next(iter(fresh.values())))))
    found = []
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(x, y):
        trees = HistGradientBoostingClassifier(categorical_features=categorical, random_state=0).fit(x[train], y[train])
        found.append(float(roc_auc_score(y[test], trees.predict_proba(x[test])[:, 1])))
    return float(np.mean(found)), float(np.std(found, ddof=1) / math.sqrt(folds))


def shown(name: str, row: dict[str, Any]) -> str:
    zeros, (auc, error) = max(map(abs, row["zeros"].values()), default=math.nan), row["classifier"]
    words = "" if row["categories"] is None else f"{row['categories']['within']:5.0%} {row['categories']['largest']:6.1f}"
    between = f"correlations {row['correlations']:.3f} {row.get('correlations of rows', math.nan):.3f}"
    took = f"  {row['seconds']:.0f} s" if "seconds" in row else ""
    return (
        f"{name:16} zeros {zeros:7.4f}  quantiles {row['quantiles']['within']:5.0%} {row['quantiles']['largest']:6.1f}  words {words:12}  "
        f"impossible {row['impossible']:4d}  {between}  AUC {auc:.3f} +- {error:.3f}{took}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="+", default=list(TABLES_MADE), choices=list(TABLES_MADE))
    parser.add_argument("--of", nargs="+", default=["sde_gen"], choices=["sde_gen", "ctgan"], help="beside the copula")
    parser.add_argument(
        "--ctgan", type=Path, default=Path("ctgan"), help="folder that ctgan, rdt and faker are installed in (pip install --target)"
    )
    parser.add_argument("--quick", action="store_true", help="little training: whether everything runs")
    parser.add_argument("--options", type=json.loads, default={}, help="JSON: training, network and steps in the place of the recipe's")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tables.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in arguments.table:
        make = TABLES_MADE[name]
        table, fresh, law = make(ROWS, 0), make(ROWS, 1), make(TRUTH, 2)
        rows: dict[str, Any] = {"rows of the law": measure(make(ROWS, 3), law, fresh, table)}
        rows["gaussian copula"] = measure(gaussian_copula(table, ROWS), law, fresh, table)
        if "sde_gen" in arguments.of:
            found, trained, facts = ours(make(ROWS * 10 // 9 + 1, 4), ROWS, arguments.quick, arguments.options)
            rows["sde_gen"] = measure(found, law, fresh, trained) | facts
        if "ctgan" in arguments.of:
            began = time.process_time()
            rows["ctgan"] = measure(ctgan(table, ROWS, arguments.ctgan, arguments.quick), law, fresh, table)
            rows["ctgan"]["seconds"] = time.process_time() - began
        results[name] = rows
        print(name)
        for of, row in rows.items():
            print(shown(of, row), flush=True)
    if not arguments.quick:
        known = json.loads(arguments.out.read_text(encoding="utf-8"))["tables"] if arguments.out.exists() else {}
        tables = known | {name: known.get(name, {}) | rows for name, rows in results.items()}
        arguments.out.write_text(to_json({"rows": ROWS, "levels": LEVELS, "band": BAND, "tables": tables}, 1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
