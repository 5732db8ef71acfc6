"""Words of a group and recall of pairs: what is drawn, the curriculum, and what is refused."""

import itertools
import math

import numpy as np
import pytest

from mhc_jax.config import ConfigError
from train.data.group_words import GroupWordsConfig, elements, products, swaps
from train.data.kind import IGNORE
from train.data.mqar import MQARConfig

GROUPS = {"s3": 6, "a5": 60, "s5": 120}
WORDS = GroupWordsConfig(seq_len=7, batch_size=4, stage_steps=3, first_len=2, len_step=2)
PAIRS = MQARConfig(tokens=40, seq_len=24, batch_size=64, pairs=3)


def is_even(permutation):
    return sum(a > b for a, b in itertools.combinations(permutation, 2)) % 2 == 0


@pytest.mark.parametrize(("group", "count"), GROUPS.items())
def test_elements_are_permutations_in_order_with_the_identity_first(group, count):
    found = [tuple(x) for x in elements(group).tolist()]
    assert found == sorted(set(found))
    assert len(found) == count == GroupWordsConfig(group=group).vocab_size()
    assert found[0] == tuple(range(int(group[1])))
    assert {is_even(x) for x in found} == ({True} if group == "a5" else {True, False})


@pytest.mark.parametrize(
    ("group", "generators"), [("s3", "all"), ("s3", "swaps"), ("a5", "all"), ("s5", "all"), ("s5", "swaps")]
)
def test_a_target_is_the_product_of_all_actions_so_far(group, generators):
    config = GroupWordsConfig(group=group, generators=generators, seq_len=9, batch_size=3)
    batch = next(config.load().train())
    names = elements(group).tolist()
    for actions, targets in zip(batch["inputs"].tolist(), batch["targets"].tolist(), strict=True):
        state = list(range(int(group[1])))
        assert targets[0] == actions[0]
        for action, target in zip(actions, targets, strict=True):
            state = [state[names[action][j]] for j in range(len(state))]  # (s o a)(j) = s(a(j))
            assert names[target] == state


def test_products_do_not_commute():
    table = products("s3")
    assert sorted(table.ravel().tolist()) == sorted([*range(6)] * 6)  # a Latin square
    assert (table != table.T).any()
    first, second = (elements("s3").tolist().index(x) for x in ([1, 0, 2], [0, 2, 1]))
    assert elements("s3")[table[first, second]].tolist() == [1, 2, 0]


@pytest.mark.parametrize(("group", "count"), [("s3", 4), ("s5", 11), ("a5", 1)])
def test_swaps_are_transpositions_and_the_identity(group, count):
    moved = (elements(group)[swaps(group)] != np.arange(int(group[1]))).sum(1)
    assert sorted(moved.tolist()) == [0] + [2] * (count - 1)


def test_every_action_is_drawn_as_often():
    drawn = GroupWordsConfig(generators="swaps", seq_len=100).draw(np.random.default_rng(0), 100)["inputs"]
    found, counts = np.unique(drawn, return_counts=True)
    assert found.tolist() == swaps("s3").tolist()
    assert (abs(counts - 2500) < 5 * math.sqrt(2500)).all()


def test_words_of_training_grow_in_stages_and_those_of_evaluation_are_whole():
    data = WORDS.load()
    batches = data.train()
    lengths = [(next(batches)["targets"] != IGNORE).sum(1).tolist() for _ in range(11)]
    assert [row[0] for row in lengths] == [2, 2, 2, 4, 4, 4, 6, 6, 6, 7, 7]
    assert all(len({*row}) == 1 for row in lengths)
    assert WORDS.last_stage == 9
    assert all(
        (batch["targets"] != IGNORE).all() for split in ("validation", "test") for batch in data.evaluation(split)
    )
    whole = next(WORDS.replace(stage_steps=0).load().train())
    first = next(data.train())
    assert np.array_equal(first["inputs"], whole["inputs"])
    assert np.array_equal(first["targets"][:, :2], whole["targets"][:, :2])
    assert data.targets_share() == pytest.approx(2 / 7)


