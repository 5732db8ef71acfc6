"""Figures read from the text of a program as the TPU compiler writes it."""

import pytest

from train.measure import hlo
from train.measure.cost import collective_rows

# A loop of three trips in which a gather runs beside a kernel, and is therefore written three times.
TPU = """
%piece (p: bf16[2,4]) -> (bf16[2,4], bf16[8,4], u32[]) {
  %p = bf16[2,4]{1,0:T(8,128)(2,1)} parameter(0)
  %gather.1 = bf16[8,4]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={0}
  ROOT %t = (bf16[2,4]{1,0}, bf16[8,4]{1,0}, u32[]{:S(2)}) custom-call(%p, %gather.1), custom_call_target="Start"
}
%beside (p: bf16[2,4]) -> f32[8] {
  %p = bf16[2,4]{1,0:T(8,128)(2,1)} parameter(0)
  %gather.2 = bf16[8,4]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={0}
  ROOT %sum = f32[8]{0:T(128)} reduce(%gather.2)
}
%done (p: bf16[2,4]) -> bf16[8,4] {
  %p = bf16[2,4]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %gather.3 = bf16[8,4]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={0}
}
%inner (i: s32[]) -> s32[] {
  %i = s32[]{:T(128)} parameter(0)
  ROOT %next = s32[]{:T(128)} negate(%i), backend_config={"estimated_cycles":"5"}
}
%inner_condition (i: s32[]) -> pred[] {
  %i = s32[]{:T(128)} parameter(0)
  %last = s32[]{:T(128)} constant(2)
  ROOT %less = pred[]{:T(512)} compare(%i, %last), direction=LT
}
%body (x: bf16[2,4]) -> bf16[2,4] {
  %x = bf16[2,4]{1,0:T(8,128)(2,1)} parameter(0)
  %start = (bf16[2,4]{1,0}, bf16[8,4]{1,0}, u32[]{:S(2)}) fusion(%x), kind=kCustom, calls=%piece
  %kernel = f32[8]{0:T(128)} fusion(%x), kind=kOutput, calls=%beside, backend_config={"window_config":{\
"kernel_window_bounds":[],"estimated_cycles":"1000","iteration_bounds":[]}}
  %end = bf16[8,4]{1,0} fusion(%x), kind=kCustom, calls=%done
  %first = s32[]{:T(128)} replica-id()
  ROOT %loop = s32[]{:T(128)} while(%first), condition=%inner_condition, body=%inner
}
%condition (x: bf16[2,4]) -> pred[] {
  %x = bf16[2,4]{1,0:T(8,128)(2,1)} parameter(0)
  %last = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%x, %last), direction=LT
}
ENTRY %main (x: bf16[2,4]) -> bf16[2,4] {
  %x = bf16[2,4]{1,0:T(8,128)(2,1)} parameter(0)
  %layers = bf16[2,4]{1,0:T(8,128)(2,1)} while(%x), condition=%condition, body=%body
  ROOT %last = bf16[2,4]{1,0:T(8,128)(2,1)} negate(%layers), backend_config={"estimated_cycles":"40"}
}
"""
TRIP_KERNELS, TRIP_CYCLES = 3 + 2, 1000 + 2 * 5


def test_cycles_and_kernels_count_as_often_as_they_run():
    cost = hlo.cost(TPU)
    assert (cost.kernels, cost.cycles) == (3 * TRIP_KERNELS + 1, 3 * TRIP_CYCLES + 40)


def test_loops_are_found_by_their_trips():
    [layer] = hlo.loops(TPU, 3)
    assert (layer.kernels, layer.cycles) == (TRIP_KERNELS, TRIP_CYCLES)
    [inner] = hlo.loops(TPU.replace("constant(3)", "constant(4)"), 2)
    assert (inner.kernels, inner.cycles) == (1, 5)
    [outer] = hlo.loops(TPU.replace("constant(2)", "constant(3)"), 3)
    assert outer.kernels == TRIP_KERNELS + 1, "the inner loop belongs to it"
    assert hlo.loops(TPU, 5) == []


def test_a_gather_beside_kernels_is_one():
    assert hlo.collectives(TPU) == {"all-gather": hlo.Traffic(arrays=3, bytes=3 * 2 * 32)}


def test_what_was_started_is_one_kernel_and_its_end_none():
    text = """
ENTRY %main (p: f32[4]) -> f32[8] {
  %p = f32[4]{0} parameter(0)
  %start = (f32[4]{0}, f32[8]{0}) all-gather-start(%p), dimensions={0}
  ROOT %end = f32[8]{0} all-gather-done(%start)
}
"""
    assert hlo.cost(text).kernels == 1
    assert hlo.collectives(text) == {"all-gather": hlo.Traffic(arrays=1, bytes=32)}


def test_pallas_kernels_move_whole_tiles():
    text = """
ENTRY %main (p: bf16[2,10,64], q: f32[3]) -> (bf16[2,64,10], f32[3]) {
  %p = bf16[2,10,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %q = f32[3]{0:T(128)} parameter(1)
  ROOT %t = (bf16[2,64,10]{1,2,0:T(8,128)(2,1)}, f32[3]{0:T(128)}) custom-call(%p, %q), \
custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{}}
}
"""
    cost = hlo.cost(text)
    tiles = 2 * (2 * 16 * 128)
    assert (cost.kernels, cost.cycles, cost.pallas) == (1, 0, 2 * (tiles + 3 * 4))
    assert cost.seconds(1e9, 1e12) == pytest.approx(cost.pallas / 1e12)
    assert hlo.cost(text.replace("tpu_custom_call", "Sharding")).pallas == 0
    stated = text.replace(
        "{}}", '{"cost_estimate":{"flops":"9000000","transcendentals":"0","bytes_accessed":"90000"}}}'
    )
    assert (hlo.cost(stated).pallas, hlo.cost(stated, 50).pallas) == (90_000, 180_000)


def test_a_loop_whose_trips_nobody_can_tell_counts_once():
    unclear = TPU.replace("constant(3)\n", "constant(3)\n  %other = s32[]{:T(128)} constant(9)\n")
    assert hlo.cost(unclear).kernels == TRIP_KERNELS + 1


def test_collectives_are_rows_and_their_total():
    rows = collective_rows(TPU)
    assert rows == [
        {"collective": "all-gather", "arrays": 3, "MiB": 3 * 2 * 32 / 2**20},
        {"collective": "total", "arrays": 3, "MiB": 3 * 2 * 32 / 2**20},
    ]
