#!/usr/bin/env bash
# What each repair of mHC-SSM gains: the repaired form, and the same with one repair undone, on bytes of WikiText-2; three
# seeds, trained side by side.
# usage: benchmarks/repairs.sh FOLDER_OF_PARQUET [RUNS]     (PYTHON chooses the interpreter)
set -euo pipefail
data=$1 runs=${2:-runs/repairs} python=${PYTHON:-.venv/bin/python}
common=(--data.source wikitext-2-v1 --data.path "$data" --data.tokenizer bytes --data.seq-len 256 --data.batch-size 8
        --data.max-eval-tokens 100000 --model.width 96 --model.layers 4 --train.steps 300 --train.eval-every 0
        --data.sample-tokens 0 --checkpoint.every 0 --log.every 25)
train() {
    local row=$1 name=$2 seed; shift 2
    for seed in 0 1 2; do
        [ -f "$runs/$row/seed$seed/summary.json" ] || "$python" -m train "$name" --run-dir "$runs/$row/seed$seed" \
            --train.seed $seed --data.seed $seed "${common[@]}" "$@" &
    done
    wait
}
without() { local row=$1; shift; train "without-$row" mhc_ssm_adapters --optim.lr 3e-3 --optim.warmup-steps 30 "$@"; }

train repaired mhc_ssm_adapters --optim.lr 3e-3 --optim.warmup-steps 30
without small-embeddings --model.embed-std 1.0
without near-identity-mixing --model.residual.diagonal-bias 0 --model.residual.read-bias 0
without unit-writes --model.residual.unit-writes False
without copied-streams --model.ends.init uniform
without time-scales --model.mixer.init original
without zero-adapters --model.adapters.zero-init False
without decay-of-matrices-only --optim.decay all
without warmup-and-cosine --optim.schedule constant --optim.warmup-steps 0
train original mhc_ssm_adapters_original --optim.lr 3e-3
"$python" -m train.compare "$runs"/*/seed* --mean --picture "$runs/curves.png"
