"""Named activations, recorded on request."""

from collections.abc import Callable

from torch import Tensor

Tap = Callable[[str, Tensor], Tensor]


def no_tap(name: str, x: Tensor) -> Tensor:
    """Records nothing."""
    return x


def recorder(values: dict[str, Tensor]) -> Tap:
    """A tap that records into ``values``; after ``backward()`` each ``.grad`` is the activation's cotangent."""

    def tap(name: str, x: Tensor) -> Tensor:
        # A node of its own: one tensor may pass several taps, and each has its own cotangent.
        x = x.view_as(x)
        if not x.requires_grad:
            x.requires_grad_()  # a constant has a cotangent too
        x.retain_grad()
        values[name] = x
        return x

    return tap


def under(prefix: str, tap: Tap) -> Tap:
    """``tap`` with ``prefix.`` before every name."""
    return tap if tap is no_tap else lambda name, x: tap(f"{prefix}.{name}", x)
