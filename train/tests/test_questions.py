"""A user's own questions: how they are read, asked and scored."""

import json

import jax
import pytest

import mhc_jax
from mhc_jax.config import ConfigError
from mhc_jax.models.shc_original import SHCOriginalConfig
from train import evaluate
from train.export import export
from train.measure import likelihood
from train.measure.questions import Questions, mean
from train.measure.text_model import TextModel, before
from train.measure.text_scores import bits_per_byte, bleu, exact_match, f1
from train.tests.task_files import lines
from train.tests.tiny import tiny_export

FREE = [
    {"prompt": "line 1:", "response": " the quick brown fox"},
    {"prompt": "a much longer prompt than there is room for", "response": " fox"},
]
CHOICES = [
    {"prompt": "line 2: the", "response": " quick", "choices": [" quick", " slow", " a"]},
    {"prompt": "", "response": "x", "choices": ["x", "yy"]},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_export(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(run):
    config, params, _ = run
    return TextModel(config.model, params, config.data.tokenizer_of_text(), 4)


def questions(path, *rows, limit=0, max_new=8):
    lines(path, *rows)
    return Questions(path, limit, max_new)


@pytest.mark.slow
def test_free_answers_are_compared_and_the_right_ones_scored(run, model, tmp_path):
    config, params, _ = run
    scores, records = questions(tmp_path / "free.jsonl", *FREE).score(model)
    answers, nats = [], 0.0
    for row in FREE:
        prompt, response = list(row["prompt"].encode()), list(row["response"].encode())
        ids = mhc_jax.generate(config.model, params, [prompt[-24:]], temperature=0, max_new_tokens=8, eos_id=256)
        new = [i for i in ids[0, len(prompt[-24:]) :].tolist() if i < 256]
        answers.append(bytes(new).decode(errors="replace").split("\n")[0])
        nats -= likelihood.log_likelihoods(config.model, params, [(prompt, response)], 1)[0][0]
    assert [record["answer"] for record in records] == answers
    found = {score.metric: score for score in scores}
    responses = [row["response"] for row in FREE]
    assert found["exact_match"].value == sum(map(exact_match, answers, responses)) / 2
    assert found["f1"].value == sum(map(f1, answers, responses)) / 2
    assert found["bleu"].value == bleu(answers, responses)
    assert found["bits_per_byte"].value == pytest.approx(bits_per_byte(nats, "".join(responses)), rel=1e-5)
    assert {(score.n, score.cut, score.chance, score.shots) for score in scores} == {(2, 0.5, None, 0)}


def test_of_choices_the_likeliest_is_taken(run, model, tmp_path):
    config, params, _ = run
    scores, records = questions(tmp_path / "choices.jsonl", *CHOICES).score(model)
    for row, record in zip(CHOICES, records, strict=True):
        context = list(row["prompt"].encode()) or [256]
        pairs = [(context, list(choice.encode())) for choice in row["choices"]]
        values = [value for value, _ in likelihood.log_likelihoods(config.model, params, pairs, 1)]
        assert list(record["nats"].values()) == pytest.approx(values, rel=1e-5)
        assert record["answer"] == row["choices"][values.index(max(values))]
    found = {score.metric: score for score in scores}
    right = [float(record["answer"] == record["response"]) for record in records]
    assert (found["acc"].value, found["acc"].stderr) == pytest.approx(mean(right))
    assert found["acc_norm"].chance == pytest.approx((1 / 3 + 1 / 2) / 2)
    (limited, _), _ = questions(tmp_path / "choices.jsonl", *CHOICES, limit=1).score(model)
    assert limited.n == 1
    assert limited.stderr is None


def test_standard_error_of_a_mean():
    assert mean([0.0, 1.0, 1.0, 0.0]) == pytest.approx((0.5, (1 / 3 / 4) ** 0.5))
    assert mean([2.0]) == (2.0, None)


def test_an_answer_of_several_lines_goes_on_after_the_first(model, tmp_path, monkeypatch):
    stops = []
    monkeypatch.setattr(
        TextModel, "answers", lambda self, prompts, sampling, until, progress: stops.append(until) or [("", False)]
    )
    for response in (" one\n", " one\ntwo"):
        questions(tmp_path / "q.jsonl", {"prompt": "q", "response": response}).score(model)
    assert stops == [("\n",), ()]


def test_text_ends_before_the_first_stop():
    assert before("a b; c. d", ["", ".", ";"]) == "a b"
    assert before("a b", []) == "a b"


def test_a_prompts_last_blanks_belong_to_what_follows(model):
    assert model.pair("ab ", "c") == (list(b"ab"), list(b" c"))
    assert model.pair("", "c") == ([256], list(b"c"))
    assert model.pair(" ", "c") == ([256], list(b" c"))


@pytest.mark.slow
def test_the_command_needs_no_harness_for_them(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "_harness", None)
    for name, rows in (("free", FREE), ("choices", CHOICES)):
        lines(tmp_path / f"{name}.jsonl", *rows)
    names = f"{tmp_path}/free.jsonl,{tmp_path}/choices.jsonl"
    argv = [str(run[2]), "--tasks", names, "--max-gen-toks", "8", "--samples", str(tmp_path / "samples.jsonl")]
    evaluate.main([*argv, "--json"])
    report = json.loads(capsys.readouterr().out)
    metrics = [row["metric"] for row in report["results"]]
    assert metrics == ["exact_match", "f1", "bleu", "bits_per_byte", "acc", "acc_norm"]
    assert report["tokenizer"] == "bytes"
    assert "lm-eval" not in report["versions"] or report["versions"]["lm-eval"]
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [sample["prompt"] for sample in samples] == [row["prompt"] for row in FREE + CHOICES]
    assert {sample["run"] for sample in samples} == {str(run[2])}


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([], "holds no question"),
        ([{"prompt": "a"}], 'line 1 has no string in the field "response", only .*; a question has a prompt'),
        ([{"prompt": "a", "response": ""}], "line 1: the response is empty"),
        ([{"prompt": "a", "response": "b", "choices": "bc"}], "choices must be a list of texts"),
        ([{"prompt": "a", "response": "b", "choices": ["c"]}], "the response is none of the choices"),
        ([CHOICES[0], FREE[0]], "give choices with all questions, or with none"),
        ([FREE[0]], "32 new tokens leave no room for the question in the 32 of the model; give a smaller --max-gen"),
    ],
)
def test_faults_are_named_before_a_model_is_asked(rows, fault, run, tmp_path, monkeypatch):
    monkeypatch.setattr(likelihood, "_score", None)
    lines(tmp_path / "q.jsonl", *rows)
    with pytest.raises(ConfigError, match=fault) as error:
        evaluate.main([str(run[2]), "--tasks", str(tmp_path / "q.jsonl"), "--max-gen-toks", "32"])
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_model_that_sees_later_tokens_is_not_asked(run, tmp_path):
    lines(tmp_path / "q.jsonl", *FREE)
    model = SHCOriginalConfig(vocab_size=257, max_len=32, see_future=True).small().replace(vocab_size=257)
    params = mhc_jax.init(model, jax.random.key(0))
    export(run[0].replace(model=model), params, tmp_path / "shc")
    with pytest.raises(ConfigError, match=f"^{tmp_path}/shc: its tokens see later ones, so it cannot be asked"):
        evaluate.main([str(tmp_path / "shc"), "--tasks", str(tmp_path / "q.jsonl"), "--max-gen-toks", "8"])


@pytest.mark.parametrize("flag", [["--shots", "2"], ["--data", "folder"]])
def test_flags_of_the_harness_are_refused_for_questions_alone(run, flag):
    with pytest.raises(ConfigError, match="--shots and --data belong to tasks of the lm-eval harness"):
        evaluate.main([str(run[2]), "--tasks", "q.jsonl", *flag])


def test_a_missing_file_is_named(run):
    with pytest.raises(ConfigError, match=r"--tasks nothing\.jsonl: no such file"):
        evaluate.main([str(run[2]), "--tasks", "nothing.jsonl"])
