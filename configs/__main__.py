"""``python -m configs`` writes every configuration as JSON, so that a review shows the effect of changed defaults."""

from pathlib import Path

import configs

GOLDEN = Path(__file__).parent / "golden"


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for name in configs.names():
        (GOLDEN / f"{name}.json").write_text(configs.load(name).to_json(), encoding="utf-8")


if __name__ == "__main__":
    main()
