#!/bin/sh
# What this project claims of GPUs, measured and tested in one go: benchmarks/gpu.sh [RESULTS]
# Needs a CUDA build of torch, `pip install -e ".[dev,bench]"`, and takes ten to twenty minutes.
set -eu
cd "$(dirname "$0")/.."
results=${1:-benchmarks/results/gpu}
mkdir -p "$results"
pytest -o addopts=--import-mode=importlib -m gpu  # one after another
python benchmarks/throughput.py --env BreakoutNoFrameskip-v4 --num-envs 128 --num-steps 20 --device cuda \
    --contestants emulator a2c acktr acktr-overlap --json "$results/throughput.json"
python benchmarks/cost.py --device cuda --precision float32 --json "$results/cost.json" --plot "$results/cost.png"
acktr train --env PongNoFrameskip-v4 --num-envs 128 --overlap --device cuda --total-timesteps 3e6 \
    --run-dir "$results/pong-overlap"
