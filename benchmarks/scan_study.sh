#!/usr/bin/env bash
# Scan models beside attention and a diagonal SSM, over one stream and over mHC, at a size for two CPU cores: about
# 250,000 parameters without embeddings, the same bytes of WikiText-2, the best of three learning rates, three seeds.
# TransformerScan reads its windows of 128 bytes in chunks of 8 or 32.
# usage: benchmarks/scan_study.sh FOLDER_OF_PARQUET [OUT] [JOBS]     (PYTHON chooses the interpreter, RATES the rates)
set -euo pipefail
data=$1 out=${2:-runs/scan-study} jobs=${3:-2} python=${PYTHON:-.venv/bin/python}
rates=${RATES:-1e-3 3e-3 1e-2}
flags="--data.source wikitext-2-v1 --data.path $data --data.tokenizer bytes --data.seq-len 128 --data.batch-size 8
       --data.windows packed --data.max-eval-tokens 40000 --data.sample-tokens 0 --objective.chunk 128
       --model.vocab-size None --model.max-len None --model.execution.policy float32 --model.execution.remat none
       --train.accumulate 1 --train.steps 300 --train.eval-every 50 --train.eval-batches 20 --optim.warmup-steps 50
       --optim.beta2 0.99 --optim.eps 1e-8 --optim.decay kernels --optim.weight-decay 0.1 --optim.final-lr 0.1
       --checkpoint.every 0 --log.every 25"
rows=()
for streams in plain mhc; do
  scan="transformer_scan@$streams --model.aggregator.layers 1 --model.reader.layers 4
        --model.aggregator.width 64 --model.reader.width 64"
  rows+=("gpt2-$streams=gpt2@$streams --model.width 64 --model.layers 5 --model.mixer.heads 4"
         "scan8-$streams=$scan --model.chunk 8" "scan32-$streams=$scan --model.chunk 32"
         "gla-$streams=gla_170m_baseline@$streams --model.width 64 --model.layers 4 --model.mixer.heads 2
         --model.mlp.hidden 207 --model.dropout 0 --model.mixer.dropout 0"
         "delta-$streams=gated_deltanet_170m_baseline@$streams --model.width 64 --model.layers 4 --model.mixer.heads 2
         --model.mlp.hidden 110 --model.dropout 0 --model.mixer.dropout 0"
         "ssm-$streams=mhc_ssm@$streams --model.width 142 --model.layers 4")
done
"$python" -m train.study "${rows[@]}" --out "$out" --jobs "$jobs" --rates $rates --train-flags="$flags"
