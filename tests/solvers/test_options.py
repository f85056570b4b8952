"""Options of the solvers that have no file of their own here: refused in one line where they are out of range."""

import pytest

from sde_gen import make_solver

BAD = [
    ("ab", {"order": 5}, "order must be a whole number from 1 to 4"),
    ("ab", {"variable": "lambda"}, "unknown variable 'lambda'; choose from time, rho"),
    ("dpm", {"order": 0}, "order must be"),
    ("dpm", {"prediction": "v"}, "unknown prediction 'v'; choose from data, noise"),
    ("dpm_sde", {"order": 4}, "order must be a whole number from 1 to 3"),
    ("dpm_sde", {"eta": 0.0}, "eta must be positive"),
    ("unipc", {"order": True}, "order must be"),
    ("ddim", {"eta": 1.5}, r"eta must be in \[0, 1\]"),
    ("edm", {"s_churn": float("nan")}, "s_churn must be finite"),
    ("restart", {"rho_min": 2.0}, "0 < rho_min < rho_max"),
    ("restart", {"rounds": 0}, "rounds must be"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_out_of_range(name, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_solver(name, **options)
    assert "\n" not in str(caught.value)
