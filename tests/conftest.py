"""Shared by all tests."""

import torch

# The tensors here are small: threads would only wait for each other, and parallel runs would fight.
torch.set_num_threads(1)
