#!/usr/bin/env bash
# What bfloat16 and the kernels of TPUs, which are interpreted here, do to learning: one small network per topology, in
# float32, in bfloat16, and in bfloat16 with every kernel, three seeds each.
# usage: benchmarks/rounding.sh FILE [OUT]     (PYTHON chooses the interpreter)
set -euo pipefail
file=$1 out=${2:-runs/study-rounding} python=${PYTHON:-.venv/bin/python}
size="--data.source $file --data.tokenizer bytes --data.seq-len 128 --data.batch-size 4 --data.windows packed
      --data.max-eval-tokens 40000 --data.sample-tokens 0 --model.vocab-size None --model.max-len None --model.layers 2
      --model.width 128 --model.mixer.heads 2 --model.execution.layers unroll --train.accumulate 1 --train.steps 500
      --train.eval-every 100 --train.eval-batches 20 --objective.chunk 128 --optim.lr 3e-3 --optim.warmup-steps 50
      --optim.decay matrices --checkpoint.every 0 --log.every 25"
kernels="--model.residual.implementation pallas --model.mixer.implementation splash"
rows=()
for topology in mhc dynamic_mhc; do
  rows+=("$topology-float32=nanogpt@$topology --model.execution.policy float32"
         "$topology-bfloat16=nanogpt@$topology --model.execution.policy bfloat16"
         "$topology-bfloat16-kernels=nanogpt@$topology --model.execution.policy bfloat16 $kernels")
done
"$python" -m train.study "${rows[@]}" --out "$out" --train-flags="$size ${EXTRA:-}"
