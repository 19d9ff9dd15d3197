"""Compares our code with recorded outputs of the official code, case by case and key by key.

    python tools/check_golden.py tests/golden [--kinds A1,B2]

A golden folder holds `cases/*.npz` and `checkpoints/`. One line a case and key: the largest absolute difference
(relative to the array's scale) and its tolerance; then `N ok, M failed`. Exit status 1 if anything failed, and a
case of a kind that nobody checks has failed; 2 for bad input.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator

from golden import decoding_cases, input_cases, model_cases, optimizer_cases, prism_cases, training_cases
from golden.case import Case, CaseError, Check

CHECKERS = {
    kind: check
    for family in (input_cases, model_cases, training_cases, optimizer_cases, decoding_cases, prism_cases)
    for kind, check in family.CHECKERS.items()
}


def checks(case: Case) -> Iterator[Check]:
    """Compares one case with our code, check by check."""
    if case.kind not in CHECKERS:
        yield Check(f"kind {case.kind} is not supported", float("nan"), 0)
        return
    yield from CHECKERS[case.kind](case)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--kinds", help="comma-separated kinds, for example A1,B2 (all if left out)")
    options = parser.parse_args()
    paths = sorted((options.folder / "cases").glob("*.npz"))
    if not paths:
        print(f"{options.folder}: no cases/*.npz; expected a folder with cases/ and checkpoints/", file=sys.stderr)
        return 2
    wanted = options.kinds and set(options.kinds.split(","))
    counts = {True: 0, False: 0}
    for path in paths:
        try:
            case = Case(path)
            if wanted and case.kind not in wanted:
                continue
            for one in checks(case):
                counts[one.ok] += 1
                verdict = "ok  " if one.ok else "FAIL"
                print(f"{verdict} {case.name:40} {one.key:45} {one.difference:.2e} (<= {one.tolerance:g})", flush=True)
        except CaseError as error:
            counts[False] += 1
            print(f"FAIL {path.stem:40} {error}")
    print(f"{counts[True]} ok, {counts[False]} failed")
    return 1 if counts[False] or not sum(counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
