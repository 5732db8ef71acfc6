import json

import numpy as np
import pytest

from mhc_jax.config import ConfigError
from train.data import DataError, eval_batches, steps_per_epoch, train_batches
from train.data.config import CorpusConfig
from train.data.loader import IGNORE, Windows

# 90 tokens: 17 windows of 5 (16 full windows would need 81), four batches of 4 and one window over.
TOKENS = np.arange(90, dtype=np.uint16)
CONFIG = CorpusConfig(seq_len=5, batch_size=4, seed=7)
EPOCH = 4


def take(batches, count):
    return [next(batches) for _ in range(count)]


def equal(first, second):
    return all(np.array_equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a)


def starts(batches):
    """The first token of every window, which tells the window."""
    return [int(row[0]) for batch in batches for row in batch["inputs"]]


@pytest.mark.parametrize(("length", "windows"), [(25, 2), (24, 1), (13, 1), (12, 0), (1, 0), (0, 0)])
def test_number_of_windows(length, windows):
    assert len(Windows(np.zeros(length, np.int32), CONFIG.replace(seq_len=12))) == windows


def test_window_is_tokens_and_the_same_one_further_on():
    window = Windows(TOKENS, CONFIG)[3]
    assert window["inputs"].tolist() == [15, 16, 17, 18, 19]
    assert window["targets"].tolist() == [16, 17, 18, 19, 20]
    assert window["inputs"].dtype == window["targets"].dtype == np.int32


def test_shapes_and_types():
    batch = next(train_batches(TOKENS, CONFIG))
    for name in ("inputs", "targets"):
        assert batch[name].shape == (4, 5)
        assert batch[name].dtype == np.int32
    np.testing.assert_array_equal(batch["targets"], batch["inputs"] + 1)


