"""Log-likelihoods by the probability flow: the flow and its integrator, traces of Jacobians, bits per dimension."""
