"""``--data.documents apart``: what shares a window with a document changes nothing of it."""

import jax
import numpy as np
import pytest

import mhc_jax
from mhc_jax import registry
from mhc_jax.config import ConfigError
from mhc_jax.models import mhc_ssm, transformer_scan
from train.config import RunConfig
from train.data.config import CorpusConfig
from train.data.loader import Windows, eval_batches, train_batches
from train.loop.run import run
from train.objectives.cross_entropy import CrossEntropyConfig
from train.tests.runs import tiny_run

END = 9
TOKENS = np.array([1, 2, END, 3, 4, 5, END, END, 6, 7, 8, 1, 2, END, 4, 4, 3], np.uint16)
APART = CorpusConfig(seq_len=8, batch_size=2, documents="apart")


def test_an_end_token_begins_a_document_and_positions_count_from_it():
    first, second = (Windows(TOKENS, APART, END)[i] for i in (0, 1))
    assert first["inputs"].tolist() == [1, 2, END, 3, 4, 5, END, END]
    assert first["segments"].tolist() == [0, 0, 1, 1, 1, 1, 2, 3]
    assert first["positions"].tolist() == [0, 1, 0, 1, 2, 3, 0, 0]
    assert second["segments"].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert second["positions"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert {x.dtype for window in (first, second) for x in window.values()} == {np.dtype(np.int32)}


@pytest.mark.parametrize("windows", ["packed", "random"])
def test_batches_have_the_arrays_that_the_record_says(windows):
    config = APART.replace(windows=windows)
    for batch in (next(train_batches(TOKENS, config, end=END)), next(iter(eval_batches(TOKENS, config, end=END)))):
        assert {name: x.shape for name, x in batch.items()} == config.arrays()
        assert {"segments", "positions"} < batch.keys()
        for row in range(2):
            begins = batch["inputs"][row] == END
            np.testing.assert_array_equal(batch["segments"][row], begins.cumsum())
            assert not batch["positions"][row][begins].any()
    joined = config.replace(documents="joined")
    assert next(train_batches(TOKENS, joined, end=END)).keys() == joined.arrays().keys() == {"inputs", "targets"}


# Models keep segments apart for every mixer; what is seen here is that batches have them.
@pytest.mark.slow
@pytest.mark.parametrize("mixer", registry.names("mixer"))
def test_a_document_scores_what_it_scores_alone(mixer):
    part = registry.get("mixer", mixer)().small()
    model = mhc_ssm("mhc", vocab_size=END + 1, max_len=8, width=8, layers=2).replace(mixer=part, embed_std=1.0)
    params = mhc_jax.init(model, jax.random.key(0))
    # So that a position or a neighbour that is taken for another makes a difference.
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    batch = next(iter(eval_batches(TOKENS, APART, end=END)))

    def score(batch):
        sums, _ = CrossEntropyConfig(chunk=3).sums(model, params, batch)
        return float(sums["loss"]), int(sums["tokens"])

    loss, count = score(batch)
    parts = []
    for row in range(2):
        for segment in np.unique(batch["segments"][row]):
            inside = batch["segments"][row] == segment
            alone = {name: batch[name][row : row + 1, inside] for name in ("inputs", "targets")}
            parts.append(score(alone))
    assert len(parts) == 6
    assert (count, loss) == (sum(n for _, n in parts), pytest.approx(sum(x for x, _ in parts), rel=1e-5))
    joined, _ = score({name: batch[name] for name in ("inputs", "targets")})
    assert abs(joined - loss) > 0.05


@pytest.mark.slow
def test_a_model_that_cannot_keep_documents_apart_is_refused_before_any_text_is_read():
    model = transformer_scan("tiny", vocab_size=None, max_len=None, chunk=4)
    with pytest.raises(ConfigError, match="transformer_scan cuts .* segments it cannot keep apart; .* or join"):
        RunConfig(model=model, data=APART.replace(source="/nowhere")).validate()
    RunConfig(model=model, data=APART.replace(documents="joined")).validate()


@pytest.mark.slow
def test_a_run_on_documents_apart(tmp_path, capsys):
    config = tiny_run(tmp_path)
    config = config.replace(model=config.model.replace(vocab_size=600))
    lines = (tmp_path / "corpus.txt").read_text().splitlines()
    (tmp_path / "corpus.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    data = config.data.replace(source=str(tmp_path / "corpus.jsonl"), documents="apart", seq_len=128)
    steps = config.train.replace(steps=4, eval_every=2)
    apart = config.replace(data=data, train=steps, log=config.log.replace(streams_every=0))
    found = run(apart).summary
    joined = run(apart.replace(data=data.replace(documents="joined"), run_dir=str(tmp_path / "joined"))).summary
    assert found["val_loss"] != joined["val_loss"]
    assert "warning: the model has a vocabulary of 600, the data of 257" in capsys.readouterr().out
    characters = apart.replace(data=data.replace(tokenizer="chars"), run_dir=str(tmp_path / "chars"))
    with pytest.raises(ConfigError, match="--data.documents apart needs a tokenizer with an end token"):
        run(characters)
    assert not (tmp_path / "chars").exists()
