import pytest

from mhc_jax.config import ConfigError
from train.measure.task_data import LocalData, pages
from train.tests.task_files import ARTICLES, write, write_task_files


@pytest.fixture
def folder(tmp_path):
    return write_task_files(tmp_path / "data" / "inside")


def test_rows_have_the_columns_of_the_hub(folder):
    data = LocalData(folder.parent)
    mmlu = data.load("cais/mmlu", "anatomy")
    assert [len(mmlu[split]) for split in ("dev", "test")] == [5, 3]
    choices = ["one", "two, or more", "N/A", "None"]
    assert mmlu["test"][0] == {"question": "What, then?", "subject": "anatomy", "choices": choices, "answer": 1}
    assert data.load("openai/gsm8k", "main") == {
        "test": [{"question": f"{n} + 1?", "answer": f"Add. #### {n + 1}"} for n in range(3)]
    }
    assert data.load("SaylorTwift/bbh", "navigate")["test"][0]["target"] == "No"
    (arc,) = data.load("allenai/ai2_arc", "ARC-Easy")["test"]
    assert arc["choices"] == {"text": ["red", "blue", "green"], "label": ["A", "B", "C"]}
    assert (arc["question"], arc["answerKey"]) == ("Which colour has the sky?", "B")
    assert data.load("Rowan/hellaswag", None)["validation"][0]["label"] == 0
    assert len(data.load("EleutherAI/lambada_openai", "default")["test"]) == 2
    wikitext = data.load("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1")
    assert [row["page"].split("\n")[0] for row in wikitext["test"]] == [" = One = ", " = Two = "]


def test_an_article_begins_at_its_title_and_ends_before_the_next():
    found = list(pages(ARTICLES))
    assert "".join(found) == "".join(ARTICLES)
    assert [page.count(" = = ") for page in found] == [2, 0]
    assert list(pages(["", "\n"])) == []


def test_raw_text_of_wikitext_is_read_too(tmp_path):
    write(tmp_path / "wiki.test.raw", "".join(ARTICLES))
    found = LocalData(tmp_path).load("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1")
    assert [row["page"] for row in found["test"]] == list(pages(ARTICLES))


@pytest.mark.parametrize(
    ("data_set", "subset", "fault"),
    [
        ("cais/mmlu", "astronomy", r"holds no dev/astronomy_dev\.csv or .* the data of cais/mmlu"),
        ("some/thing", None, "data set some/thing are not known here, only those of mmlu, bbh, "),
        ("openai/gsm8k", "main", r"test\.jsonl is not a file of openai/gsm8k \("),
        ("allenai/ai2_arc", "ARC-Easy", r"ARC-Easy-Test\.jsonl is not a file of allenai/ai2_arc \("),
        ("cais/mmlu", "answerless", r"answerless_test\.csv is not a file of cais/mmlu \("),
        ("cais/mmlu", "choiceless", r"choiceless_test\.csv is not a file of cais/mmlu \("),
        ("cais/mmlu", "virology", r"virology_test\.csv is empty"),
    ],
)
def test_what_is_missing_or_damaged_is_named(folder, data_set, subset, fault):
    write(folder / "gsm8k/test.jsonl", "{")
    write(folder / "ARC-Easy/ARC-Easy-Test.jsonl", '{"id": 1}\n')
    for subject, lines in (("answerless", "What?,1,2,3,4,\n"), ("choiceless", "What?,1,A\n"), ("virology", "")):
        write(folder / f"test/{subject}_test.csv", lines)
    with pytest.raises(ConfigError, match=fault) as error:
        LocalData(folder).load(data_set, subset)
    assert "\n" not in str(error.value)


def test_a_folder_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match="--data .* is no folder"):
        LocalData(tmp_path / "nothing")
