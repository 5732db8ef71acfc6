"""Nothing is spent that was not reserved, and no child has more than its share."""

import threading

import pytest

from mhc_jax.config import ConfigError
from mhc_jax.rlm import Limits
from mhc_jax.rlm.ledger import Exhausted, Ledger


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_what_is_reserved_counts_until_it_is_settled():
    ledger = Ledger.of(Limits(max_llm_calls=2, max_tokens=100))
    first = ledger.reserve(1, 60)
    with pytest.raises(Exhausted, match="tokens") as refused:
        ledger.reserve(1, 60)
    assert refused.value.status == "tokens"
    ledger.settle(first, calls=1, tokens=10)
    assert ledger.left() == (1, 90)
    ledger.reserve(1, 90)
    with pytest.raises(Exhausted, match="max_llm_calls") as refused:
        ledger.reserve(1, 0)
    assert refused.value.status == "calls"


def test_a_reply_beyond_its_reservation_counts_in_full():
    ledger = Ledger.of(Limits(max_tokens=100))
    ledger.settle(ledger.reserve(1, 10), calls=1, tokens=150)
    assert ledger.left()[1] == 0
    assert ledger.spent.tokens == 150


def test_threads_together_do_not_pass_a_limit():
    ledger, served, barrier = Ledger.of(Limits(max_llm_calls=25)), [], threading.Barrier(8)

    def spend():
        barrier.wait()
        for _ in range(20):
            try:
                grant = ledger.reserve()
            except Exhausted:
                continue
            served.append(grant)
            ledger.settle(grant, calls=1)

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(served) == 25 == ledger.spent.calls


def test_shares_are_equal_bounded_and_return_what_they_leave():
    ledger = Ledger.of(Limits(max_llm_calls=11, max_tokens=1000))
    ledger.settle(ledger.reserve(), calls=1)
    first, second, third = ledger.shares(3)
    assert first.left() == second.left() == (3, 333)
    assert ledger.left() == (1, 1)
    first.settle(first.reserve(3, 300), calls=3, tokens=300)
    with pytest.raises(Exhausted):
        first.reserve()
    (grandchild,) = second.shares(1)
    grandchild.settle(grandchild.reserve(), calls=1, tokens=5)
    grandchild.close()
    for share in (first, second, third):
        share.close()
        share.close()
    assert ledger.left() == (6, 695)
    assert ledger.spent.calls == 5


def test_more_children_than_calls():
    assert len(Ledger.of(Limits(max_llm_calls=2)).shares(5)) == 2
    ledger = Ledger.of(Limits(max_llm_calls=1))
    ledger.reserve()
    with pytest.raises(Exhausted):
        ledger.shares(2)


def test_time_is_the_same_for_all():
    clock = Clock()
    ledger = Ledger.of(Limits(max_timeout=5.0), clock, elapsed=1.0)
    (share,) = ledger.shares(1)
    clock.now += 3.9
    share.reserve()
    clock.now += 0.2
    for account in (ledger, share):
        with pytest.raises(Exhausted, match="max_timeout") as refused:
            account.reserve()
        assert refused.value.status == "timeout"


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_depth": -1},
        {"max_iterations": 0},
        {"max_llm_calls": 0},
        {"max_tokens": 0},
        {"max_timeout": 0.0},
        {"cell_timeout": -1.0},
        {"cell_timeout": 1e-9},
        {"cell_timeout": 1e300},
        {"max_output_chars": -1},
    ],
)
def test_limits_that_cannot_be(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        Limits(**wrong).validate()
