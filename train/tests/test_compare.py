import json

import pytest

from mhc_jax.config import ConfigError
from train import compare


def finished_run(folder, ppl, *, metrics=True, loss=5.0):
    folder.mkdir(parents=True)
    summary = {"val_loss": loss, "val_ppl": ppl, "val_bpb": 1.5, "params": 1234, "tokens_per_second": None}
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


def test_seeds_of_one_folder_are_one_row(tmp_path, capsys):
    runs = [finished_run(tmp_path / "a" / f"seed{seed}", 100 + seed, loss=5.0 + seed) for seed in range(3)]
    runs.append(finished_run(tmp_path / "b" / "seed0", 99.5))
    compare.main([*runs, "--mean", "--picture", str(tmp_path / "curves.png")])
    header, _, first, second, *_ = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()
    )
    assert header[:4] == ["runs", "seeds", "loss", "ppl"]
    assert first[:4] == [str(tmp_path / "a"), "3", "6.0000 ± 1.0000", "101"]
    assert second[:4] == [str(tmp_path / "b"), "1", "5", "99.5"]


@pytest.mark.parametrize("argv", [[], ["{}/nowhere"], ["{}/damaged"]])
def test_faults_are_named(tmp_path, argv):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match=r"at least one run|does not exist|damaged|Missing"):
        compare.main([arg.format(tmp_path) for arg in argv])