def test_every_epoch_has_its_own_order_and_no_window_twice():
    assert steps_per_epoch(TOKENS, CONFIG) == EPOCH
    batches = train_batches(TOKENS, CONFIG)
    epochs = [starts(take(batches, EPOCH)) for _ in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == 16
        assert set(epoch) <= set(range(0, 85, 5))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_epochs_cover_the_same_windows_when_batches_fill_exactly():
    tokens = TOKENS[:81]
    batches = train_batches(tokens, CONFIG)
    first, second = (starts(take(batches, EPOCH)) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(0, 80, 5))
    assert first != second


def test_order_depends_on_the_seed_alone():
    def run(seed):
        return starts(take(train_batches(TOKENS, CONFIG.replace(seed=seed)), 2 * EPOCH))

    assert run(7) == run(7)
    assert run(7) != run(8)
    # Epoch 1 of one seed is not epoch 0 of the next.
    assert run(7)[16:] != run(8)[:16]


def test_resuming_at_every_position_gives_the_same_rest():
    count = 2 * EPOCH + 2
    batches = train_batches(TOKENS, CONFIG)
    states, elements = [], []
    for _ in range(count):
        states.append(json.dumps(batches.get_state()))
        elements.append(next(batches))
    for position, state in enumerate(states):
        resumed = train_batches(TOKENS, CONFIG)
        resumed.set_state(json.loads(state))
        assert equal(take(resumed, count - position), elements[position:])


def test_resuming_moves_an_iterator_that_has_already_run():
    batches = train_batches(TOKENS, CONFIG)
    start = batches.get_state()
    first = take(batches, 3)
    batches.set_state(start)
    assert equal(take(batches, 3), first)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_share_the_same_global_batches(hosts):
    whole = take(train_batches(TOKENS, CONFIG), EPOCH + 1)
    parts = [take(train_batches(TOKENS, CONFIG, host=host, hosts=hosts), EPOCH + 1) for host in range(hosts)]
    joined = [{name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in zip(*parts)]
    assert equal(joined, whole)
    evaluations = [list(eval_batches(TOKENS, CONFIG, host=host, hosts=hosts)) for host in range(hosts)]
    joined = [{name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in zip(*evaluations)]
    assert equal(joined, list(eval_batches(TOKENS, CONFIG)))


def test_position_restores_on_another_number_of_hosts():
    whole = train_batches(TOKENS, CONFIG)
    take(whole, 3)
    half = train_batches(TOKENS, CONFIG, host=1, hosts=2)
    half.set_state(json.loads(json.dumps(whole.get_state())))
    np.testing.assert_array_equal(next(half)["inputs"], next(whole)["inputs"][2:])


RANDOM = CONFIG.replace(windows="random")


def test_random_windows_start_anywhere_that_leaves_room():
    batches = take(train_batches(TOKENS, RANDOM), 500)
    for batch in batches[:3]:
        np.testing.assert_array_equal(batch["inputs"], batch["inputs"][:, :1] + np.arange(5))
        np.testing.assert_array_equal(batch["targets"], batch["inputs"] + 1)
        assert batch["inputs"].dtype == batch["targets"].dtype == np.int32
    counts = np.bincount(starts(batches), minlength=len(TOKENS))
    assert counts[85:].sum() == 0
    # 2000 draws of 85 places, about 23.5 each: four standard deviations.
    assert (np.abs(counts[:85] - 2000 / 85) < 4 * np.sqrt(2000 / 85)).all()


def test_random_windows_depend_on_seed_and_step_alone():
    first = take(train_batches(TOKENS, RANDOM), 6)
    assert equal(first, take(train_batches(TOKENS, RANDOM), 6))
    assert starts(first) != starts(take(train_batches(TOKENS, RANDOM.replace(seed=8)), 6))
    assert len({tuple(starts([batch])) for batch in first}) == 6
    with_next_seed = take(train_batches(TOKENS, RANDOM.replace(seed=8)), 5)
    assert not equal(first[1:], with_next_seed)
    assert steps_per_epoch(TOKENS, RANDOM) == EPOCH


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_share_the_same_random_batches_and_positions(hosts):
    whole = train_batches(TOKENS, RANDOM)
    parts = [train_batches(TOKENS, RANDOM, host=host, hosts=hosts) for host in range(hosts)]
    state = whole.get_state()
    for step in range(6):
        if step == 3:
            # Every host moves to where the whole has been, as after a restart.
            whole.set_state(state)
            for part in parts:
                part.set_state(json.loads(json.dumps(state)))
        found = [next(part) for part in parts]
        joined = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        assert equal([joined], [next(whole)])
        if step == 1:
            state = whole.get_state()


def test_too_few_tokens_for_random_windows():
    with pytest.raises(DataError, match="fewer than one batch of 4"):
        train_batches(TOKENS[:20], RANDOM)


def test_evaluation_covers_every_window_once_in_order():
    batches = list(eval_batches(TOKENS, CONFIG))
    assert len(batches) == 5
    assert all(batch[name].shape == (4, 5) for batch in batches for name in batch)
    targets = np.concatenate([batch["targets"] for batch in batches]).reshape(-1)
    assert targets[targets != IGNORE].tolist() == list(range(1, 86))
    last = batches[-1]
    assert (last["targets"][1:] == -100).all()
    assert last["inputs"].min() >= 0


def test_evaluation_of_less_than_a_batch():
    (batch,) = eval_batches(TOKENS[:11], CONFIG)
    assert (batch["targets"] != IGNORE).sum() == 10


def test_too_few_tokens():
    for call in (train_batches, steps_per_epoch):
        with pytest.raises(DataError, match=r"^20 training tokens make 3 windows of 5, fewer than one batch of 4; use"):
            call(TOKENS[:20], CONFIG)
    with pytest.raises(DataError, match="^5 tokens to evaluate on do not fill one window of 5"):
        eval_batches(TOKENS[:5], CONFIG)


def test_batches_that_cannot_be_shared():
    for call in (train_batches, eval_batches):
        with pytest.raises(ConfigError, match=r"--data\.batch-size 4 is not a multiple of the 3 hosts"):
            call(TOKENS, CONFIG, host=0, hosts=3)


def test_the_first_seed_is_zero():
    assert starts(take(train_batches(TOKENS, CONFIG.replace(seed=0)), 2))
