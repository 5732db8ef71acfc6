#!/usr/bin/env bash
# All variants of mHC-SSM on WikiText-2 at a size for two CPU cores, the same tokens each, and their table.
# usage: benchmarks/wikitext2.sh FOLDER_OF_PARQUET [RUNS]     (PYTHON chooses the interpreter)
set -euo pipefail
data=$1 runs=${2:-runs/wikitext2} python=${PYTHON:-.venv/bin/python}
common=(--data.source wikitext-2-v1 --data.path "$data" --data.seq-len 256 --data.batch-size 4
        --model.width 64 --model.layers 4 --train.steps 250 --train.eval-every 0 --data.max-eval-tokens 65536
        --data.sample-tokens 0 --checkpoint.every 0 --log.every 20)
repaired=(--optim.lr 3e-3 --optim.warmup-steps 40)
train() { local name=$1; shift; [ -f "$runs/$name/summary.json" ] || "$python" -m train "$name" --run-dir "$runs/$name" "${common[@]}" "$@"; }

for name in mhc_ssm_baseline mhc_ssm mhc_ssm_adapters mhc_ssm_dense; do train "$name" "${repaired[@]}"; done
# The least width with no fewer parameters than mhc_ssm.
train mhc_ssm_matched "${repaired[@]}" --model.width 65
for name in mhc_ssm_baseline_original mhc_ssm_original mhc_ssm_adapters_original; do train "$name"; done
"$python" -m train.compare "$runs"/mhc_ssm* --picture "$runs/curves.png"
