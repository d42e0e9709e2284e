"""Benchmarks as commands, `python -m clipbench.bench <name>`; `rebuild` makes tables and figures from their data."""

BENCHMARKS = {
    "per_sample": "per-sample clipping engines: step time and memory as ratios to plain SGD, gradient error",
    "models": "the per-sample engine on some 75 models of torchvision, timm and transformers: error, slow paths, time",
    "spectral": "spectral clipping kernels and whole steps: time, error against a float64 SVD",
    "overhead": "the trainer against a bare hand-written loop on the same model and data",
    "sweep": "a sweep of 200 tiny runs: seconds per run beyond training, and per run that is skipped",
    "waiting": "a training step beside busy processes, with OpenMP's threads spinning and sleeping",
    "together": "runs that go together against one by one: steps per core-second, and a sweep both ways",
}
