#!/usr/bin/env bash
# SHC on real text at a size for two CPU cores: without streams, over streams of three topologies, and as published. The
# same tokens and three seeds for every row; rates are tried at the first seed. The published network sees later tokens,
# so all rows are also scored on prefixes alone (prefix_loss.py), whose loss is that of a language model; and, because
# the validation text has letters that the training text hardly has, without those (rare_letters.py), by which 5e-3 is
# the best rate of the first and third row. OUT/study.json is of all rows at 3e-3.
# usage: benchmarks/shc_study.sh FILE [OUT]     (PYTHON chooses the interpreter)
set -euo pipefail
file=$1 out=${2:-runs/study-shc} python=${PYTHON:-.venv/bin/python}
flags="--data.source $file --data.tokenizer bytes --data.seq-len 64 --data.batch-size 16 --data.windows packed
       --data.max-eval-tokens 40000 --data.sample-tokens 0 --objective.chunk 64 --model.layers 4 --model.width 64
       --model.vocab-size None --model.execution.policy float32 --model.execution.remat none --train.accumulate 1
       --train.steps 500 --train.eval-every 100 --train.eval-batches 20 --optim.warmup-steps 50
       --checkpoint.every 0 --log.every 25"
streams="$flags --model.max-len None --model.mixer.heads 4 --optim.decay matrices --optim.residual-lr 3e-3"
base=shc_500m_plain ranks=--model.residual.adaptive offsets=--model.ends.stream-embed
rows=(plain=$base@plain mhc=$base@mhc dynamic_mhc=$base@dynamic_mhc shc=$base@shc)
# What SHC's former defaults did: ranks that are drawn, offsets of the streams, and both.
former=("shc_ranks=$base@shc $ranks" "shc_offsets=$base@shc $offsets" "shc_both=$base@shc $ranks $offsets")
study() { "$python" -m train.study "$@" --out "$out" --jobs 2 --train-flags="$streams"; }
study "${rows[@]}" --rates 2e-3 3e-3 5e-3 --seeds 0
study "${rows[0]}" --rates 5e-3
study "${former[@]}" --rates 3e-3 --seeds 1 2
study "${rows[@]}" --rates 3e-3
for rate in 1e-3 3e-3 1e-2; do
  for seed in 0 1 2; do
    run=$out/published/lr$rate-seed$seed
    [ -e "$run/summary.json" ] || "$python" -m train shc_500m_original $flags --model.max-len None --model.heads 4 \
      --optim.lr "$rate" --train.seed "$seed" --data.seed "$seed" --run-dir "$run"
  done
done
"$python" benchmarks/prefix_loss.py "$out"/*/lr*/
"$python" benchmarks/rare_letters.py "$out"/[!p]*/lr*/ "$out"/plain/lr*/
