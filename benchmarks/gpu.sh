#!/bin/sh
# All that needs a GPU, in one table: correctness, utilisation, images a second, latency. The package must be installed.
#     benchmarks/gpu.sh [options of benchmarks/gpu.py]
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" benchmarks/gpu.py "$@"
