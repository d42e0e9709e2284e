"""Weights & Biases: the `tracker` of a run, and the process that talks to it (`wandb_process`)."""
