#!/bin/sh
# What needs a GPU: the full model's speed beside a compiled plain loop, and the recipes on Penn
# Treebank at the full size. Usage: benchmarks/gpu.sh [DATA [RUNS]], DATA being the folder of ptb/.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "benchmarks/gpu.sh: skipped: PyTorch sees no GPU on this machine"
    exit 0
fi
"$python" -m benchmarks.throughput gpu
if [ -n "${1:-}" ]; then
    "$python" -m benchmarks.recipes configs/train/ptb-full.yaml "${2:-runs/recipes-gpu}" data.dir="$1"
else
    echo "benchmarks/gpu.sh: no folder of ptb/ given: the recipes were not trained"
fi
