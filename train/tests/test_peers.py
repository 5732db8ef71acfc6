"""Processes of one run begin alike, notice when one is gone, and end together."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from mhc_jax.config import ConfigError
from train.devices import peers
from train.devices.relay import Relay
from train.loop.resolve import must_agree
from train.storage.restore import load_run
from train.tests.runs import finish, measured, offer, start_two, tiny_run


class Store:
    """JAX's key-value store, within one process."""

    def __init__(self):
        self.values, self.changed, self.closed = {}, threading.Condition(), False

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.changed:
            if key in self.values and not allow_overwrite:
                raise jax.errors.JaxRuntimeError("ALREADY_EXISTS")
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, milliseconds / 1000):
                given_up = self.closed and key != "mhc_jax/fault"
                raise ConnectionError if given_up else jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
            return self.values[key]

    def key_value_dir_get(self, key):
        with self.changed:
            return [(name, value) for name, value in self.values.items() if name.startswith(key)]


@pytest.fixture
def ended(monkeypatch):
    """The exit statuses of processes that have ended."""
    found = []
    monkeypatch.setattr(peers.os, "_exit", found.append)
    return found


@pytest.fixture
def store(monkeypatch, ended):
    """With quick beats."""
    monkeypatch.setattr(peers, "BEAT", 0.05)
    monkeypatch.setattr(peers, "SILENCE", 2.0)
    monkeypatch.setattr(peers, "GRACE", 0.1)
    return Store()


def agree(store, monkeypatch, values, *later):
    """What each process raised, or None, when each came with one of ``values``, and again with each of ``later``."""
    here = threading.local()
    monkeypatch.setattr(peers, "_peers", None)
    found = [None] * len(values)
    everyone = [peers.Peers(store, index, len(values)) for index in range(len(values))]

    class Local:
        def __getattr__(self, name):
            return getattr(here.peers, name)

    def process(index):
        here.peers = everyone[index]
        try:
            for one in (values, *later):
                time.sleep(0 if index else 0.1)  # process 0, with whose values all others compare theirs, comes last
                peers.agree("start", one[index])
        except ConfigError as error:
            found[index] = str(error)
            store.closed = True  # the others would wait for ever
        except ConnectionError:
            found[index] = "left waiting"

    monkeypatch.setattr(peers, "_peers", Local())
    threads = [threading.Thread(target=process, args=(i,)) for i in range(len(values))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    for process in everyone:
        process._leaving.set()
    return found


def test_processes_that_are_alike_go_on(store, monkeypatch):
    assert agree(store, monkeypatch, [{"a": 1, "b": (1, 2)}] * 3) == [None] * 3


def test_the_first_difference_is_named_with_both_values(store, monkeypatch):
    one = {"--optim.lr": 0.03, "--train.seed": 0, "the version of jax": "0.10.2"}
    *others, fault = agree(store, monkeypatch, [one, one, {**one, "--train.seed": 7, "the version of jax": "0.11.2"}])
    assert others == ["left waiting"] * 2
    assert fault == (
        "processes 0 and 2 of this run differ in --train.seed: 0 and 7 (and in 1 more); start all of them alike"
    )


def test_a_second_run_of_the_same_processes_is_compared_by_itself(store, monkeypatch):
    assert agree(store, monkeypatch, [{"kind": "distillation"}] * 2, [{"kind": "cross_entropy"}] * 2) == [None] * 2


def test_process_0_is_waited_for_each_time(store, monkeypatch):
    first, second = (peers.Peers(store, index, 2) for index in range(2))
    followed = []

    def follow():
        for _ in range(2):
            peers.follow("sealed/4")
            followed.append(True)

    monkeypatch.setattr(peers, "_peers", first)
    peers.follow("sealed/4")
    monkeypatch.setattr(peers, "_peers", second)
    thread = threading.Thread(target=follow)
    thread.start()
    thread.join(0.5)
    assert len(followed) == 1
    monkeypatch.setattr(peers, "_peers", first)
    peers.follow("sealed/4")
    thread.join(10)
    for process in (first, second):
        process._leaving.set()
    assert len(followed) == 2


def test_what_a_host_may_have_of_its_own(tmp_path):
    config = tiny_run(tmp_path)
    data = config.data.replace(cache_dir="/elsewhere", path="/copy")
    assert must_agree(config.replace(data=data, log=config.log.replace(progress=True))) == must_agree(config)
    for other in (
        config.replace(run_dir="elsewhere"),
        config.replace(data=config.data.replace(seed=7)),
        config.replace(checkpoint=config.checkpoint.replace(every=7)),
        config.replace(model=config.model.replace(dropout=0.5)),
    ):
        assert must_agree(other) != must_agree(config)


@pytest.mark.slow
def test_silence_ends_the_others(store, ended, capsys):
    first, second = (peers.Peers(store, index, 2) for index in range(2))
    for process in (first, second):
        process.resume_command = "the command"
    time.sleep(2.5)
    assert not ended, "both are heard of"
    second._leaving.set()  # it is silent from now on
    deadline = time.monotonic() + 10
    while not ended and time.monotonic() < deadline:
        time.sleep(0.05)
    first._leaving.set()
    assert set(ended) == {peers.STATUS}
    line = capsys.readouterr().err.splitlines()[0]
    assert line == "error: process 1 of this run died or cannot be reached; resume with: the command"


def test_a_frozen_coordinator_ends_the_others(store, ended, capsys):
    """It closes no connection; what it is asked is never answered."""
    frozen = threading.Event()
    answer = store.key_value_set

    def set_or_hang(*args, **options):
        if frozen.is_set():
            time.sleep(60)
        answer(*args, **options)

    store.key_value_set = set_or_hang
    other = peers.Peers(store, 1, 2)
    other.resume_command = "the command"
    time.sleep(1)
    assert not ended
    frozen.set()
    deadline = time.monotonic() + 20
    while not ended and time.monotonic() < deadline:
        time.sleep(0.05)
    other._leaving.set()
    assert ended[:1] == [peers.STATUS]
    line = capsys.readouterr().err.splitlines()[0]
    assert line == "error: process 0 of this run died or cannot be reached; resume with: the command"


def test_the_relay_keeps_this_side_open_when_the_other_is_gone():
    lost = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        relay = Relay(f"127.0.0.1:{server.getsockname()[1]}", lost.set)
        near = socket.socket(socket.AF_UNIX)
        near.connect(relay.address.removeprefix("unix:"))
        near.settimeout(10)
        far, _ = server.accept()
        relay.close_door()
        near.sendall(b"question")
        assert far.recv(100) == b"question"
        far.sendall(b"answer")
        assert near.recv(100) == b"answer"
        far.close()
        assert lost.wait(10)
        near.settimeout(0.2)
        with pytest.raises(TimeoutError):
            near.recv(1)
    near.close()


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        pytest.param(
            ("--optim.lr", "0.01"),
            "differ in --optim.lr: 0.03 and 0.01; start all of them alike",
            marks=pytest.mark.slow,
        ),
        pytest.param(("--checkpoint.every", "7"), "differ in --checkpoint.every: 50 and 7", marks=pytest.mark.slow),
        pytest.param(("--train.seed", "7"), "differ in --train.seed: 1337 and 7", marks=pytest.mark.slow),
        pytest.param(("--optim.rate", "7"), "unknown flag --optim.rate", marks=pytest.mark.slow),
        pytest.param(("--import", "nothing"), "--import nothing: No module named", marks=pytest.mark.slow),
    ],
)
def test_processes_that_are_started_differently_end_with_one_line(tmp_path, other, fault):
    offer(tiny_run(tmp_path), tmp_path)
    for output in finish(*start_two(tmp_path, "run", other=other), status=2):
        (line,) = [line for line in output.splitlines() if line]
        assert line.startswith("error: ")
        assert fault in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_first_process_tells_why_it_stops(tmp_path):
    offer(tiny_run(tmp_path), tmp_path)
    for output in finish(*start_two(tmp_path, "run", first=("--optim.rate", "7")), status=2):
        (line,) = [line for line in output.splitlines() if line]
        assert "unknown flag --optim.rate" in line


