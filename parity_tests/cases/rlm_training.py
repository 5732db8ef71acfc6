"""RLM-mHC in training: its schedules, and a hundred steps of the published and of the repaired model."""

from collections.abc import Iterator

from parity_tests.cases.training import optimizer, trajectory
from parity_tests.compare import Case
from parity_tests.systems import SYSTEMS
from train.config import OptimConfig, TrainConfig
from train.data.instructions import InstructionsConfig

ORIGINAL = OptimConfig(beta2=0.95, warmup_steps=1, warmup_end="after_zero", schedule="cosine_floored", decay_steps=4)


def cases() -> Iterator[Case]:
    original, repaired = SYSTEMS["rlm, original"], SYSTEMS["rlm, default"]
    yield optimizer("rlm, original settings", original, ORIGINAL)
    yield optimizer("rlm, floored line", original, ORIGINAL.replace(schedule="linear_floored", final_lr=0.4))
    yield trajectory("rlm, original settings", original, ORIGINAL.replace(decay_steps=80), TrainConfig())
    yield trajectory("rlm, repaired", repaired, OptimConfig(lr=1e-3, decay="kernels"), TrainConfig(accumulate=2))
    # Records packed in windows, whose tokens do not see those of others.
    records = InstructionsConfig(source="records.jsonl", tokenizer="bytes")
    yield trajectory("rlm, plain, instructions", SYSTEMS["rlm, plain"], OptimConfig(lr=1e-3), TrainConfig(), records)
