# The two commands: `make train` and `make test`. Both set everything up first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?=
CONFIG ?= configs/quickstart.yaml
ARGS ?=
# A GPU driver means the CUDA build of FAISS, which works without one too: what a machine with GPUs
# has set up in a shared folder, one without leaves as it is. Never both builds in one environment.
EXTRA := $(shell test -e $(VENV)/.installed-gpu && echo gpu || \
	{ command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu; })
STAMP := $(VENV)/.installed-$(EXTRA)

# What an emulated cluster needs, by Debian's names.
CLUSTER_PACKAGES := slurm-wlm munge pdsh openssh-server openssh-client iproute2

.PHONY: setup train test ci check test-slow notebook test-slurm faults faults-quick gpu-check lock clean

setup: $(STAMP)
	@$(BIN)/python -m model.backbone_files fetch

$(STAMP): pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint requirements.lock setuptools torch
	@# Both builds are the module faiss: the one that goes would take files of the other with it.
	if ls $(VENV)/.installed-* >/dev/null 2>&1 && ! test -e $@; then \
		$(BIN)/pip uninstall --quiet --yes faiss-cpu faiss-gpu; rm -f $(VENV)/.installed-*; fi
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[$(EXTRA),dev]'
	touch $@

train: setup
	@PATH="$(CURDIR)/$(BIN):$$PATH" launch/local.sh $(CONFIG) $(if $(RUN),--name $(RUN)) $(ARGS)

# Two files at a time: tests wait for processes most of the time.
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not slurm" $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not gpu and not slurm" $(ARGS)

# Executes docs/quickstart.ipynb from scratch; ARGS=--in_place keeps the outputs.
notebook: setup
	$(BIN)/python -m tests.docs.notebook $(ARGS)

# 200 kills with resume, 500 damaged files, 5000 hostile ones: within 55 minutes on two cores.
faults: setup
	$(BIN)/python -m tests.faults.campaign $(ARGS)

faults-quick: setup
	$(BIN)/python -m tests.faults.campaign --quick $(ARGS)

# Real Slurm daemons, two emulated nodes; real sshd in two network namespaces. Needs root.
test-slurm: setup
	@command -v sbatch >/dev/null && command -v pdsh >/dev/null && test -x /usr/sbin/sshd || { \
		set -e; as_root=$$(test "$$(id -u)" = 0 || echo sudo); $$as_root apt-get update -qq; \
		$$as_root env DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends $(CLUSTER_PACKAGES) >/dev/null; }
	$(BIN)/python -m pytest -m slurm tests/cluster $(ARGS)

ci: test check notebook test-slow faults-quick test-slurm

gpu-check: setup
	$(BIN)/python -m pytest -m gpu tests/gpu $(ARGS)

# Both builds of FAISS are pinned to one version; the CUDA packages are pinned by torch itself.
lock: $(STAMP)
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -v '^faiss-' > requirements.new
	$(BIN)/pip freeze | sed -n 's/^faiss-[cg]pu==\(.*\)/faiss-cpu==\1\nfaiss-gpu==\1/p' >> requirements.new
	LC_ALL=C sort requirements.new > requirements.lock && rm requirements.new

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
