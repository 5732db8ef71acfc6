"""Every topology with every mixer: built, trained for a step, decoded, converted, compared."""

import pytest

from mhc_jax import registry
from parity_tests import matrix


@pytest.mark.parametrize(("topology", "mixer"), matrix.names())
def test_cell(topology, mixer):
    cell = matrix.walk(topology, mixer)
    assert not cell.faults, "\n".join(cell.faults)


def test_table_has_a_row_for_each_topology_and_a_column_for_each_mixer():
    cells = [matrix.Cell(*name, 1.0, ()) for name in matrix.names()]
    cells[0] = matrix.Cell(*matrix.names()[0], 1.0, ("broken",))
    head, _, *rows = matrix.table(cells).splitlines()
    assert head.count("|") == len(registry.names("mixer")) + 3
    assert len(rows) == len(registry.names("topology"))
    assert "FAIL: broken" in rows[0]
