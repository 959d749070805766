# Every target is complete on its own: `make demo` and `make test` call `make setup` themselves.
# GPU=1 installs FAISS for the GPU instead of the CPU; PYTHON=python3.12 picks the interpreter.
PYTHON ?= python3
VENV   ?= .venv
FAISS  := $(if $(GPU),gpu,cpu)
BIN    := $(VENV)/bin
# On Linux the default package index serves torch with 3 GB of CUDA; the project's own CPU index has a
# build of the same version. It is used where there is no NVIDIA driver and the index can be reached.
CPU_TORCH := https://download.pytorch.org/whl/cpu

.PHONY: help setup demo test test-ceph test-slurm chaos chaos-train test-long check lint clean

help:  ## list the targets
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.done-$(FAISS)  ## make .venv and install what the README's commands need

$(VENV)/.done-$(FAISS): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, got " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if [ -z "$(GPU)" ] && curl -sfIo /dev/null --max-time 5 $(CPU_TORCH)/torch/; then index="--extra-index-url $(CPU_TORCH)"; fi; \
	$(BIN)/python -m pip install -q --disable-pip-version-check $$index -c constraints.txt -e ".[cluster,$(FAISS),fast,report,test]"
	touch $@

# One thread for linear algebra: on two busy cores two threads that wait for each other took many times as long.
demo: setup  ## corpus -> train -> nights -> evaluate -> search -> demo/index.html, in minutes
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m jobs.demo

# Two workers: one has all tests that need Ray, on one cluster, the other what needs none (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest -n 2 --no-loadscope-reorder

check: lint  ## what must hold before a commit: lint, format, types, tests without the slow ones
	$(PYTEST) -m "not slow and not gpu"

test: lint  ## check, and the slow tests too
	$(PYTEST)

# Needs Debian's radosgw ceph-mon ceph-osd ceph-common; the store runs in a temporary folder, for as long as the tests.
STORAGE_TESTS := tests/releases/test_storage.py tests/releases/test_storage_retries.py \
	tests/releases/test_s3_faults.py tests/releases/test_heads.py tests/releases/test_heads_races.py tests/chaos
test-ceph: setup  ## the storage suite and disturbed nights against Ceph's S3 gateway
	TEST_S3=ceph OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(STORAGE_TESTS) -k "not local and not failing and not interleaving"

# Needs root and Debian's slurmctld slurmd slurm-client munge; two nodes in a temporary folder, as long as the tests.
test-slurm: setup  ## cluster/slurm/train.sbatch on a Slurm of two nodes: trained, cancelled, submitted again
	OMP_NUM_THREADS=1 TEST_SLURM=1 $(BIN)/python -m pytest tests/cluster/test_slurm.py

chaos: setup  ## kill and disturb the night at every step it takes: SEED=N, ONLY=WORDS, POINTS=N
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only "$(ONLY)") $(if $(POINTS),--points $(POINTS))

chaos-train: setup  ## kill ranks, raylets and drivers of a run that trains: KILLS=N of each, SEED=N
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.training $(if $(SEED),--seed $(SEED)) $(if $(KILLS),--kills $(KILLS))

test-long: setup  ## the long forms of tests: a store away for a minute and for good, loss curves on every stage and world size
	TEST_LONG=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/jobs/test_train_ray.py tests/learning/test_curves.py -k "storage or curve"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove what the demo made
	rm -rf demo
