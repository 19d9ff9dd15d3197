"""Runs named benchmarks, each a ratio against a baseline measured in the same run.

    python tools/bench.py                      # lists them
    python tools/bench.py vision sweep         # runs two
    python tools/bench.py all --json bench.json

Every benchmark interleaves its two sides, takes medians, and checks that both compute the same thing. `--json` writes
a list of {name, ratio, goal, holds, seconds, baseline_seconds, details}. Exit status 1 if a goal is missed.
"""

import argparse
import importlib
import json
import pathlib
import sys

import benchmarks

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))     # configs, as every program imports them

# A benchmark is a module of `benchmarks` with a `run() -> dict`; its first line says what it measures.
NAMES = sorted(p.stem for p in pathlib.Path(benchmarks.__file__).parent.glob("*.py") if p.stem[0] != "_")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(NAMES)}, or all")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the results to")
    options = parser.parse_args()
    names = NAMES if options.names == ["all"] else options.names
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"benchmark {unknown[0]!r} does not exist, expected some of {NAMES}", file=sys.stderr)
        return 2
    if not names:
        for name in NAMES:
            summary = importlib.import_module(f"benchmarks.{name}").__doc__ or ""
            print(f"{name:14} {summary.partition(chr(10))[0]}")
        return 0
    results = []
    for name in names:
        result = importlib.import_module(f"benchmarks.{name}").run()
        results.append(result)
        verdict = "holds" if result["holds"] else "MISSED"
        figure = f"{result['ratio']:8.2f}  (goal {result['goal']}, {verdict})"
        print(f"{result['name']:14} {figure}  {result['details']}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))
    return 0 if all(result["holds"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
