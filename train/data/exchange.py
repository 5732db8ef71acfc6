"""Tokenizers as transformers reads them: ``tokenizer.json`` and ``tokenizer_config.json``."""

import json

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from train.data.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer, SubwordTokenizer, Tokenizer


def tokenizer_files(tokenizer: Tokenizer, max_len: int) -> dict[str, str]:
    """Names and contents of files by which ``transformers.AutoTokenizer`` gives the same ids.

    A character that a tokenizer of characters does not know is left out there, where ours refuses it.

    Args:
        tokenizer: tokenizer from :func:`train.data.load_tokenizer`.
        max_len: tokens that the model takes.
    """
    backend = _backend(tokenizer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_len,
        "padding_side": "left",  # rows that are continued end together
        "clean_up_tokenization_spaces": False,
        # Bytes that spell the end of a text do not end it.
        "split_special_tokens": isinstance(tokenizer, ByteTokenizer),
    }
    if tokenizer.eos_id is not None:
        end = backend.id_to_token(tokenizer.eos_id)
        config |= {"bos_token": end, "eos_token": end, "pad_token": end}
    return {"tokenizer.json": backend.to_str(pretty=True), "tokenizer_config.json": json.dumps(config, indent=2) + "\n"}


def _backend(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    if isinstance(tokenizer, SubwordTokenizer):
        return tokenizers.Tokenizer.from_str(tokenizer.to_json())
    if isinstance(tokenizer, ByteTokenizer):
        backend = _without_merges({character: byte for byte, character in enumerate(_characters_of_bytes())})
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([END_OF_TEXT])
        return backend
    assert isinstance(tokenizer, CharTokenizer)
    characters = tokenizer.decode(range(tokenizer.vocab_size))
    backend = _without_merges({character: index for index, character in enumerate(characters)})
    backend.decoder = decoders.Fuse()
    return backend


def _without_merges(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))


def _characters_of_bytes() -> list[str]:
    """The spelling of each byte in byte-level tokenizers: itself if Latin-1 prints it, else the next from U+0100 on."""
    printed = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printed else next(others)) for byte in range(256)]
