#!/usr/bin/env bash
# AdamW and Muon on real text, over one stream and over four of static mHC: the sizes and seeds of study.sh, then
# the tokens that each took to given validation losses.
# usage: benchmarks/optimizers.sh FILE [OUT]     (PYTHON chooses the interpreter)
set -euo pipefail
file=$1 out=${2:-runs/study-optimizers} here=$(dirname "$0")
for name in adamw muon; do
  case $name in
    adamw) rates="1e-3 3e-3 1e-2" ;;
    muon) rates="3e-3 1e-2 3e-2" ;;
  esac
  RATES=$rates TOPOLOGIES="plain mhc" EXTRA="--optim.name $name --train.eval-every 25" "$here/study.sh" fineweb "$file" "$out/$name"
done
"${PYTHON:-.venv/bin/python}" "$here/tokens_to_loss.py" "$out"/adamw/study.json "$out"/muon/study.json
