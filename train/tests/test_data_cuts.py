"""Plain text in pieces: where other tokenizers than ours allow a cut, and where none is known."""

import json
import random

import pytest
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from train.data import DataError, load_tokenizer
from train.data.text import in_pieces

LLAMA = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
LLAMA += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
MAPPED = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
SPLITS = {
    "gpt2": BYTE_LEVEL,
    "digits": pre_tokenizers.Sequence([DIGITS, BYTE_LEVEL]),
    "llama": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA), "isolated"), MAPPED]),
    "qwen": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA.replace("{1,3}", "")), "isolated"), MAPPED]),
}
LETTERS = ["a", "b", "\u0301", "1", "23", "'s", "'", ".", "!", " ", " ", " ", "  ", "\n", "\r\n", "\t", "日"]
LETTERS += ["<x>", "<|end|>"]


def byte_level(folder, split, normalizer=None, added=("<x>",)):
    """A tokenizer whose merges join whatever its splits leave together."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space, newline = "Ġ", "Ċ"
    merges = [("a", "b"), (space, "a"), (space, "ab"), (space, space), (newline, newline), (".", newline), ("a", space)]
    merges += [(space * 2, "a"), ("1", "2"), ("12", "3"), ("b", space), (space, newline), (".", ".")]
    vocab = {token: i for i, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = split
    if normalizer:
        backend.normalizer = normalizer
    backend.add_special_tokens(["<|end|>"])
    backend.add_tokens(list(added))
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return load_tokenizer(str(folder))


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()], ids=["as it is", "NFC"])
@pytest.mark.parametrize("name", SPLITS)
def test_pieces_have_the_ids_of_the_whole(name, normalizer, tmp_path):
    tokenizer = byte_level(tmp_path, SPLITS[name], normalizer)
    draw = random.Random(name)
    for size in (1, 3, 17, 17, 17):
        text = "".join(draw.choices(LETTERS, k=400))
        pieces = list(in_pieces((text[at : at + size] for at in range(0, len(text), size)), tokenizer.last_cut))
        assert len(pieces) > 20
        assert "".join(piece.text for piece in pieces) == text
        found = tokenizer.encode_documents([piece.text for piece in pieces])
        assert [i for ids in found for i in ids] == tokenizer.encode_documents([text])[0]


@pytest.mark.parametrize(
    "options",
    [
        {"split": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"split": MAPPED},
        {"split": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r".* ?"), "isolated"), MAPPED])},
        {"split": BYTE_LEVEL, "normalizer": normalizers.Strip()},
        {"split": BYTE_LEVEL, "added": ["a b"]},
        {"split": BYTE_LEVEL, "added": [tokenizers.AddedToken("<x>", rstrip=True)]},
    ],
    ids=["prefix", "no split", "another split", "normalizer", "blank in a token", "token that takes blanks"],
)
def test_where_no_cut_is_known_the_whole_has_to_fit(options, tmp_path, monkeypatch):
    tokenizer = byte_level(tmp_path, **options)
    text = "ab a. " * 100
    assert len(list(in_pieces([text, text], tokenizer.last_cut))) == 1
    monkeypatch.setattr("train.data.text.machine_memory", lambda: 100_000)
    with pytest.raises(DataError, match="too large to be encoded as a whole, .* this tokenizer allows a cut; give"):
        list(in_pieces([text, text], tokenizer.last_cut))


def test_special_tokens_that_merges_make_allow_no_cut(tmp_path):
    tokenizer = byte_level(tmp_path, BYTE_LEVEL)
    assert tokenizer.last_cut("ab ab") > 0
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["<|end|>"] = 300
    content["model"]["ignore_merges"] = True
    file.write_text(json.dumps(content))
    assert load_tokenizer(str(tmp_path)).last_cut("ab ab") == 0
