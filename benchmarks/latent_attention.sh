#!/usr/bin/env bash
# Attention beside latent attention on real text: one model of two layers and width 64 with rotary positions, the same
# tokens, three seeds; all six runs at once.
# usage: benchmarks/latent_attention.sh FILE [OUT]     (PYTHON chooses the interpreter)
set -euo pipefail
file=$1 out=${2:-runs/latent-attention} python=${PYTHON:-.venv/bin/python}
flags="--data.source $file --data.tokenizer bytes --data.seq-len 64 --data.batch-size 16 --data.windows packed
       --data.max-eval-tokens 40000 --data.sample-tokens 0 --objective.chunk 64 --model.layers 2 --model.width 64
       --model.positions none --model.vocab-size None --model.max-len None --model.execution.policy float32
       --train.accumulate 1 --train.steps 200 --train.eval-every 100 --train.eval-batches 20 --optim.lr 3e-3
       --optim.warmup-steps 50 --optim.decay matrices --checkpoint.every 0 --log.every 25"
for mixer in attention latent_attention; do
  for seed in 0 1 2; do
    "$python" -m train nanogpt@plain $flags --model.mixer $mixer --model.mixer.heads 4 --model.mixer.rotary half \
      --model.mixer.bias False --train.seed $seed --data.seed $seed --run-dir "$out/$mixer/seed$seed" &
  done
done
wait
"$python" -m train.compare "$out"/*/seed* --mean
