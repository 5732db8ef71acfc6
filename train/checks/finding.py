"""The result of a check."""

import dataclasses
from typing import Self


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        check: its name.
        found: what was found, in a few words.
        bound: what it is held to.
        ok: whether it keeps to that; None if that could not be checked.
        detail: more about a fault, or why it could not be checked.
    """

    check: str
    found: str
    bound: str
    ok: bool | None
    detail: str = ""

    @property
    def verdict(self) -> str:
        return {True: "ok", False: "FAIL", None: "-"}[self.ok]

    @classmethod
    def at_most(cls, check: str, value: float, bound: float, detail: str = "") -> Self:
        """Whether a number is finite and within a bound; NaN is not."""
        return cls(check, f"{value:.2g}", f"at most {bound:.2g}", bool(value <= bound), detail)

    @classmethod
    def unchecked(cls, check: str, why: str) -> Self:
        return cls(check, "not checked", "", None, why)
