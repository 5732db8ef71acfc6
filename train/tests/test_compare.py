import json

import pytest

from mhc_jax.config import ConfigError
from train import compare


def finished_run(folder, ppl, *, metrics=True):
    folder.mkdir()
    summary = {"val_loss": 5.0, "val_ppl": ppl, "val_bpb": 1.5, "params": 1234, "tokens_per_second": None}
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [{"step": 1, "loss": 9.0}, {"step": 2, "loss": None}, {"step": 2, "val_loss": 5.0}] if metrics else []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_table_and_picture(tmp_path, capsys):
    runs = [finished_run(tmp_path / "a", 148.4), finished_run(tmp_path / "b", 99.5)]
    picture = tmp_path / "curves.png"
    compare.main([*runs, "--picture", str(picture)])
    header, _, first, second, *_ = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")][:4] == ["run", "loss", "ppl", "bits per byte"]
    assert runs[0] in first
    assert "148.4" in first
    assert "1,234" in first
    assert "99.5" in second
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("argv", [[], ["{}/nowhere"], ["{}/damaged"]])
def test_faults_are_named(tmp_path, argv):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match=r"at least one run|does not exist|damaged|Missing"):
        compare.main([arg.format(tmp_path) for arg in argv])