def test_fresh_words_are_not_those_of_training():
    data = GroupWordsConfig(seq_len=12, batch_size=64, eval_count=4).load()
    batches = data.train()
    seen = {tuple(row) for _ in range(8) for row in next(batches)["inputs"].tolist()}
    fresh = {tuple(row) for batch in data.evaluation("test") for row in batch["inputs"].tolist()}
    assert len(seen) == 512
    assert len(fresh) == 256
    assert not seen & fresh


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"group": "s4"}, "group must be one of 's3', 'a5', 's5', got 's4'"),
        ({"seq_len": 0}, "seq_len must be at least 1, got 0"),
        ({"group": "a5", "generators": "swaps"}, "group 'a5' holds no swaps"),
        ({"first_len": 8}, "first_len 8 is longer than seq_len 7"),
        ({"first_len": 0}, "first_len must be at least 1"),
        ({"len_step": 0}, "len_step must be at least 1"),
        ({"stage_steps": -1}, "stage_steps must not be negative"),
    ],
)
def test_words_that_cannot_be_are_refused(changes, fault):
    with pytest.raises(ConfigError, match=fault):
        WORDS.replace(**changes).validate()


@pytest.mark.parametrize("gap", [0, 2])
def test_a_query_is_a_key_and_its_target_is_the_value(gap):
    config = PAIRS.replace(gap=gap)
    batch = next(config.load().train())
    for row, targets in zip(batch["inputs"], batch["targets"], strict=True):
        keys, values = row[:6:2], row[1:6:2]
        assert len({*keys.tolist()}) == len({*values.tolist()}) == 3
        assert ((keys >= 1) & (keys < 20)).all()
        assert ((values >= 20) & (values < 40)).all()
        (places,) = np.nonzero(targets != IGNORE)
        assert len(places) == 3
        assert (places % 2 == 0).all()
        assert (places >= 6 + 2 * gap).all()
        known = dict(zip(keys.tolist(), values.tolist(), strict=True))
        assert {row[i]: targets[i] for i in places} == known


def test_small_powers_draw_queries_close_and_1_spreads_them():
    def mean_place(power):
        targets = PAIRS.replace(power=power).draw(np.random.default_rng(0), 2000)["targets"]
        return np.nonzero(targets != IGNORE)[1].mean()

    # Places of nine slots from 6 on: 14 on average where all are as likely.
    assert mean_place(1.0) == pytest.approx(14, abs=0.3)
    assert mean_place(0.01) < 12.5
    one = MQARConfig(tokens=40, seq_len=24, pairs=1, power=0.5)
    places = np.nonzero(one.draw(np.random.default_rng(1), 20_000)["targets"] != IGNORE)[1]
    odds = np.arange(1, 12) ** -0.5
    assert np.bincount(places // 2 - 1, minlength=11) / 20_000 == pytest.approx(odds / odds.sum(), abs=0.015)


def test_what_lies_between_is_any_token():
    inputs = PAIRS.draw(np.random.default_rng(0), 500)["inputs"]
    assert {*inputs[:, 6:].ravel().tolist()} == {*range(40)}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"seq_len": 25}, "seq_len must be even"),
        ({"tokens": 24}, "tokens 24 must be more than seq_len 24"),
        ({"pairs": 7}, "pairs 7 need a seq_len of 28 at least"),
        ({"gap": 7}, "gap 7 leaves 2 slots to 3 queries"),
        ({"power": 0.0}, "power must be positive"),
        ({"pairs": 0}, "pairs must be at least 1"),
    ],
)
def test_recall_that_cannot_be_is_refused(changes, fault):
    with pytest.raises(ConfigError, match=fault):
        PAIRS.replace(**changes).validate()
