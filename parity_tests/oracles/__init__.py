"""Code of others as the judge: every case runs a published implementation, in float64 as the truth."""

from collections.abc import Iterator

from parity_tests.compare import Case
from parity_tests.oracles import gpt, huggingface


def cases() -> Iterator[Case]:
    for module in (gpt, huggingface):
        yield from module.cases()
