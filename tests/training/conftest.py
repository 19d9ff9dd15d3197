"""Which programs do the tests of training share? Compiled ones, on disk: most of them run the same few."""

import os

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import runs  # noqa: E402

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {runs.QUICK}".strip()
