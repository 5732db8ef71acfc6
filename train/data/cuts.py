"""Places where a text may be cut without changing its ids under a tokenizer of the `tokenizers` library."""

import re
from typing import Any

# The places where no part that a tokenizer encodes for itself goes on: a blank after anything else.
BEFORE_A_BLANK = re.compile(r".*\S(?= )", re.DOTALL)

_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_END = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# The expressions of GPT-4 and Llama 3, and of Qwen 2: like GPT-2's, none goes from anything else on to a blank.
_SPLITS = {f"{_SUFFIX}|{_WORD}|\\p{{N}}{digits}|{_END}" for digits in ("{1,3}", "")}


def safe_cut(tokenizer: dict[str, Any]) -> re.Pattern[str] | None:
    """Matches a text up to the last place where it may be cut, whatever follows; None where that is not known.

    Args:
        tokenizer: the contents of a ``tokenizer.json``.
    """
    model, normalizer = tokenizer["model"], tokenizer["normalizer"]
    if model["type"] != "BPE" or model.get("dropout") or (normalizer and normalizer["type"] != "NFC"):
        return None
    whole = all(map(_is_kept_whole, tokenizer["added_tokens"])) and not _makes_special(tokenizer)
    return BEFORE_A_BLANK if whole and _splits_at_blanks(tokenizer["pre_tokenizer"]) else None


def _splits_at_blanks(step: dict[str, Any] | None) -> bool:
    """Whether the text is split before a blank after anything else, with regard to nothing further away."""
    steps = (step["pretokenizers"] if step["type"] == "Sequence" else [step]) if step else []
    while steps and steps[0]["type"] == "Digits":  # looks at one character at a time
        steps = steps[1:]
    match steps:
        case [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            return True
        case [
            {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
        ]:
            return expression in _SPLITS
    return False


def _is_kept_whole(token: dict[str, Any]) -> bool:
    """Whether a token that is looked for before the text is split has no place to cut in it, nor takes blanks along."""
    return not re.search(r"\S ", token["content"]) and not token["rstrip"]


def _makes_special(tokenizer: dict[str, Any]) -> bool:
    """Whether plain text can become a special token, which then has the whole text encoded in other parts."""
    model = tokenizer["model"]
    merged = {"".join(pair if isinstance(pair, list) else pair.split(" ")) for pair in model["merges"]}
    return any(
        token["content"] in merged or len(token["content"]) < 2 or model.get("ignore_merges")
        for token in tokenizer["added_tokens"]
        if token["special"] and token["content"] in model["vocab"]
    )
