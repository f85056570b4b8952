"""What the command line does: its flags and configuration, run directories, the measurements of samples, likelihoods, comparisons,
the doctor, and the report. `cli.main` is the entry point of `sde-gen`."""
