#!/usr/bin/env bash
# Every experiment at its size for two CPU cores, one command after the other: about a day on an idle machine.
#
#   CLIPBENCH_DATA=DIR scripts/experiments.sh [--commit] [PATTERN]
#
# Started again after a kill it goes on where it was: each command finds what is finished and resumes what is not. Every
# half hour, and after each command, records are collected into results/data; with --commit what is new there is
# committed, so that a lost machine loses little. PATTERN (a regular expression) picks the commands that match it.
# Seconds do not count here: they come from `python -m clipbench.calibrate`, on an idle machine, last of all.
set -uo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
commit=
if [ "${1:-}" = --commit ]; then
    commit=1
    shift
fi
pattern=${1:-.}

commands=(
    "run -m experiment=trace_regression/paper"
    "run -m experiment=trace_regression/cpu"
    "run -m experiment=estimator_error/cpu"
    "run -m experiment=estimator_error/wide"
    "run -m experiment=rates/tails"
    "run -m experiment=rates/cpu"
    "run -m experiment=rates_matrix/cpu"
    "run -m experiment=heavy_tailed_mlp/cpu together=20"
    "run -m experiment=spectrum/cpu_transformer data.download=false"
    "run -m experiment=spectrum/cpu data.download=false"
    "tune experiment=mlp_pareto/budget tuning.seed=1000 together=32 final_seeds=0"
    "tune experiment=mlp_pareto/budget tuning.seed=1001 together=32 final_seeds=0"
    "tune experiment=mlp_pareto/cpu together=32"
    "tune experiment=mlp_pareto_adam/cpu together=32"
    "tune experiment=ps_clip_alexnet_cifar100/cpu trials=12 data.download=false"
    "tune experiment=ps_clip_alexnet_cifar100/cpu trials=12 data.download=false methods=sgd,norm_clip,ps_clip final_seeds=0,1,2,3,4,5,6,7,8,9"
    "tune experiment=shakespeare_sgd/cpu trials=16 data.download=false"
    "tune experiment=shakespeare_muon/cpu trials=16 data.download=false"
    "tune experiment=shakespeare_adam/cpu trials=16 data.download=false"
    "tune experiment=ps_clip_accumulation_4x128/cpu trials=6 data.download=false"
    "tune experiment=ps_clip_accumulation_8x64/cpu trials=6 data.download=false"
    "tune experiment=cifar10_airbench/cpu trials=8 data.download=false data.verify=false"
    "calibrate experiment=ps_clip_alexnet_cifar100/cpu data.download=false"
    "calibrate experiment=ps_clip_accumulation_4x128/cpu data.download=false"
    "calibrate experiment=ps_clip_accumulation_8x64/cpu data.download=false"
    "calibrate experiment=shakespeare_sgd/cpu data.download=false"
    "calibrate experiment=shakespeare_muon/cpu data.download=false"
    "calibrate experiment=shakespeare_adam/cpu data.download=false"
    "calibrate experiment=cifar10_airbench/cpu data.download=false data.verify=false"
)

keep() {
    $python -m clipbench.report collect >results/runs/collect.log 2>&1
    [ -n "$commit" ] || return 0
    git add results/data
    [ ! -d conf/tuned_settings ] || git add conf/tuned_settings
    git diff --cached --quiet || git commit --quiet --message "Add the records of $(date -u +%Y-%m-%dT%H:%M)"
}

mkdir -p results/runs
(while sleep 1800; do keep; done) &
trap 'kill %1 2>/dev/null; keep' EXIT
failed=0
for line in "${commands[@]}"; do
    [[ $line =~ $pattern ]] || continue
    echo "$(date -u +%H:%M) clipbench.$line"
    # shellcheck disable=SC2086 # the words of a command are meant to be split
    $python -m clipbench.$line || { failed=$((failed + 1)); echo "failed: clipbench.$line" >&2; }
    keep
done
echo "$(date -u +%H:%M) done, $failed commands failed"
exit $((failed > 0))
