#!/usr/bin/env bash
# What bfloat16 and the kernels of TPUs, which are interpreted here, do to learning: one small network per topology and
# per recurrence, in float32, in bfloat16, and in bfloat16 with every kernel, three seeds each.
# usage: benchmarks/rounding.sh FILE [OUT]     (PYTHON chooses the interpreter, NETWORKS some of the networks)
set -euo pipefail
file=$1 out=${2:-runs/study-rounding} python=${PYTHON:-.venv/bin/python}
size="--data.source $file --data.tokenizer bytes --data.seq-len 128 --data.batch-size 4 --data.windows packed
      --data.max-eval-tokens 40000 --data.sample-tokens 0 --model.vocab-size None --model.max-len None --model.layers 2
      --model.width 128 --model.execution.layers unroll --train.accumulate 1 --train.steps 500
      --train.eval-every 100 --train.eval-batches 20 --objective.chunk 128 --optim.lr 3e-3 --optim.warmup-steps 50
      --optim.decay matrices --checkpoint.every 0 --log.every 25"
of_streams="--model.residual.implementation pallas" of_mixers="--model.mixer.implementation"
rows=()
for network in ${NETWORKS:-mhc dynamic_mhc gla gated_deltanet mhc_ssm}; do
  case $network in
    gla) config="gla_170m_baseline --model.mixer.heads 2" kernels="$of_mixers pallas" ;;
    gated_deltanet) config="gated_deltanet_170m_baseline_shortconv --model.mixer.heads 2" kernels="$of_mixers pallas" ;;
    mhc_ssm) config=mhc_ssm_original kernels="$of_mixers pallas" ;;
    *) config="nanogpt@$network --model.mixer.heads 2" kernels="$of_streams $of_mixers splash" ;;
  esac
  rows+=("$network-float32=$config --model.execution.policy float32"
         "$network-bfloat16=$config --model.execution.policy bfloat16"
         "$network-bfloat16-kernels=$config --model.execution.policy bfloat16 $kernels")
done
"$python" -m train.study "${rows[@]}" --out "$out" --train-flags="$size ${EXTRA:-}"
