"""Preparing token shards: what they hold, what is refused, and that one killed ends as one never disturbed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mhc_jax.config import ConfigError
from train import prepare_fineweb
from train.data import load_corpus, load_tokenizer
from train.data.config import CorpusConfig
from train.data.shards import read_shard, write_shard
from train.terminal import cli
from train.terminal.interrupt import Interrupted

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("MHC_JAX_SHARED", ROOT.parent / "shared")) / "data" / "fineweb-edu"
WORDS = ["streams", "carry", "state", "through", "depth", "naïve", "日本語", "<|endoftext|>", "\n\n"]


def some_documents(count, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randrange(40))) for _ in range(count)]


def tokens_of(documents):
    rows = load_tokenizer("gpt2").encode_documents(documents)
    return [token for row in rows for token in (50256, *row)]


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "documents.jsonl", some_documents(60))


def write_jsonl(path, documents):
    path.write_text("".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(documents)))
    return path


def prepare(source, out, shard_tokens=500, **flags):
    prepare_fineweb.prepare(prepare_fineweb.Flags(str(out), str(source), shard_tokens=shard_tokens, **flags))


def refused(*parts, **flags):
    with pytest.raises(ConfigError) as caught:
        prepare(**flags)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shard_tokens(folder):
    """The tokens of each shard, validation first."""
    paths = [*folder.glob("fineweb_val_*.bin"), *sorted(folder.glob("fineweb_train_*.bin"))]
    return [read_shard(path) for path in paths]


def test_shards_hold_the_documents_each_after_an_end_token(source, tmp_path, monkeypatch):
    monkeypatch.setattr("train.data.text.BATCH_PIECES", 7)
    expected = tokens_of(some_documents(60))
    prepare(source, tmp_path / "out", val_tokens=123)
    shards = shard_tokens(tmp_path / "out")
    assert [len(shard) for shard in shards[:-1]] == [123, *[500] * (len(shards) - 2)]
    assert 0 < len(shards[-1]) <= 500
    assert np.concatenate(shards).tolist() == expected
    corpus = load_corpus(
        CorpusConfig(source="fineweb10b", path=str(tmp_path / "out"), train_shards=0, cache_dir=str(tmp_path / "cache"))
    )
    assert corpus.train[:].tolist() == expected[123:]
    assert corpus.train_bytes + corpus.validation_bytes == sum(len(text.encode()) for text in some_documents(60))


@pytest.mark.parametrize(("limit", "last"), [(1200, 200), (1500, 500), (501, 1)])
def test_no_more_tokens_than_asked_for(limit, last, source, tmp_path):
    prepare(source, tmp_path / "out", max_tokens=limit)
    shards = shard_tokens(tmp_path / "out")
    assert np.concatenate(shards).tolist() == tokens_of(some_documents(60))[:limit]
    assert len(shards[-1]) == last


def test_files_of_every_kind_and_folders_of_them(source, tmp_path):
    import datasets

    documents = some_documents(60)
    prepare(source, tmp_path / "jsonl")
    parquet, text, mixed = (tmp_path / name for name in ("parquet", "text", "mixed"))
    for folder in (parquet, text, mixed):
        folder.mkdir()
    for name, part in (("a", documents[:20]), ("b", documents[20:])):
        datasets.Dataset.from_dict({"text": part}).to_parquet(str(parquet / f"{name}.parquet"))
    (parquet / "README.md").write_text("left out")
    prepare(parquet, tmp_path / "out")
    assert [s.tolist() for s in shard_tokens(tmp_path / "out")] == [
        s.tolist() for s in shard_tokens(tmp_path / "jsonl")
    ]
    # A text file is one document, blank lines and all.
    whole = ["\n\n".join(documents), "another\n"]
    for name, document in zip("ab", whole):
        (text / f"{name}.txt").write_text(document)
    prepare(text, tmp_path / "texts")
    assert np.concatenate(shard_tokens(tmp_path / "texts")).tolist() == tokens_of(whole)
    (mixed / "a.txt").write_text("a")
    (mixed / "b.jsonl").write_text("{}")
    refused(f"--source {mixed}: expected files of one kind", "found JSON and text", source=mixed, out=tmp_path / "x")
    refused("expected files of one kind", "found .bin", source=tmp_path / "jsonl", out=tmp_path / "x")
    refused("absent.jsonl: no such file", source="absent.jsonl", out=tmp_path / "x")
    refused("no such file or folder", source=tmp_path / "absent", out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_preparation_goes_on_wherever_it_stopped(source, tmp_path, monkeypatch):
    monkeypatch.setattr("train.data.text.BATCH_PIECES", 7)
    prepare(source, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    write = prepare_fineweb.write_shard
    assert len(expected) > 5
    for stop in range(len(expected) - 1):
        out = tmp_path / f"stopped{stop}"

        def failing(path, tokens, stop=stop, seen=[]):  # noqa: B006
            if len(seen) == stop:
                raise OSError(28, "No space left on device")
            seen.append(path)
            write(path, tokens)

        with monkeypatch.context() as patched:
            patched.setattr(prepare_fineweb, "write_shard", failing)
            with pytest.raises(OSError, match="No space left"):
                prepare(source, out)
        prepare(source, out)
        assert contents(out) == expected
    # Stopped after the last shard, before it was known to be the last.
    manifest = json.loads(expected["shards.json"]) | {"finished": False}
    (tmp_path / "whole" / "shards.json").write_text(json.dumps(manifest))
    prepare(source, tmp_path / "whole")
    assert contents(tmp_path / "whole") == expected


def test_a_shard_that_was_removed_is_made_again(source, tmp_path):
    out = tmp_path / "out"
    prepare(source, out)
    expected = contents(out)
    (out / "fineweb_train_000002.bin").unlink()
    (out / "fineweb_train_000003.bin").write_bytes(b"cut short")
    prepare(source, out)
    assert contents(out) == expected


@pytest.mark.slow
def test_a_process_killed_at_a_random_moment_and_started_again(tmp_path):
    source = write_jsonl(tmp_path / "documents.jsonl", some_documents(2000))
    argv = ["-m", "train.prepare_fineweb", "--source", str(source), "--shard-tokens", "400", "--out"]
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}

    def start(out):
        return subprocess.Popen([sys.executable, *argv, str(out)], **options)

    out, whole = tmp_path / "killed", start(tmp_path / "whole")
    assert whole.wait(timeout=120) == 0, whole.communicate()[0]
    shards = len(list((tmp_path / "whole").glob("*.bin")))
    for _ in range(2):
        already = len(list(out.glob("*.bin")))
        kill_at = already + random.SystemRandom().randrange(1, shards // 3)
        print(f"kill -9 after {kill_at} of {shards} shards")
        process = start(out)
        while len(list(out.glob("*.bin"))) < kill_at:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    with pytest.raises(ConfigError, match="is not finished; repeat the train.prepare_fineweb command"):
        load_corpus(CorpusConfig(source="fineweb10b", path=str(out), cache_dir=str(tmp_path / "cache")))
    (out / ".fineweb_train_000007.bin.0123").write_bytes(b"left by a process that was killed while it wrote")
    last = start(out)
    assert last.wait(timeout=120) == 0, last.communicate()[0]
    assert contents(out) == contents(tmp_path / "whole")


def test_finished_shards_stay_as_they_are(source, tmp_path, capsys):
    out = tmp_path / "out"
    prepare(source, out)
    assert "Next: python -m train NAME --data.source fineweb10b" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    prepare(source, out)
    assert "is finished: " in capsys.readouterr().out
    refused("begun with shard_tokens 500, not 400", source=source, out=out, shard_tokens=400)
    refused("begun with max_tokens 0, not 900", source=source, out=out, max_tokens=900)
    other = write_jsonl(tmp_path / "other.jsonl", some_documents(60, seed=1))
    refused("begun with another origin", source=other, out=out)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_shards_of_others_are_not_overwritten(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write_shard(out / "fineweb_val_000000.bin", np.arange(5, dtype=np.uint16))
    before = contents(out)
    refused(str(out), "choose another --out", source=source, out=out)
    assert contents(out) == before
    refused("choose another --out", source=source, out=source)


def test_shards_of_an_earlier_version(source, tmp_path):
    out = tmp_path / "out"
    prepare(source, out)
    manifest = json.loads((out / "shards.json").read_text())
    for shard in manifest["shards"]:
        shard["next"]["state"] = {"examples_iterable": {"shard_idx": 0}, "epoch": 0}
    (out / "shards.json").write_text(json.dumps(manifest))
    before = contents(out)
    prepare(source, out)  # they are finished, and stay as they are
    assert contents(out) == before
    (out / "shards.json").write_text(json.dumps(manifest | {"finished": False}))
    refused("was begun by an earlier version", "give another --out", source=source, out=out)


def test_too_little_text(source, tmp_path):
    refused("has no tokens to train on", "fewer --val-tokens", source=source, out=tmp_path / "out", val_tokens=10**6)
    assert not list((tmp_path / "out").glob("*.bin"))
    # Nothing was written, so the sizes may still change.
    prepare(source, tmp_path / "out", val_tokens=100)


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ({"shard_tokens": 0}, "shard_tokens must be at least 1"),
        ({"val_tokens": -1}, "val_tokens must be at least 1"),
        ({"shard_tokens": 2**31}, "below 2^31"),
        ({"max_tokens": 500}, "max_tokens 500 leaves none to train on beside val_tokens 500"),
        ({"max_tokens": -1}, "max_tokens -1"),
    ],
)
def test_impossible_sizes(flags, fault, source, tmp_path):
    refused(fault, source=source, out=tmp_path / "out", **flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('{"text": "a"}\n{"text": \n', ["line 2 is not JSON"]),
        ('{"text": "a"}\n{"text": null}\n', ['line 2 has no string in the field "text"']),
        ('{"body": "a"}\n', ['line 1 has no string in the field "text", only', "body"]),
        ('{"text": 7}\n', ['line 1 has no string in the field "text"']),
        ('{"text": "\\ud800"}\n', ["line 1 holds half a surrogate pair"]),
    ],
)
def test_bad_documents(content, parts, tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_text(content)
    refused("bad.jsonl: ", *parts, source=file, out=tmp_path / "out")


def test_hub_data_set_is_read_as_it_was_when_begun(tmp_path, monkeypatch):
    """Of the Hub there are only its client's four questions; what they were is written down."""
    import huggingface_hub

    documents, hub, asked, heads = some_documents(60), tmp_path / "hub", [], iter(["first", "second", "third"])
    for name, part in (("part/train-0.jsonl", documents[:20]), ("part/train-1.jsonl", documents[20:])):
        (hub / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(hub / name, part)
    write_jsonl(hub / "part" / "test-0.jsonl", ["a test document"])
    (hub / "README.md").write_text("no card")

    class Api:
        def repo_info(self, repository, repo_type, revision, timeout):
            if revision in ("first", "second", "third"):
                return type("Info", (), {"sha": revision})
            asked.append(("head of", repository, revision))
            return type("Info", (), {"sha": next(heads)})

        def list_repo_files(self, repository, repo_type, revision):
            return [path.relative_to(hub).as_posix() for path in hub.rglob("*")]

    def download(repository, name, repo_type, revision, etag_timeout):
        asked.append((name, revision))
        return str(hub / name)

    monkeypatch.setattr("train.data.text.BATCH_PIECES", 7)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: str(hub))
    out = tmp_path / "out"
    prepare("someone/corpus", out, subset="part")
    whole = contents(out)
    assert np.concatenate(shard_tokens(out)).tolist() == tokens_of(documents)
    (out / "fineweb_train_000001.bin").unlink()
    prepare("someone/corpus", out, subset="part")
    assert contents(out) == whole
    files = [("part/train-0.jsonl", "first"), ("part/train-1.jsonl", "first")]
    assert asked == [("head of", "someone/corpus", None), *files, *files]
    prepare("someone/corpus@branch", tmp_path / "few", subset="part", shard_tokens=100, max_tokens=200)
    # No file is downloaded before it is needed.
    assert asked[5:] == [("head of", "someone/corpus", "branch"), ("part/train-0.jsonl", "second")]
    refused("no subset 'prt'", "--subset", source="someone/corpus", subset="prt", out=tmp_path / "x")


