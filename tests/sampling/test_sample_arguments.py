"""`sample` refuses bad arguments in one line, before any network call."""

import pytest
import torch
from toys import ToyDDIM

from sde_gen import ScoreModel, make_sde, sample


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"shape": (4,)}, ValueError, r"shape must be \(N, \*data shape\) with positive entries, got \(4,\)"),
        ({"shape": (0, 2)}, ValueError, "shape must be"),
        ({"shape": (4, -2)}, ValueError, "shape must be"),
        ({"shape": (4.5, 2)}, TypeError, r"whole numbers, got \(4.5, 2\)"),
        ({"shape": 4}, TypeError, "whole numbers, got 4"),
        ({"solver": "rk4"}, ValueError, "unknown solver 'rk4'; choose from .*em, .*pc"),
        ({"solver": 3}, TypeError, "solver must be a name or a Solver, got 3"),
        ({"solver": ToyDDIM}, TypeError, "solver must be a name or a Solver"),
        ({"snr": 0.1}, ValueError, "solver 'em' has no setting snr; it takes eta"),
        ({"solver": ToyDDIM(), "snr": 0.1}, ValueError, "options snr belong to a solver given by name"),
        ({"steps": 0}, ValueError, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, ValueError, "steps must be a whole number"),
        ({"steps": True}, ValueError, "steps must be a whole number"),
        ({"seed": -1}, ValueError, "seed must be in"),
        ({"seed": 0.5}, TypeError, "seed must be an integer, got 0.5"),
        ({"final": "clean"}, ValueError, "unknown final 'clean'; choose from denoise, raw"),
        ({"on_failure": "ignore"}, ValueError, "unknown on_failure 'ignore'; choose from raise, mask"),
        ({"trajectory": True}, ValueError, "unknown trajectory True; choose from None, states, denoised"),
        ({"grid": "linear"}, ValueError, "unknown grid 'linear'; choose from time"),
        ({"grid": "linear", "solver": "ode"}, ValueError, "unknown grid 'linear'"),
        ({"grid": ""}, ValueError, "unknown grid ''"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.0}, ValueError, "batch_size must be a whole number"),
        ({"index_offset": -1}, ValueError, "index_offset must be a whole number of at least 0, got -1"),
        ({"index_offset": 0.5}, ValueError, "index_offset must be a whole number"),
        ({"t_start": 1.5}, ValueError, r"t_start must be in \[t_min, t_max\] = .*, got 1.5"),
        ({"t_end": 0.0}, ValueError, "t_end must be in"),
        ({"t_end": float("nan")}, ValueError, "t_end must be in"),
        ({"t_start": 0.5, "t_end": 0.5}, ValueError, "t_start and t_end must differ, both are 0.5"),
        ({"t_start": 0.2, "t_end": 0.5}, ValueError, "solver 'em' runs from noise to data only"),
        ({"t_start": 0.2, "t_end": 0.5, "solver": "ancestral"}, ValueError, "runs from noise to data only"),
        ({"t_start": 0.2, "t_end": 0.5, "solver": "pc"}, ValueError, "runs from noise to data only"),
        ({"x_init": torch.zeros(3, 2)}, ValueError, r"x_init must have shape \(4, 2\), got \(3, 2\)"),
        ({"x_init": [0.0]}, TypeError, "x_init must be a tensor, got list"),
        ({"cond": {"label": torch.zeros(3)}}, ValueError, r"condition 'label' must have first dimension 4, got shape \(3,\)"),
        ({"cond": {"label": torch.tensor(3)}}, ValueError, "condition 'label' must have first dimension 4"),
        ({"cond": {"label": 3}}, TypeError, "condition 'label' must be a tensor, got int"),
        ({"cond": torch.ones(3)}, TypeError, "cond must be a dict of tensors by name, got Tensor"),
        ({"dtype": torch.int64}, TypeError, "states are float32 or float64.*got torch.int64"),
    ],
)
def test_bad_arguments(arguments, error, match):
    calls = []
    model = ScoreModel(lambda x, c, **cond: calls.append(1) or x, make_sde("vp"))
    with pytest.raises(error, match=match) as caught:
        sample(model, **{"shape": (4, 2), "solver": "em", "progress": False, **arguments})
    assert "\n" not in str(caught.value) and not calls
