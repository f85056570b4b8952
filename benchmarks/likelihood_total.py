"""What `likelihood_cost.py` prints of its parts together: the time for equal total error, of steps and of random vectors."""

from __future__ import annotations

import math
from typing import Any

DIM = 64
"""Of the digits."""


def total_errors(result: dict[str, Any]) -> dict[str, Any]:
    """Each setting's total error in nats for an image, sqrt(steps^2 + vectors^2), one vector each, and our time over theirs.

    result: of `likelihood_cost.main`; without both the parts digits and trace nothing is printed.

    The part of the vectors is the spread that `trace` found: theirs of one vector for the whole path without a control variate; ours of
    new vectors at each evaluation, in proportion to 1/sqrt(evaluations). The time is that of the fastest of our settings whose total
    error is not above theirs; None where no setting's is.
    """
    if not {"digits", "trace"} <= set(result):
        return {}
    digits, spreads = result["digits"], result["trace"]["estimators"]
    plain, ours = (spreads[name] for name in ("hutchinson alone, rademacher", "resampled, rademacher"))
    rows: dict[str, Any] = {}
    for name, table in digits["methods"].items():
        for tolerance, row in table.items():
            vectors = plain["spread"]
            if name == "sde_gen":
                vectors = ours["spread"] * math.sqrt(ours["evaluations"] / row["evaluations"])
            rows[f"{name}, {tolerance}"] = {"total": math.hypot(DIM * row["error"], vectors), "seconds": row["seconds"]}
    mine = [row for name, row in rows.items() if name.startswith("sde_gen")]
    for name, row in rows.items():
        if not name.startswith("sde_gen"):
            enough = [one["seconds"] for one in mine if one["total"] <= row["total"]]
            row["ratio"] = min(enough) / row["seconds"] if enough else None
    print("\n| digits, one vector each | total error, nats | seconds | ratio at equal total error |\n|---|---|---|---|")
    for name, row in rows.items():
        ratio = f"{row['ratio']:.3f}" if row.get("ratio") is not None else ""
        print(f"| {name} | {row['total']:.2f} | {row['seconds']:.2f} | {ratio} |")
    return rows
