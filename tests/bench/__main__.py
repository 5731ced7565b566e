"""``python -m tests.bench NAME [--check]``: print a table and one JSON line; exit 1 where a bar is missed."""

import argparse
import importlib
import sys

BENCHES = ("data", "whole", "train", "evaluate", "faults", "gpu")


def main() -> int:
    """Run one bench."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("name", choices=BENCHES)
    parser.add_argument("--check", action="store_true", help="exit 1 where a figure misses its bar")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the images, for a quick look")
    options = parser.parse_args()
    from tests.bench.lines import as_json, table  # spawned workers import this file: it stays light

    lines = importlib.import_module(f"tests.bench.{options.name}").run(options.scale)
    print(table(lines))
    print(as_json(options.name, lines))
    return 1 if options.check and not all(line.met for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
