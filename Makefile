# Two commands: `make demo` and `make test`. Both make the checkout's .venv and install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out/demo
ARGS ?=
# A machine without an NVIDIA GPU takes PyTorch's CPU build (its local version sorts above PyPI's CUDA build). Its index
# is asked for torch alone: pip asks every index that it is given for every package.
GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)
TORCH_INDEX := $(if $(GPU),,--extra-index-url https://download.pytorch.org/whl/cpu)

# Processes of `make test`: a file's tests stay in one. Tests of Ray wait for its processes much of their time.
WORKERS ?= 4
SYSTEM_WORKERS ?= 3

.PHONY: install demo test test-system faults fuzz lint settings lock lock-gpu clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock requirements-gpu.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "numina needs Python 3.11 or newer; name one: make install PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-deps --retries 1 --timeout 20 $(TORCH_INDEX) "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install -r requirements.lock $(if $(GPU),-r requirements-gpu.lock)
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	touch $@

demo: install
	$(BIN)/numina run --config demo output=$(OUT) $(ARGS)
	$(BIN)/numina evaluate $(OUT)
	$(BIN)/numina report $(OUT)

# With ARGS, one process that runs what they say.
test: install
	$(BIN)/python -m pytest $(or $(strip $(ARGS)),-n $(WORKERS) --dist loadfile --no-loadscope-reorder)

# Whole jobs on a real SLURM, submitted to a real Ray head, with ranks and drivers killed. SLURM's tests skip without it.
# They wait some of their time. A file's tests stay in one process, so that it has one SLURM.
test-system: install
	$(BIN)/python -m pytest -m slow $(or $(strip $(ARGS)),-n $(SYSTEM_WORKERS) --dist loadfile --no-loadscope-reorder)

# The long form of all that is killed: some 15 minutes on 2 cores, numbers printed.
faults: install
	NUMINA_FAULTS=long $(BIN)/python -m pytest tests/faults -m "slow or not slow" -s $(ARGS)

# The command line and prompt sets with anything in them: so many random examples of each test.
EXAMPLES ?= 2000
fuzz: install
	NUMINA_FUZZ=$(EXAMPLES) $(BIN)/python -m pytest tests/faults -k fuzz -s --timeout 0 --hypothesis-show-statistics $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy numina pipelines cluster

# configs/README.md, from the comments of the config classes.
settings: install
	$(BIN)/python -m cluster.job.reference > configs/README.md.new
	mv configs/README.md.new configs/README.md

# The pins that `install` uses. torch is pinned without its build: which one is taken depends on the machine.
lock: install
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' > requirements.lock

# What a machine with an NVIDIA GPU gets beside them: the extra `gpu` and CUDA's libraries. Resolved without installing.
lock-gpu: install
	$(BIN)/python -m pip install uv
	$(BIN)/uv pip compile pyproject.toml --extra gpu --constraint requirements.lock --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 --no-header --no-annotate --quiet \
	  $$(sed 's/==.*//; s/^/--no-emit-package /' requirements.lock) --output-file requirements-gpu.lock.new
	mv requirements-gpu.lock.new requirements-gpu.lock

clean:
	rm -rf out $(VENV)
