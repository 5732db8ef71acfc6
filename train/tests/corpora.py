"""A small text, what is made of it, and how a fault of it is told."""

from pathlib import Path

import pytest

from train.data import DataError, load_corpus
from train.data.config import CorpusConfig

TEXT = "".join(f"Line {i} of a small text: naïve café.\n" for i in range(200))


def text_config(folder):
    """A corpus of bytes of a text file, cached in the same folder."""
    file = folder / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return CorpusConfig(source=str(file), tokenizer="bytes", cache_dir=str(folder / "cache"))


def cache_files(config, suffix):
    return sorted(Path(config.cache_dir).glob(f"*{suffix}"))


def refused(config, *parts, **options):
    with pytest.raises(DataError) as caught:
        load_corpus(config, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
