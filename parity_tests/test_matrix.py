"""Every topology with every mixer: built, trained for a step, decoded, converted, compared."""

import pytest

from mhc_jax import registry
from parity_tests import matrix
from parity_tests.__main__ import main


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
