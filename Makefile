PYTHON ?= python3
OUT ?= runs/rows
ARGS ?=
VENV := .venv
OLDEST ?= python3.10
CUDA_PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
LOWEST := .venv-lowest
BIN := $(VENV)/bin
PYTEST := -m pytest -n 2 --dist worksteal
SYSTEM := libegl1 libgl1 libglu1-mesa libgl1-mesa-dri graphviz chromium

.DEFAULT_GOAL := help
.PHONY: help system train test test-lowest test-cuda notebooks docs bench results documents lint format dist clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=$(PYTHON): interpreter of the virtual environment, 3.10 or newer"
	@echo "  OLDEST=$(OLDEST): interpreter of test-lowest, which must be 3.10"
	@echo "  OUT=$(OUT): run folder of train; must not hold a run yet, so name another to train again"
	@echo "  CUDA_PYTHON=$(CUDA_PYTHON): interpreter of test-cuda, whose torch finds the GPU"
	@echo "  ARGS='$(ARGS)': further flags of train (pyro-hrssm train --help), or of pytest in test"

system: ## Install Debian packages where it can: OpenGL for the maze, Graphviz for the model's picture, a browser for a test
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -q && apt-get install -qy --no-install-recommends $(SYSTEM); \
	else echo "needs root on Debian or Ubuntu; otherwise install yourself: $(SYSTEM)"; fi

train: $(VENV)/.train ## Install what is missing into .venv, then train the HRSSM on rows of MNIST digits
	$(BIN)/pyro-hrssm train --out $(OUT) $(ARGS)

# Two test processes share two cores: each, and every program that a test starts, takes one thread.
test test-lowest: export OMP_NUM_THREADS := 1

test: $(VENV)/.test ## Run the tests
	$(BIN)/python $(PYTEST) $(ARGS)

test-lowest: $(LOWEST)/.test ## Run the tests on the oldest Python and the lowest versions that pyproject.toml claims
	$(LOWEST)/bin/python $(PYTEST) $(ARGS)

# Needs no environment of ours, but torch, pyro-ppl, pytest and the package's own dependencies. One process, since there is
# one GPU; without xdist and pytest-benchmark, which object to each other.
test-cuda: ## Run the tests that need an NVIDIA GPU, with CUDA_PYTHON
	$(CUDA_PYTHON) -m pytest -m cuda -p no:xdist -p no:benchmark $$(grep -rl --include='test_*.py' 'mark\.cuda' tests) $(ARGS)

notebooks: $(VENV)/.test notebooks/mocap6.npz ## Run the notebooks' scripts and write what they show into notebooks/*.ipynb
	PATH="$(abspath $(BIN)):$$PATH" TQDM_DISABLE=1 $(BIN)/jupytext --to ipynb --execute notebooks/*.py

# Six recordings of motion capture; nothing of bnpy is built or installed.
notebooks/mocap6.npz: | $(VENV)/.test
	$(BIN)/python -m pip download -q --no-deps --no-binary bnpy -d build bnpy==0.1.7
	$(BIN)/python -m benchmarks.mocap6 build/bnpy-0.1.7.tar.gz $@

docs: $(VENV)/.docs ## Build the documentation's site, build/docs/index.html; warnings are errors
	$(BIN)/python -m sphinx -q -n -W --keep-going -d build/doctrees docs build/docs

bench: $(VENV)/.test ## Measure speed on an otherwise idle machine; records into docs/results/speed
	$(BIN)/python -m benchmarks.records speed/train_step python -m benchmarks.train_step --json
	$(BIN)/python -m benchmarks.records speed/profile_step python -m benchmarks.profile_step --json
	$(BIN)/python -m benchmarks.records speed/predictions python -m benchmarks.predictions --json
	$(BIN)/python -m benchmarks.records speed/recording python -m benchmarks.recording --json
	$(BIN)/python -m benchmarks.records speed/recording_limits python -m benchmarks.recording --json --flags --max-length 50 --min-length 5
	$(BIN)/python -m benchmarks.records speed/neighbours python -m benchmarks.neighbours --json
	$(BIN)/python -m benchmarks.records speed/loader python -m benchmarks.loader --json
	$(BIN)/python -m benchmarks.records speed/loader_workers python -m benchmarks.loader --json --workers 2
	$(BIN)/python -m benchmarks.records speed/soak python -m benchmarks.soak --minutes 2
	$(BIN)/python -m benchmarks.documents

results: $(VENV)/.test ## Train and score all experiments of docs/RESULTS.md, and write it; what is there is kept
	$(BIN)/python -m benchmarks.results $(ARGS)
	$(BIN)/python -m benchmarks.documents

documents: $(VENV)/.test ## Write the figures of the documents from the records in docs/results
	$(BIN)/python -m benchmarks.documents

lint: $(VENV)/.test ## Check style, types and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.test ## Rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dist: $(VENV)/.test ## Build the wheel and the source distribution into dist/, and check them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean: ## Remove caches and build products; .venv, runs and downloads stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# pip is the last thing that venv installs, so that an environment left half made is made again.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit("pyro-hrssm needs Python 3.10 or newer, but $(PYTHON) is %d.%d: name another, as in make train PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

# torch and torchvision in one command, so that pip picks a pair that fits.
$(VENV)/.train: pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install torch torchvision
	$(BIN)/python -m pip install -e .
	@touch $@

$(VENV)/.test: $(VENV)/.train
	$(BIN)/python -m pip install -e '.[test]'
	@touch $@

$(VENV)/.docs: $(VENV)/.train
	$(BIN)/python -m pip install -e '.[docs]'
	@touch $@

$(LOWEST)/.test: pyproject.toml tests/lowest.txt
	@$(OLDEST) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))' || { echo "test-lowest needs Python 3.10, the oldest that pyproject.toml claims: name one, as in make test-lowest OLDEST=/opt/python3.10/bin/python"; exit 1; }
	$(OLDEST) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install -c tests/lowest.txt -e '.[test]'
	@touch $@
