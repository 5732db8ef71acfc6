"""A corpus as a kind of data: its windows, its scores, and a text sample at the end."""

import math
from collections.abc import Sequence

import numpy as np

from mhc_jax.sampling import Sampling
from train.data.config import CorpusConfig
from train.data.continuation import sample
from train.data.corpus import load_corpus
from train.data.errors import DataError
from train.data.kind import Data, EvalBatches
from train.data.loader import eval_batches, steps_per_epoch, train_batches
from train.data.tokenizer import Tokenizer
from train.data.tokens import Tokens, check_ids, unigram_perplexity
from train.terminal.console import say, shown, task
from train.terminal.table import text


class TextData(Data):
    """Definitions of its scores.

    A split is cut into windows of ``seq_len`` targets that do not overlap (a rest shorter than a window is dropped);
    every target is predicted once, from the tokens before it in its window, whose state starts empty. ``loss`` is the
    mean negative log likelihood of all targets in nats, each weighted equally; ``ppl = exp(loss)``; ``bpb`` is the loss
    in bits per UTF-8 byte of text, ``loss / ln 2`` times the split's tokens over its bytes. An end token is predicted
    like any other and stands for no byte. ``word_ppl``, for WikiText, is ``exp`` of the loss per word.
    """

    def __init__(self, config: CorpusConfig, needed: Sequence[str]):
        self.config = config
        _check_limits(config)
        self._corpus = load_corpus(config, needed=needed)
        self.fingerprint = self._corpus.fingerprint
        self._end = self._corpus.tokenizer.eos_id
        if config.documents == "apart" and self._end is None:
            raise DataError(
                f"--data.documents apart needs a tokenizer with an end token, which {self._corpus.tokenizer.name} has "
                "not; choose another --data.tokenizer, or --data.documents joined"
            )

    def check(self, vocab_size):
        for name in ("train", "validation", "test"):
            if len(tokens := self._tokens(name)):
                check_ids(tokens, vocab_size, f"the {name} tokens")

    def begun_as(self, fingerprint):
        # Runs of earlier versions began with the test split, too, where there was one.
        return super().begun_as(fingerprint) or fingerprint == load_corpus(self.config, also=("test",)).fingerprint

    def introduction(self, baselines):
        train, validation = (len(self._tokens(name)) for name in ("train", "validation"))
        return (
            f"data: {self.config.source}, tokenizer {self._corpus.tokenizer.name}\n"
            f"{train:,} training and {validation:,} validation tokens, unigram perplexity "
            f"{text(math.exp(baselines['unigram']))}"
        )

    def steps_per_epoch(self):
        return steps_per_epoch(self._corpus.train, self.config)

    def train(self, host=0, hosts=1):
        return train_batches(self._corpus.train, self.config, end=self._end, host=host, hosts=hosts)

    def evaluation(self, split="validation", host=0, hosts=1) -> EvalBatches:
        if getattr(self._corpus, split) is None:
            raise DataError(f"--data.source {self.config.source} has no {split} split; evaluate its validation split")
        return eval_batches(self._tokens(split), self.config, end=self._end, host=host, hosts=hosts)

    def scores(self, split, sums, *, thorough=False):
        found, tokens = super().scores(split, sums), self._tokens(split)
        loss, n_bytes = found["loss"], getattr(self._corpus, f"{split}_bytes")
        bpb = loss / math.log(2) * len(tokens) / n_bytes
        found = {"loss": loss, "ppl": _exp(loss), "bpb": bpb} | found
        if thorough and "wikitext" in self.config.source.lower():
            found["word_ppl"] = word_ppl(loss, tokens, self._corpus.tokenizer)
        return found

    def shown(self, scores):
        loss, ppl, bpb = f"{scores['loss']:.4f}", text(scores["ppl"]), f"{scores['bpb']:.4f}"
        return f"val_loss {loss}  val_ppl {ppl}  val_bpb {bpb}"

    def baselines(self, vocab_size):
        return {"unigram": math.log(unigram_perplexity(self._corpus.train, self._corpus.validation, vocab_size))}

    def closing(self, summary):
        return (
            f"validation loss {summary['val_loss']:.4f}, perplexity {text(summary['val_ppl'])} "
            f"(unigram model {text(summary['unigram_ppl'])})\n{summary['val_bpb']:.4f} bits per byte"
        )

    def epilogue(self, model, params, seed):
        if not self.config.sample_tokens or not model.causal:  # what sees later tokens continues nothing
            return ""
        sampling = Sampling(max_new_tokens=self.config.sample_tokens, temperature=0.8, top_k=50)
        with task("compiling and drawing a text sample"):
            words = sample(model, params, self._corpus.tokenizer, sampling, seed=seed)
        say(f"sample:\n{shown(words)}\n")
        return words

    def _tokens(self, split: str) -> Tokens:
        """Empty where the split is neither found nor asked for."""
        tokens = getattr(self._corpus, split)
        return np.zeros(0, np.int32) if tokens is None else tokens


def word_ppl(loss: float, tokens: Tokens, tokenizer: Tokenizer) -> float:
    """Perplexity per word, as WikiText counts: whitespace-separated words, and one end mark per row.

    Args:
        loss: mean nats per token.
        tokens: the split that it was measured on.
    """
    (ends,) = np.nonzero(np.asarray(tokens) == tokenizer.eos_id)
    rows = np.split(np.asarray(tokens), ends + 1)  # a word ends with its row, whether a line end follows or not
    words = sum(len(tokenizer.decode(row[row != tokenizer.eos_id].tolist()).split()) for row in rows) + len(ends)
    return _exp(loss * len(tokens) / words)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf  # exp overflows float64 at 709


def _check_limits(config: CorpusConfig) -> None:
    """Raises DataError, before anything is encoded and kept, where a limit leaves less than a window."""
    for flag, limit in (("max-train-tokens", config.max_train_tokens), ("max-eval-tokens", config.max_eval_tokens)):
        if 0 < limit <= config.seq_len:
            raise DataError(
                f"--data.{flag} {limit} does not fill one window of {config.seq_len} and its target; give more, 0 for "
                "all, or a smaller --data.seq-len"
            )