def test_unreachable_hub_names_the_way_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["prepare_fineweb", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as exit:
        cli.run(prepare_fineweb.main)
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cannot get 'HuggingFaceFW/fineweb' from the Hugging Face Hub (")
    assert "give local files instead: --source FILE_OR_FOLDER, or " in line
    assert not (tmp_path / "out").exists()


def test_interruption_is_one_line(source, tmp_path, monkeypatch):
    def stop(*args):
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(prepare_fineweb, "write_shard", stop)
    with pytest.raises(Interrupted, match="interrupted; the same command continues from here"):
        prepare_fineweb.main(["--source", str(source), "--out", str(tmp_path / "out"), "--shard-tokens", "500"])


def test_sample_of_fineweb(tmp_path):
    sample = REAL / "fineweb_edu_150docs.jsonl"
    if not sample.is_file():
        pytest.skip("the sample is not here")
    prepare(sample, tmp_path / "out", shard_tokens=20_000, val_tokens=5_000)
    shards = shard_tokens(tmp_path / "out")
    assert [len(shard) for shard in shards] == [5_000, 20_000, 20_000, 20_000, 20_000, 4_438]
    tokens = np.concatenate(shards)
    assert (tokens == 50256).sum() == 150
    documents = [json.loads(line)["text"] for line in sample.read_text().splitlines()]
    assert load_tokenizer("gpt2").decode(tokens[tokens != 50256].tolist()) == "".join(documents)
