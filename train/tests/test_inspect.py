"""The command: what it prints, draws and writes for runs, exports and names, and how it says what is wrong."""

import json

import pytest

import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.nn.channel import GeluMLPConfig
from train import inspect
from train.export import export
from train.loop.run import run
from train.measure import streams
from train.tests.test_streams import streamed
from train.tests.tiny import tiny_export


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_export(tmp_path_factory.mktemp("tiny"))


def inspected(capsys, name, folder, *flags):
    """What the command prints, and the picture and the report it writes to ``folder``."""
    picture, report = folder / "mixing.png", folder / "report.html"
    given = [] if name == folder / "run" else ["--picture", str(picture)]
    picture = picture if given else name / "mixing.png"  # a run's picture lies in its folder
    inspect.main([str(name), *given, "--html", str(report), *flags])
    assert picture.read_bytes().startswith(b"\x89PNG")
    return capsys.readouterr().out, report.read_text()


@pytest.mark.slow
def test_command_on_an_export_prints_draws_and_reports(tiny, tmp_path, capsys):
    numbers = tmp_path / "made" / "numbers.json"
    printed, report = inspected(capsys, tiny[2], tmp_path, "--json", str(numbers))
    found = json.loads(numbers.read_text())
    assert found["cost"][0]["one training step"] == "parameters"
    assert len(found["streams"]["statistics"]["singular_max"]) == len(found["streams"]["sites"]) == 2
    assert [row["policy"] for row in found["policies"]] == ["float32", "bfloat16"]
    for word in ("blocks.mixer.residual", "trace and compile", "optimizer state", "column sums", "forward gain"):
        assert word in printed
        assert word in report
    assert "Mean over 144 validation tokens of" in printed  # the whole split, in windows of 16
    assert all(len(line) <= 80 for line in printed.splitlines() if line.startswith("|"))


@pytest.mark.slow
def test_command_on_a_run_with_both_sites_shows_its_training(tmp_path, capsys):
    config = streamed(tmp_path)
    run(config.replace(model=config.model.replace(mlp=GeluMLPConfig())))
    printed, report = inspected(capsys, tmp_path / "run", tmp_path, "--compile", "False", "--tokens", "40")
    assert "Mean over 32 validation tokens" in printed
    assert "| 1 mlp " in printed
    for title in ("Losses", "Streams over training", "Streams through depth"):
        assert f"<h2>{title}</h2>" in report
    assert "Cost of a training step" not in report
    assert "<dt>streams_every</dt><dd>3</dd>" in report


@pytest.mark.slow
def test_without_a_corpus_a_few_tokens_serve(tiny, tmp_path, capsys):
    config, params, _ = tiny
    lost = config.replace(data=config.data.replace(source=str(tmp_path / "gone.txt")))
    export(lost, params, tmp_path / "export")
    flags = "--compile", "False"
    printed, _ = inspected(capsys, tmp_path / "export", tmp_path, *flags)
    assert "no validation tokens: " in printed
    assert "Mean over 16 made-up tokens" in printed
    printed, _ = inspected(capsys, tiny[2], tmp_path, *flags, "--tokens", "0")
    assert "no validation tokens: " not in printed
    assert "Mean over 16 made-up tokens" in printed


def test_matrices_are_those_of_the_parameters(tiny):
    config, params, _ = tiny
    rows = streams.validation_rows(config, 64)
    assert {name: x.shape for name, x in rows.items()} == {"inputs": (4, 16), "targets": (4, 16)}
    recorded = streams.measure(config, params, rows)
    taps = mhc_jax.apply(config.model, params, rows["inputs"], taps=True).taps
    assert recorded["h_res"] == streams.record({"h": taps["blocks.mixer.residual.h_res"]})["h"]


@pytest.mark.slow
def test_command_on_the_published_shc(tmp_path, capsys):
    sizes = {"width": 8, "layers": 2, "heads": 2, "hidden": 8, "max-len": 16}
    flags = [text for name, size in sizes.items() for text in (f"--model.{name}", str(size))]
    flags += ["--compile", "False", "--policies", "bfloat16", "--data.path", str(tmp_path), "--data.seq-len", "16"]
    inspect.main(["shc_500m_original", *flags, "--picture", str(tmp_path / "x.png")])
    printed = capsys.readouterr().out
    for word in ("| 1 block ", "| bfloat16 ", "product's least", "components used"):
        assert word in printed


@pytest.mark.slow
def test_profile_is_printed_drawn_and_written(tiny, tmp_path, capsys):
    flags = "--compile", "False", "--policies", "--profile", "--cache", "24", "--json", str(tmp_path / "numbers.json")
    printed, report = inspected(capsys, tiny[2], tmp_path, *flags)
    found = json.loads((tmp_path / "numbers.json").read_text())["profile"]
    assert (found["batch"], found["length"], found["cache"]) == (4, 16, 24)
    for row in found["rows"]:
        assert row["part"] in printed
        assert row["part"] in report
    assert "<h2>Time by part</h2>" in report
    assert "decoding state of one row, 24 tokens" in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if line.startswith("|"))


def test_command_on_a_name_without_streams(tmp_path, capsys):
    flags = ("--compile", "False", "--data.tokenizer", "bytes", "--html", str(tmp_path / "x.html"))
    inspect.main(["mhc_ssm_baseline", *flags, "--picture", str(tmp_path / "x.png"), "--json", str(tmp_path / "x.json")])
    assert json.loads((tmp_path / "x.json").read_text())["streams"] is None
    assert "no site taps h_pre, h_post or h_res" in capsys.readouterr().out
    assert not (tmp_path / "x.png").exists()
    assert "no site taps h_pre, h_post or h_res" in (tmp_path / "x.html").read_text()


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (["mhc_sm"], "did you mean 'mhc_ssm'"),
        (["runs/quikstart"], "runs/quikstart does not exist; give a run directory"),
        ([], "NAME is missing"),
        (["quickstart", "--data.batch-size", "0"], "batch_size"),
        (["quickstart", "--objective.chunk", "0"], "chunk must be at least 1"),
        (["quickstart", "--tokens", "-1"], "tokens must not be negative"),
        (["quickstart", "--policies", "float64"], "policy 'float64' needs 64-bit mode"),
        (["quickstart", "--cache", "9"], "--cache is the length of a decoding step's cache under --profile"),
        (["quickstart", "--profile", "--cache", "0"], "under --profile, got 0"),
        (["quickstart", "--model.layers", "1000000000"], r"parameters take .*choose a smaller --model\.layers"),
    ],
)
def test_faults_are_named(argv, fault):
    with pytest.raises(ConfigError, match=fault):
        inspect.main(argv)


def test_flags_must_fit_a_trained_model(tiny):
    with pytest.raises(ConfigError, match="do not fit the parameters"):
        inspect.main([str(tiny[2]), "--model.width", "16"])
    assert mhc_jax.load(tiny[2])[0].width == 8
