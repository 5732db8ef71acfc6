"""The selective recurrence in all its forms, with a start, a reset, and lengths beside the chunk's."""

from collections.abc import Iterator

import numpy as np

from parity_tests.cases.ops import B, D, T, draw, op
from parity_tests.compare import Case
from torch_ref.ops import selective_scan

STATES = 3


def _mirror(arrays):
    """The mirror has one form."""
    return selective_scan.selective_scan(**arrays)


def cases() -> Iterator[Case]:
    inputs = draw(
        u_BTE=(B, T, D),
        a_log_EN=(D, STATES),
        in_BTN=(B, T, STATES),
        out_BTN=(B, T, STATES),
        skip_E=(D,),
        s0_BEN=(B, D, STATES),
    ) | {"dt_BTE": np.abs(draw(x=(B, T, D))["x"])}
    reset_BT = np.arange(T) == np.array([[2], [5]])
    for form, chunk in (("sequential", 3), ("sequential", 32), ("associative", 3), ("chunked", 3)):
        yield op(
            "selective_scan.selective_scan",
            f"{form}, chunks of {chunk}",
            inputs | {"reset_BT": reset_BT},
            torch=_mirror,
            form=form,
            chunk=chunk,
        )
