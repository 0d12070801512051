#!/bin/sh
# Make MetaGPT's environment: adapters/metagpt/setup.sh [FOLDER] (default .venv-metagpt beside the checkout's .venv).
#
# MetaGPT 0.8.2 pins a lancedb that is no longer published, so that pip cannot install it; uv can, because it takes an
# override for one package. The pins collide with every other framework: hence an environment of its own.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
venv=${1:-$root/.venv-metagpt}
python=
for candidate in "${PYTHON:-python3}" python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
overrides=$(mktemp)
trap 'rm -f "$overrides"' EXIT

if [ -z "$python" ]; then
    echo "error: MetaGPT needs Python 3.11, and ${PYTHON:-python3} is another version" >&2
    echo "fix: PYTHON=/path/to/python3.11 $0" >&2
    exit 1
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet uv
echo lancedb >"$overrides"
"$venv/bin/python" -m uv pip install --python "$venv/bin/python" --override "$overrides" metagpt==0.8.2 \
    pytest pytest-asyncio pytest-timeout "pytest-rerunfailures>=16.7,<17" -e "$root/kernel" -e "$root" -e "$root/adapters/metagpt"
echo "MetaGPT's environment is ready: $venv"
