"""Files of evaluation tasks as their authors release them, each with a few made-up documents."""

import json

import pyarrow
import pyarrow.parquet

ARTICLES = [
    "",
    " = One = \n",
    "",
    " A first line . \n",
    " = = Part = = \n",
    " More of it . \n",
    " = Two = \n",
    " End . \n",
]


def write_task_files(folder):
    """Questions of one subject, three tasks of answers, and texts; no file for examples but that of the subject."""
    question = '"What, then?",one,"two, or more",N/A,None,{}\n'
    write(folder / "mmlu/test/anatomy_test.csv", question.format("B") + "Again?,1,2,3,4,D\n" + question.format("A"))
    write(folder / "mmlu/dev/anatomy_dev.csv", "".join(question.format(answer) for answer in "ABCDA"))
    lines(folder / "gsm8k/test.jsonl", *({"question": f"{n} + 1?", "answer": f"Add. #### {n + 1}"} for n in range(3)))
    examples = [{"input": "If you turn around, do you return?", "target": "No"}] * 2
    write(folder / "bbh/navigate.json", json.dumps({"canary": "made up", "examples": examples}))
    choices = [{"text": text, "label": label} for text, label in (("red", "A"), ("blue", "B"), ("green", "C"))]
    stem = {"stem": "Which colour has the sky?", "choices": choices}
    lines(folder / "ARC-Easy/ARC-Easy-Test.jsonl", {"id": "x1", "question": stem, "answerKey": "B"})
    endings = ["he sits.", "he stands [step] up.", "he is a bird.", "it rains."]
    context = {"activity_label": "Rest", "ctx_a": "A man is tired.", "ctx_b": "then", "ctx": "A man is tired. then"}
    lines(folder / "hellaswag/hellaswag_val.jsonl", {"ind": 1, **context, "label": 0, "endings": endings})
    lines(folder / "lambada/lambada_test.jsonl", {"text": "the quick brown fox"}, {"text": "the lazy dog"})
    pages = folder / "wikitext-2-raw-v1"
    pages.mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"text": ARTICLES}), pages / "test-00000-of-00001.parquet")
    return folder


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def lines(path, *rows):
    write(path, "".join(f"{json.dumps(row)}\n" for row in rows))
