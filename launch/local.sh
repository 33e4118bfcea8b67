#!/usr/bin/env bash
# Train on this machine: all its GPUs, or two CPU ranks (RANKS=n chooses another number).
#
#   launch/local.sh CONFIG [--section.key value ...]
#
# Configuration, data and backbone are checked before anything starts. A run that has finished
# before, with the same configuration and code, only has its last line printed again; a run name
# that is taken gets a number. The last line printed is JSON.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -lt 1 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 2
fi
config=$1
shift
export TIMELLM_STARTED_AT=${TIMELLM_STARTED_AT:-$(date +%s)}

if command -v nvidia-smi >/dev/null 2>&1; then
    if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
        visible=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | wc -l)
    else
        visible=$(nvidia-smi --list-gpus | wc -l)
    fi
    ranks=${RANKS:-$visible}
else
    ranks=${RANKS:-2}
    export DS_ACCELERATOR=cpu
    # The cores are divided over the ranks; more threads than cores slow every rank down.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( $(nproc) / ranks > 0 ? $(nproc) / ranks : 1 ))}
fi

plan=$(WORLD_SIZE=$ranks python -m dist_train.run_folder --config "$config" "$@")
name=$(sed -n 1p <<<"$plan")
folder=$(sed -n 2p <<<"$plan")
if [ "$name" = finished ]; then
    echo "This run has finished before; its result:"
    echo "$folder"
    exit 0
fi

# A port of its own, so that two runs on one machine do not meet at the launcher's default.
port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
status=0
deepspeed --log_level error --no_local_rank --num_gpus "$ranks" --master_port "$port" \
    --module dist_train.train --config "$config" "$@" --name "$name" || status=$?

# The launcher may exit with 0 although a signal ended its ranks, so the run's own mark decides.
if [ ! -f "$folder/result.json" ]; then
    echo "error: the run did not finish; see the messages above and $folder" >&2
    [ "$status" -ne 0 ] || status=1
fi
exit "$status"
