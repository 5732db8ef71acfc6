#!/usr/bin/env bash
# What every residual topology costs beside the plain residual: training steps in turns, and memory traffic beside its floors.
# usage: benchmarks/topologies.sh cpu|gpu [RESULTS]     (PYTHON chooses the interpreter)
# cpu: four layers of width 128 on bytes, so that the head does not dominate; about a quarter of an hour on two cores.
# gpu: GPT-2 of 124M parameters at 1,024 tokens in bfloat16, then 12 layers of width 2048.
set -euo pipefail
size=${1:?cpu or gpu} results=${2:-benchmarks/results} python=${PYTHON:-.venv/bin/python}
bench() { "$python" -m train.benchmark "$@"; }
main=(hc hc_static mhc dynamic_mhc single_pass_mhc mhc_lite kromhc ihc gated)

case $size in
cpu)
    small=(--model.width 128 --model.layers 4 --model.mixer.heads 4 --model.vocab-size None --model.max-len None
           --model.execution.policy float32 --data.tokenizer bytes --data.seq-len 256 --data.batch-size 4
           --train.accumulate 1 --out "$results")
    bench nanogpt --what topologies --topologies "${main[@]}" --rounds 7 --calls 1 "${small[@]}"
    bench nanogpt --what traffic --topologies "${main[@]}" --streams 1 4 "${small[@]}"
    ;;
gpu)
    # One micro-batch a step, no recomputation, attention by cuDNN: the baseline must be quick for a ratio to mean something.
    common=(--model.execution.remat none --model.mixer.implementation cudnn --data.seq-len 1024 --train.accumulate 1)
    wide=(--model.width 2048 --model.layers 12 --model.mixer.heads 16)
    bench gpt2 --what topologies --rounds 10 --calls 5 "${common[@]}" --data.batch-size 16 --out "$results"
    bench gpt2 --what traffic --topologies "${main[@]}" "${common[@]}" --data.batch-size 16 --out "$results"
    bench gpt2 --what topologies --topologies "${main[@]}" --streams 4 --rounds 10 --calls 3 "${common[@]}" "${wide[@]}" \
        --data.batch-size 4 --out "$results/width-2048"
    bench gpt2 --what traffic --topologies "${main[@]}" --streams 4 "${common[@]}" "${wide[@]}" \
        --data.batch-size 4 --out "$results/width-2048"
    ;;
*) echo "usage: $0 cpu|gpu [RESULTS]" >&2; exit 2 ;;
esac
