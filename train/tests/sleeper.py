"""A benchmark worker that appends its name to a file instead of computing."""

import time
from pathlib import Path

from train.benchmark.worker import serve


def build(spec):
    if spec.get("broken"):
        raise ValueError("out of order")

    def step():
        with Path(spec["log"]).open("a") as log:
            log.write(spec["name"])
        time.sleep(spec["seconds"])

    return step


if __name__ == "__main__":
    serve(build, lambda: 1234)
