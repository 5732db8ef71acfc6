#!/usr/bin/env bash
# A student of a trained teacher beside the same student alone: a transformer over SHC of four layers and width 128 that
# has seen four times as much text, and a selective SSM of two layers and width 64. Each at two learning rates, the same
# tokens for both, three seeds. All steps learn from the teacher's distributions and from the text.
# usage: benchmarks/distill_study.sh FILE [OUT]     (PYTHON chooses the interpreter)
set -euo pipefail
file=$1 out=${2:-runs/distill-study} python=${PYTHON:-.venv/bin/python}
flags="--data.source $file --data.tokenizer bytes --data.seq-len 64 --data.batch-size 16 --data.windows packed
       --data.max-eval-tokens 40000 --data.sample-tokens 0 --objective.chunk 64 --model.vocab-size None
       --model.max-len None --model.execution.policy float32 --model.execution.remat none --train.accumulate 1
       --train.eval-every 250 --train.eval-batches 20 --optim.warmup-steps 50 --checkpoint.every 0 --log.every 25"
[ -e "$out/teacher/summary.json" ] || "$python" -m train shc_500m $flags --model.layers 4 --model.width 128 \
  --model.mixer.heads 4 --train.steps 2000 --optim.lr 3e-3 --run-dir "$out/teacher"
for rate in 3e-3 1e-2; do
  for seed in 0 1 2; do
    run=$out/student/lr$rate-seed$seed
    [ -e "$run/distillation.json" ] || "$python" -m train.distill "$out/teacher" shc_student $flags --baseline \
      --model.layers 2 --model.width 64 --objective.hidden 0 --objective.kl 1 --objective.cross-entropy 1 \
      --objective.temperature 1 --train.steps 500 --optim.lr $rate --train.seed $seed --data.seed $seed --run-dir "$run"
  done
done
"$python" -m train.compare "$out"/student/lr* "$out"/student/lr*/baseline
