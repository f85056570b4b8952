"""What is sampled and scored: Denoiser, the contract, and its Wrapper; ScoreModel, a network on an SDE; moments, priors, reverse SDEs."""
