"""Are the errors of the Frechet distance to fixed moments right, and what of its bias is left after extrapolation?

`python benchmarks/frechet_error.py` draws sets of N items of D features whose spreads fall as 1/sqrt(k), from Gaussian laws and from t
laws of four degrees of freedom, at three exact distances from a reference law. A row: mean and spread of the
distance over the draws, the mean of the errors stated, how often value +- 1.96 errors covers the mean; then the extrapolated value, how
often its interval covers the exact distance, and the share of the bias that is left. It takes about three minutes of one core; nothing
depends on how fast it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from sde_gen.metrics import Moments, frechet_to
from sde_gen.unknown_numbers import to_json

SIZES = ((64, 48), (64, 128), (64, 256), (64, 1024), (128, 512))
LAWS = (("gauss", 0.0, 0.0), ("gauss", 0.3, 0.2), ("gauss", 1.0, 0.5), ("t", 1.0, 0.5))


def draw(law: str, count: int, width: int, shift: float, stretch: float, generator: torch.Generator) -> Tensor:
    """(count, width) float64 with the law's covariance diag(1/k), stretched by direction, and the first entry shifted."""
    x = torch.randn(count, width, generator=generator, dtype=torch.float64)
    if law == "t":  # chi-square of four degrees of freedom as a sum of squares; the variance of the quotient is 2
        squares = torch.randn(count, 4, generator=generator, dtype=torch.float64).square().sum(1, keepdim=True)
        x = x * (4 / squares).sqrt() / 2**0.5
    x = x * spreads(width, stretch)
    x[:, 0] += shift
    return x


def spreads(width: int, stretch: float) -> Tensor:
    return torch.arange(1, width + 1, dtype=torch.float64).rsqrt() * (1 + stretch * torch.sin(torch.arange(width).double()))


def row(law: str, width: int, count: int, shift: float, stretch: float, draws: int) -> dict[str, float | str | int | None]:
    """What the draws of one law and size say."""
    generator = torch.Generator().manual_seed(count + width)
    reference = Moments(torch.zeros(width, dtype=torch.float64), torch.diag(spreads(width, 0).square()))
    exact = shift**2 + float((spreads(width, stretch) - spreads(width, 0)).square().sum())
    found = [frechet_to(draw(law, count, width, shift, stretch, generator), reference) for _ in range(draws)]
    numbers = [(one.value.value, one.value.std_error, one.unbiased.value, one.unbiased.std_error) for one in found]
    value, error, free, free_error = torch.tensor(numbers, dtype=torch.float64).T
    known = bool(free.isfinite().all())
    cells = {"law": law, "D": width, "N": count, "exact": exact, "mean": float(value.mean()), "spread": float(value.std())}
    cells |= {"stated": float(error.mean()), "covered": covered(value, error, float(value.mean()))}
    left = (float(free.mean()) - exact) / (float(value.mean()) - exact)
    of_free = {"extrapolated": float(free.mean()), "covered_exact": covered(free, free_error, exact), "bias_left": left}
    return cells | (of_free if known else dict.fromkeys(of_free))


def covered(value: Tensor, error: Tensor, truth: float) -> float:
    return float(((value - truth).abs() < 1.96 * error).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/frechet_error.json"))
    arguments = parser.parse_args()
    rows = []
    for width, count in SIZES:
        for law, shift, stretch in LAWS:
            rows.append(row(law, width, count, shift, stretch, arguments.draws))
            if len(rows) == 1:
                print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
            print(
                "| " + " | ".join(f"{cell:.4g}" if isinstance(cell, float) else str(cell or "-") for cell in rows[-1].values()) + " |",
                flush=True,
            )
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(to_json({"draws": arguments.draws, "rows": rows}, 1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
