"""Topologies with mixers: built, trained, decoded, converted, compared. Pairs are slow."""

import dataclasses

import pytest
import torch

from mhc_jax import registry
from mhc_jax.config import ConfigError
from parity_tests import matrix
from parity_tests.__main__ import main
from torch_ref import config as torch_config


# A mixer sees one input and one output of a site, a topology a branch: what works for both apart, which the tiers of
# single parts compare for all of them, and for some of their pairs, was never seen to fail for another pair.
@pytest.mark.slow
@pytest.mark.parametrize(("topology", "mixer"), matrix.names())
def test_cell(topology, mixer):
    cell = matrix.walk(topology, mixer)
    assert not cell.faults, "\n".join(cell.faults)


def test_table_has_a_row_for_each_topology_and_a_column_for_each_mixer(monkeypatch, capsys):
    broken = matrix.names()[0]
    monkeypatch.setattr(
        matrix,
        "walk",
        lambda topology, mixer: matrix.Cell(topology, mixer, 1.0, ("broken",) * ((topology, mixer) == broken)),
    )
    with pytest.raises(SystemExit) as exit:
        main(["--matrix"])
    assert exit.value.code == 1
    head, _, *rows, fault = capsys.readouterr().out.splitlines()
    assert head.count("|") == len(registry.names("mixer")) + 3
    assert len(rows) == len(registry.names("topology"))
    assert all(line.count("|") == head.count("|") for line in rows)
    assert "FAIL: broken" in rows[0]
    assert fault == f"{broken[0]} with {broken[1]}: broken"


@pytest.mark.slow
def test_a_parameter_without_a_gradient_is_a_fault(monkeypatch):
    topology, mixer = matrix.names(["plain"])[0]
    zeroed = next(iter(matrix.parity_cases(topology, mixer)))

    def without_first(dtype, sample):
        values = dict(zeroed.torch(dtype, sample))
        first = next(name for name in values if name.startswith("gradient "))
        return values | {first: 0 * values[first]}

    case = dataclasses.replace(zeroed, torch=without_first)
    monkeypatch.setattr(matrix, "parity_cases", lambda *_: [case])
    assert any("is zero" in fault for fault in matrix.walk(topology, mixer).faults)


def test_a_twin_with_other_parameters_is_a_fault(monkeypatch):
    class Wider(torch_config._KINDS["mixer"]["attention"]):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.other = torch.nn.Parameter(torch.zeros(3))

    monkeypatch.setitem(torch_config._KINDS["mixer"], "attention", Wider)
    assert matrix.walk("plain", "attention").faults == ("the twin of mixer.branch has 'other', which JAX lacks",)


def test_only_what_is_named_is_walked_and_twins_are_looked_for_first(monkeypatch, capsys):
    mixers = registry.names("mixer")
    assert matrix.names(["plain"]) == [("plain", mixer) for mixer in mixers]
    assert matrix.names(["plain", "mhc", mixers[0]]) == [("mhc", mixers[0]), ("plain", mixers[0])]
    assert len(matrix.names([mixers[0]])) == len(registry.names("topology"))
    monkeypatch.setattr(matrix, "walk", lambda topology, mixer: matrix.Cell(topology, mixer, 1.0, ()))
    main(["--matrix", "--only", "plain", mixers[0]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"| what | {mixers[0]} |")
    assert lines[-1].startswith("the one cell agrees;")
    with pytest.raises(ConfigError, match="unknown topology or mixer 'plian'; did you mean 'plain'"):
        main(["--matrix", "--only", "plian"])
    with pytest.raises(ConfigError, match="give that too"):
        main(["--only", "plain"])
    monkeypatch.delitem(torch_config._KINDS["mixer"], mixers[0])
    with pytest.raises(ConfigError, match=f"plain with {mixers[0]}: torch_ref: unknown mixer.*needs its PyTorch twin"):
        main(["--matrix", "--only", "plain", mixers[0]])
