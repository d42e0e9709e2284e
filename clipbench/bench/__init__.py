"""Benchmarks as commands: `python -m clipbench.bench per_sample | spectral | overhead | all`."""
