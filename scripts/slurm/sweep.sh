#!/bin/bash
# A sweep on a Slurm cluster: one job for each run, one GPU for each job. Run it on the login node, in the checkout:
#     scripts/slurm/sweep.sh ps_clip_alexnet_cifar100/paper PARTITION [key=value …]
# It stays until the last job has ended and then reports; started again, it submits what is not done yet.
set -euo pipefail
experiment=${1:?usage: sweep.sh <name>/<size> PARTITION [key=value …]}
partition=${2:?usage: sweep.sh <name>/<size> PARTITION [key=value …]}
shift 2
exec .venv/bin/python -m clipbench.run -m "experiment=$experiment" \
    hydra/launcher=submitit_slurm \
    "hydra.launcher.partition=$partition" \
    hydra.launcher.gpus_per_node=1 \
    hydra.launcher.tasks_per_node=1 \
    hydra.launcher.cpus_per_task=4 \
    hydra.launcher.mem_gb=32 \
    hydra.launcher.timeout_min=720 \
    hydra.launcher.array_parallelism=16 \
    device=cuda "$@"
