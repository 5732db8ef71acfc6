#!/usr/bin/env bash
# Residual topologies on real text at a size for two CPU cores: the same tokens and three seeds for every row, the
# learning rate tuned per row; what reads, mixes and writes streams learns at RESIDUAL_LR (0: at the rate of the rest).
# TOPOLOGIES chooses other rows, RATES other rates, and EXTRA adds flags to all runs.
# usage: benchmarks/study.sh shakespeare FILE [OUT] | fineweb FILE [OUT]     (PYTHON chooses the interpreter)
set -euo pipefail
text=$1 file=$2 out=${3:-runs/study-$1} python=${PYTHON:-.venv/bin/python} residual_lr=${RESIDUAL_LR:-3e-3}
size="--data.source $file --data.seq-len 64 --data.batch-size 16 --data.windows packed --data.max-eval-tokens 40000
      --model.vocab-size None --model.max-len None --model.layers 4 --model.width 64 --model.mixer.heads 4
      --model.execution.policy float32 --train.accumulate 1 --train.steps 500 --train.eval-every 100
      --train.eval-batches 20 --objective.chunk 64 --data.sample-tokens 0 --optim.warmup-steps 50
      --optim.decay matrices --optim.residual-lr $residual_lr --checkpoint.every 0 --log.every 25"
case $text in
  shakespeare) size="$size --data.tokenizer chars --data.validation-fraction 0.1"; rates="3e-3 1e-2 3e-2" ;;
  fineweb) size="$size --data.tokenizer bytes"; rates="1e-3 3e-3 1e-2" ;;
  *) echo "expected shakespeare or fineweb, got $text" >&2; exit 2 ;;
esac
rates=${RATES:-$rates}
"$python" -m train.study nanogpt --out "$out" --jobs 2 --rates $rates \
    --topologies ${TOPOLOGIES:-plain plain_matched ihc hc mhc_original mhc dynamic_mhc mhc_lite} \
    --train-flags="$size ${EXTRA:-}"
