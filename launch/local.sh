#!/usr/bin/env bash
# Train on this machine: all its GPUs, or two CPU ranks (RANKS=n chooses another number).
#
#   launch/local.sh CONFIG [--resume auto] [--section.key value ...]
#
# Configuration, data and backbone are checked before anything starts. A run that has finished
# before, with the same configuration and code, only has its last line printed again; a run name
# that is taken gets a number. With --resume the run keeps its name and goes on where it was. The
# last line printed is JSON.
#
# SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 let the ranks save and stop; the exit code is 75 then. See
# docs/resume.md.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -lt 1 ]; then
    sed -n '2,13s/^# \{0,1\}//p' "$0"
    exit 2
fi
config=$1
shift
export TIMELLM_STARTED_AT=${TIMELLM_STARTED_AT:-$(date +%s)}
# Another launcher's rank is none of these.
unset RANK LOCAL_RANK WORLD_SIZE

if ! command -v nvidia-smi >/dev/null 2>&1; then
    ranks=${RANKS:-2}
    export DS_ACCELERATOR=cpu
elif gpus=$(nvidia-smi --list-gpus 2>&1) && grep -q '^GPU ' <<<"$gpus"; then
    if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
        visible=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | wc -l)
    else
        visible=$(grep -c '^GPU ' <<<"$gpus")
    fi
    ranks=${RANKS:-$visible}
elif [ "${DS_ACCELERATOR:-}" = cpu ]; then
    ranks=${RANKS:-2}
else # torch would train on the CPU and not say so
    printf 'error: nvidia-smi finds no GPU (it says: %s): mend the driver, or set DS_ACCELERATOR=cpu to train on the CPU.\n' \
        "$(tr '\n' ' ' <<<"${gpus:-nothing}" | sed 's/ *$//')" >&2
    exit 2
fi
if ! [[ $ranks =~ ^[1-9][0-9]*$ ]]; then
    printf 'error: RANKS=%s: give the number of ranks, a whole number of at least 1.\n' "$ranks" >&2
    exit 2
fi
# The cores are divided over the ranks; more threads than cores slow every rank down.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( $(nproc) > ranks ? $(nproc) / ranks : 1 ))}

# In place of this shell, so that a signal to its process id reaches what can handle it.
exec python -m launch.local "$ranks" --config "$config" "$@"
