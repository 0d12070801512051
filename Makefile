# Every target does its own set-up. PYTHON is the interpreter that the environment is made with (3.11).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FRAMEWORKS := langchain autogen llamaindex openai
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow check bench setup format clean

demo: setup ## Agents of four frameworks at once on the demo model, with and without the kernel.
	$(BIN)/aios demo

test: setup ## The default suite: no network, no GPU, a few minutes on two cores.
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: setup ## Long suites: state machines, kills, real frameworks on the demo model.
	$(BIN)/python -m pytest -m "slow and not gpu" -W ignore::ResourceWarning -W ignore::pytest.PytestUnraisableExceptionWarning

check: setup ## Linters, types, import directions, code blocks of the documents.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python scripts/check_imports.py
	$(BIN)/python scripts/render_readme.py --check
	$(BIN)/python scripts/check_docs.py

bench: setup ## The default benches, JSON under runs/.
	mkdir -p runs
	$(BIN)/aios bench syscalls --json > runs/syscalls.json
	$(BIN)/aios bench speedup --json > runs/speedup.json

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/.installed

# torch first and alone: a CPU build at hand is taken, and nothing after it asks for a newer one with CUDA packages.
$(VENV)/.installed: pyproject.toml requirements-dev.txt kernel/pyproject.toml evals/pyproject.toml $(FRAMEWORKS:%=adapters/%/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(PIP) "torch>=2.11,<2.14"
	$(PIP) -r requirements-dev.txt -e "kernel[server,torch,memory]" -e ".[cli]" \
		$(foreach f,$(FRAMEWORKS),-e "adapters/$(f)[framework]") -e evals
	touch $@

include adapters/metagpt/Makefile.inc

clean:
	rm -rf $(VENV) .venv-metagpt build dist .pytest_cache .ruff_cache .hypothesis runs
