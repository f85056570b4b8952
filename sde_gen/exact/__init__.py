"""What is known in closed form: the judge of all methods.

mixtures: mixtures of Gaussians, with exact scores, denoisers and densities along any SDE; for one Gaussian also the exact flow, and
    the exact moments under every linear sampler.
empirical: finite data sets, with the optimal denoiser, the exact reverse step and the least loss that any network can have.

`MixtureData.model(sde)` and `empirical_score(data, sde)` are Denoisers like any network's: what samples, measures likelihoods or guides
takes them, and what it gives can be compared with the truth.
"""
