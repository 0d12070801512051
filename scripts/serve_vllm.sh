#!/usr/bin/env bash
# vLLM on loopback for `aios bench speedup --server http://127.0.0.1:PORT/v1`; `make bench-peers` sets its environment up.
# Usage: scripts/serve_vllm.sh MODEL [PORT] [DTYPE]. The settings are those that were fastest here (docs/decisions/006).
set -euo pipefail
model=$(realpath "${1:?usage: scripts/serve_vllm.sh MODEL [PORT] [DTYPE]}")
cd "$(dirname "$0")/.."
export VLLM_CPU_KVCACHE_SPACE=2 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_USE_AOT_COMPILE=0 VLLM_NO_USAGE_STATS=1
export VLLM_LOGGING_LEVEL=WARNING HF_HUB_OFFLINE=1
# Not `vllm serve`: it asks for the version of a distribution named vllm, and this one is vllm-cpu.
exec .venv-vllm/bin/python -m vllm.entrypoints.openai.api_server --model "$model" --served-model-name gpt-4o \
  --host 127.0.0.1 --port "${2:-8123}" --dtype "${3:-float32}" --max-model-len 16384 --block-size 32 \
  --enable-auto-tool-choice --tool-call-parser hermes --enable-prompt-tokens-details
