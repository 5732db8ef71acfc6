"""Instructions as a kind of data: batches of packed records, and scores of their responses."""

import hashlib
import math
from collections.abc import Sequence

from train.data.batches import rows_of
from train.data.errors import DataError
from train.data.files import sha256_json
from train.data.instructions import InstructionsConfig
from train.data.kind import Data
from train.data.loader import in_order, shuffled
from train.data.records import PackedRecords, load_records
from train.data.tokens import check_ids
from train.terminal.table import text


class InstructionData(Data):
    """Definitions of its scores: ``loss`` is the mean negative log likelihood of the tokens of all responses, their end
    tokens included, in nats; ``ppl = exp(loss)``; ``bpb`` is the sum of the same in bits over the UTF-8 bytes of the
    responses.
    """

    def __init__(self, config: InstructionsConfig, needed: Sequence[str]):
        self.config = config
        self._tokenizer = config.tokenizer_of_text()
        if self._tokenizer.eos_id is None:
            raise DataError(
                f"responses need an end token, which the tokenizer {self._tokenizer.name} has not; "
                "choose another --data.tokenizer"
            )
        self._splits = load_records(config, self._tokenizer, needed)
        arrays = {
            name: [hashlib.sha256(x).hexdigest() for x in (split.tokens, split.ends, split.answers)]
            for name, split in self._splits.items()
        }
        self.fingerprint = sha256_json([self._tokenizer.fingerprint, config.seq_len, arrays])

    def check(self, vocab_size):
        for name, split in self._splits.items():
            check_ids(split.tokens, vocab_size, f"the {name} tokens")

    def introduction(self, baselines):
        train, validation = (self._record(name) for name in ("train", "validation"))
        windows = self._windows("train")
        full = len(self._splits["train"].tokens) / (len(windows) * self.config.seq_len)
        cut = f"; {train['cut'] + validation['cut']:,} contexts are cut" if self.config.too_long == "cut" else ""
        return (
            f"data: {self.config.source}, tokenizer {self._tokenizer.name}\n"
            f"{train['records']:,} training records in {len(windows):,} windows, {full:.0%} full, and "
            f"{validation['records']:,} of validation{cut}"
        )

    def steps_per_epoch(self):
        windows = len(self._windows("train"))
        if windows < self.config.batch_size:
            raise DataError(
                f"{self._record('train')['records']:,} training records make {windows} windows, fewer than one batch "
                f"of {self.config.batch_size}; give more records, or a smaller --data.seq-len or --data.batch-size"
            )
        return windows // self.config.batch_size

    def targets_share(self):
        train = self._splits["train"]
        return int((train.ends - train.answers).sum()) / (len(self._windows("train")) * self.config.seq_len)

    def train(self, host=0, hosts=1):
        self.steps_per_epoch()
        return shuffled(self._windows("train"), self.config, rows_of(self.config, host, hosts))

    def evaluation(self, split="validation", host=0, hosts=1):
        return in_order(self._windows(split), self.config, rows_of(self.config, host, hosts))

    def scores(self, split, sums, *, thorough=False):
        found = super().scores(split, sums)
        bits = found["loss"] / math.log(2) * found["tokens"]
        ppl = math.exp(min(found["loss"], 700.0))  # exp overflows float64 at 709
        return {"loss": found["loss"], "ppl": ppl, "bpb": bits / self._record(split)["bytes"]} | found

    def shown(self, scores):
        return f"val_loss {scores['loss']:.4f}  val_ppl {text(scores['ppl'])}  val_bpb {scores['bpb']:.4f}"

    def closing(self, summary):
        return (
            f"validation loss {summary['val_loss']:.4f} and perplexity {text(summary['val_ppl'])} of responses\n"
            f"{summary['val_bpb']:.4f} bits per byte"
        )

    def _record(self, split: str) -> dict[str, int]:
        return self._splits[split].record

    def _windows(self, split: str) -> PackedRecords:
        if split not in self._splits:
            raise DataError(f"--data.source {self.config.source} has no {split} split; evaluate its validation split")
        return PackedRecords(self._splits[split], self.config.seq_len)
