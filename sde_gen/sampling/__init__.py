"""Samples of a model: seeds, batches and failures around a solver; latents of the flow; grids fitted to a model."""
