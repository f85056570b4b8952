import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_card_it_says_what_can_be_done() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], text=True, capture_output=True)
    assert done.returncode == 2
    assert done.stderr.strip() == "PyTorch sees no CUDA device here; --dry-run cpu runs everything at toy size on the CPU"
