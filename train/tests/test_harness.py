"""Tasks of the lm-eval harness over made-up files: what is asked, what the model answers, what is reported."""

import contextlib
import io
import json

import jax
import numpy as np
import pytest

import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.models.topologies import with_topology
from mhc_jax.nn.channel import GeluMLPConfig
from mhc_jax.nn.mixers import AttentionConfig
from mhc_jax.nn.norms import LayerNormConfig
from train import evaluate, export
from train.checks.subject import awake
from train.measure import likelihood
from train.measure.task_data import LocalData
from train.measure.text_model import TextModel
from train.measure.text_scores import bits_per_byte
from train.tests.task_files import write_task_files
from train.tests.tiny import tiny_config

TASKS = "mmlu_anatomy,arc_easy,hellaswag,lambada_openai,wikitext,gsm8k_cot,bbh_cot_fewshot_navigate"


def test_a_missing_harness_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(evaluate.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["evaluate", "nowhere", "--tasks", "mmlu"])
    with pytest.raises(SystemExit) as exit:
        evaluate.cli.run(evaluate.main)
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: --tasks needs the lm-eval harness: pip install 'lm-eval>=0.4.13'\n"


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (["RUN", "--tasks", "mmlu,,arc"], "--tasks must be names separated by commas, got 'mmlu,,arc'"),
        (["RUN", "--tasks", "mmlu", "--shots", "-1"], "--shots must not be negative, got -1"),
        (["RUN", "--tasks", "mmlu", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["RUN", "--tasks", "mmlu", "--split", "test"], "unknown flag --split"),
        (["RUN", "--tasks"], "--tasks needs a value"),
        (["--tasks", "mmlu"], "give at least one run directory"),
        (["RUN", "--tasks", "mmlu", "--data", "/no/such"], "--data /no/such is no folder"),
    ],
)
def test_bad_flags_are_one_line(argv, fault, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["evaluate", *argv])
    with pytest.raises(SystemExit) as exit:
        evaluate.cli.run(evaluate.main)
    assert exit.value.code == 2
    err = capsys.readouterr().err
    assert fault in err
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny model over bytes that reads 256 of them."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(folder)
    config = config.replace(model=config.model.replace(max_len=256))
    params = mhc_jax.init(config.model, jax.random.key(0))
    export.export(config, params, folder / "run")
    return config, params, folder / "run"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_task_files(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def found(run, data, tmp_path_factory):
    """What the command prints for all tasks, and the samples."""
    pytest.importorskip("lm_eval")
    samples = tmp_path_factory.mktemp("samples") / "new" / "samples.jsonl"
    argv = [str(run[2]), "--tasks", TASKS, "--data", str(data), "--max-gen-toks", "8", "--batch", "4", "--json"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        evaluate.main([*argv, "--samples", str(samples)])
    return json.loads(printed.getvalue()), [json.loads(line) for line in samples.read_text().splitlines()]


def test_every_task_is_reported(found):
    report, _ = found
    rows = {(row["task"], row["metric"]): row for row in report["results"]}
    assert list(dict.fromkeys(task for task, _ in rows)) == TASKS.split(",")
    assert {(row["n"], row["chance"]) for row in rows.values() if row["task"] == "mmlu_anatomy"} == {(3, 0.25)}
    assert rows["arc_easy", "acc_norm"]["chance"] == pytest.approx(1 / 3)
    assert rows["gsm8k_cot", "exact_match, strict-match"]["shots"] == 8
    assert rows["gsm8k_cot", "exact_match, strict-match"]["cut"] == 1
    assert rows["lambada_openai", "perplexity"]["cut"] == 0
    assert rows["hellaswag", "acc"]["version"] == 1
    assert report["versions"]["lm-eval"]
    assert (report["tokenizer"], report["model"]["kind"]) == ("bytes", "lm")


def test_samples_hold_the_shipped_prompts_and_our_numbers(found, run):
    config, params, _ = run
    report, samples = found
    by_task = {}
    for sample in samples:
        by_task.setdefault(sample["task"], []).append(sample)
    first = by_task["mmlu_anatomy"][0]
    context, _ = first["arguments"][0]
    assert context.startswith("The following are multiple choice questions (with answers) about anatomy.")
    assert context.endswith("A. one\nB. two, or more\nC. N/A\nD. None\nAnswer:")
    pairs = [(list(c.encode()), list(t.encode())) for c, t in first["arguments"]]
    expected = likelihood.log_likelihoods(config.model, params, pairs, batch=4)
    assert [float(response[0][0]) for response in first["resps"]] == pytest.approx([v for v, _ in expected], rel=1e-6)
    texts = [sample["arguments"][0][0] for sample in by_task["wikitext"]]
    found = likelihood.log_likelihoods(config.model, params, [([256], list(text.encode())) for text in texts], batch=4)
    pages = "".join(sample["doc"]["page"] for sample in by_task["wikitext"])
    bits = bits_per_byte(-sum(value for value, _ in found), pages)
    (row,) = (row for row in report["results"] if row["metric"] == "bits_per_byte")
    assert row["value"] == pytest.approx(bits, rel=1e-6)
    answer = by_task["gsm8k_cot"][0]
    prompt = list(answer["arguments"][0][0].encode())[-(256 - 8) :]
    ids = mhc_jax.generate(config.model, params, [prompt], temperature=0, max_new_tokens=8, eos_id=256)
    new = bytes(i for i in np.asarray(ids)[0, len(prompt) :].tolist() if i < 256).decode(errors="replace")
    assert answer["resps"][0][0] == new


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (["--tasks", "mmlu_anatomi"], "unknown task 'mmlu_anatomi'; did you mean 'mmlu_anatomy'?"),
        (["--tasks", "mmlu_anatomy,mmlu_astronomy"], "holds no dev/astronomy_dev.csv"),
        (["--tasks", "gsm8k"], "holds no train split of openai/gsm8k, of which gsm8k takes its examples"),
        (["--tasks", "wikitext,arc_easy", "--shots", "2"], "holds no train split of allenai/ai2_arc"),
        (["--tasks", "gsm8k_cot"], "gsm8k_cot asks for up to 256 new tokens, which leaves no room"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_computed(argv, fault, run, data, monkeypatch):
    pytest.importorskip("lm_eval")

    monkeypatch.setattr(likelihood, "_score", None)
    monkeypatch.setattr(likelihood, "stream", None)
    with pytest.raises(ConfigError) as error:
        evaluate.main([str(run[2]), *argv, "--data", str(data)])
    assert fault in str(error.value)
    assert "\n" not in str(error.value)


def test_data_that_the_hub_does_not_give_are_named(run, monkeypatch):
    pytest.importorskip("lm_eval")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(
        "datasets.load_dataset", lambda **_: (_ for _ in ()).throw(ConnectionError("no network\nat all"))
    )
    with pytest.raises(
        ConfigError, match=r"the data of arc_easy, allenai/ai2_arc on the .* \(no network\); give --data"
    ):
        evaluate.main([str(run[2]), "--tasks", "arc_easy"])


@pytest.mark.slow
def test_the_harness_finds_the_same_through_transformers(data, tmp_path):
    """Tasks of each kind, for a GPT-2 and for a model that carries its code."""
    pytest.importorskip("lm_eval")
    pytest.importorskip("accelerate")
    from lm_eval.evaluator import evaluate as harness_evaluate
    from lm_eval.models.huggingface import HFLM

    from train.measure import harness

    plain = mhc_jax.LMConfig(
        vocab_size=257,
        max_len=256,
        width=16,
        layers=2,
        norm=LayerNormConfig(),
        mixer=AttentionConfig(heads=2),
        mlp=GeluMLPConfig(activation="tanh"),
    )
    for name, model in (("gpt2", plain), ("mhc", with_topology(plain, "mhc"))):
        config = tiny_config(tmp_path).replace(model=model)
        params = awake(model, mhc_jax.init(model, jax.random.key(0)))
        export.export(config, params, tmp_path / name, "huggingface")
        found = []
        for lm in (
            harness.HarnessLM(TextModel(model, params, config.data.tokenizer_of_text(), 4)),
            HFLM(pretrained=str(tmp_path / name), trust_remote_code=True, device="cpu", dtype="float32", batch_size=3),
        ):
            tasks = harness.HarnessTasks([*TASKS.split(","), "bbh_cot_zeroshot_navigate"], LocalData(data), None, 0, 8)
            found.append(harness_evaluate(lm, tasks._loaded)["samples"])
        ours, theirs = found
        assert type(lm.model).__name__ == {"gpt2": "GPT2LMHeadModel", "mhc": "MHCForCausalLM"}[name]
        for task in theirs:
            for a, b in zip(ours[task], theirs[task], strict=True):
                assert a["arguments"] == b["arguments"]
                for (x,), (y,) in zip(a["resps"], b["resps"], strict=True):
                    if isinstance(x, str):
                        assert x == y
                    else:
                        np.testing.assert_allclose(np.float64(x), np.float64(y), rtol=1e-5)