def kill_one(folder, killed, number=signal.SIGKILL):
    """Two processes of which one is killed at step 25 of 40; the other must end in one line and within a minute."""
    config = tiny_run(folder)
    config = config.replace(
        train=config.train.replace(steps=40, eval_every=0),
        checkpoint=config.checkpoint.replace(every=10),
    )
    offer(config, folder)
    processes = start_two(folder, "run", signal_at=(25, number), signalled=killed)
    if number == signal.SIGKILL:
        processes[killed].wait(300)
    else:
        os.waitid(os.P_PID, processes[killed].pid, os.WSTOPPED | os.WNOWAIT)
    died = time.monotonic()
    output = processes[1 - killed].communicate(timeout=100)[0]
    assert time.monotonic() - died < 60
    processes[killed].kill()
    assert processes[1 - killed].returncode == peers.STATUS
    (line,) = [line for line in output.splitlines() if line.startswith(("error", "Traceback"))]
    assert line.startswith(f"error: process {killed} of this run died or cannot be reached; resume with: ")
    assert f"--resume {folder / 'run'}" in line
    assert output.endswith(f"{line}\n")


@pytest.mark.slow
def test_a_killed_process_ends_the_other(tmp_path):
    kill_one(tmp_path, 1)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_process_ends_the_other(tmp_path, frozen):
    kill_one(tmp_path, frozen, signal.SIGSTOP)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_after_a_kill_both_resume_bitwise(tmp_path, killed):
    kill_one(tmp_path, killed)
    finish(*start_two(tmp_path, "run", "--train.resume", "True"))
    finish(*start_two(tmp_path, "whole"))
    assert measured(tmp_path / "run") == measured(tmp_path / "whole")
    (_, broken), (_, whole) = (load_run(tmp_path / name, "last") for name in ("run", "whole"))
    jax.tree.map(np.testing.assert_array_equal, broken, whole)


def test_the_status_of_one_whose_peer_is_gone_is_the_documented_one():
    page = Path(__file__).parents[2] / "docs" / "clusters.md"
    assert f"with status {peers.STATUS}." in page.read_text(encoding="utf-8")


def test_a_process_that_has_failed_leaves_with_its_status(ended, monkeypatch):
    monkeypatch.setattr(peers, "_peers", object())
    monkeypatch.setattr(peers.sys, "excepthook", lambda *_: None)
    for raised, status in ((SystemExit(2), 2), (SystemExit("words"), 1), (KeyError("x"), 1)):
        with peers.leaving():
            raise raised
        assert ended.pop() == status
    with pytest.raises(SystemExit), peers.leaving():
        raise SystemExit(0)
    assert not ended
