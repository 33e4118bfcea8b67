# Environment of the ranks of a Slurm job; launch/slurm.sbatch reads it. What is set already stays,
# so each line can be overridden where the job is submitted: NCCL_DEBUG=INFO sbatch ...
default() {
    if [ -z "${!1+set}" ]; then export "$1=$2"; fi
}

# --- threads ---------------------------------------------------------------------------------
# Since Slurm 22.05 srun no longer takes --cpus-per-task from sbatch: each rank would get one core.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then default SRUN_CPUS_PER_TASK "$SLURM_CPUS_PER_TASK"; fi
# Each rank would start a thread for every core of the node, and all of them wait for each other.
default OMP_NUM_THREADS "${SLURM_CPUS_PER_TASK:-1}"
# The tokenizers' own threads die in the data workers, which are forked, and say so at every fork.
default TOKENIZERS_PARALLELISM false

# --- links between the nodes -----------------------------------------------------------------
# One line on why a connection failed; without it NCCL only says "unhandled system error".
default NCCL_DEBUG WARN
# A link of a large fabric that flaps is back after seconds; NCCL's own patience ends at about 30 s
# (20, which is 4.2 s, times 7 tries). With 22 a try lasts 17 s. train.watchdog_s bounds it all.
default NCCL_IB_TIMEOUT 22
# TIMELLM_INTERFACE=ib0: NCCL and Gloo take the first network that they find, and on nodes with a
# management network, or with Docker's, that may be one on which the nodes do not reach each other.
if [ -n "${TIMELLM_INTERFACE:-}" ]; then
    default NCCL_SOCKET_IFNAME "$TIMELLM_INTERFACE"
    default GLOO_SOCKET_IFNAME "$TIMELLM_INTERFACE"
fi

# --- memory ----------------------------------------------------------------------------------
# Rows have many lengths, so that blocks of many sizes would lie unused in pieces.
default PYTORCH_ALLOC_CONF expandable_segments:True

# --- files -----------------------------------------------------------------------------------
# Compute nodes mostly have no network, where a load of a backbone tries it for minutes; and a
# thousand ranks should not ask the Hub at one time. Download before: hf download NAME.
default HF_HUB_OFFLINE 1
# What DeepSpeed and Triton compile goes to each node's own disk. In a shared home all nodes wait
# for one lock, and one that a killed job has left there makes every later job hang.
node_local=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}
default TORCH_EXTENSIONS_DIR "$node_local/timellm-torch-extensions-$(id -u)"
default TRITON_CACHE_DIR "$node_local/timellm-triton-$(id -u)"
# The log shows a line when it is written, and where a rank was when a signal such as SIGSEGV ended
# it.
default PYTHONUNBUFFERED 1
default PYTHONFAULTHANDLER 1

# --- no GPU ----------------------------------------------------------------------------------
# DeepSpeed would look for every accelerator that it knows, on each rank.
if ! command -v nvidia-smi >/dev/null 2>&1; then default DS_ACCELERATOR cpu; fi
