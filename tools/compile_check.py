"""Compiles an experiment for TPU slices that are not here: what it holds, what it moves, how fast it can be at best.

    python tools/compile_check.py --config configs/lvr.py:3b --topology v5e:4x4 --topology v6e:4x4
    python tools/compile_check.py --config configs/lvr.py:7b --topology v5e:2x4 --what prefill,sweep,evaluate \\
        --config.mesh.fsdp=1 --config.mesh.data=2 --config.mesh.tensor=4

Needs libtpu (pip install -e '.[tpu]'), no TPU, no weights and no tokenizer: shapes come from the checkpoint's
config.json, or, where that is not here, from the published size. Any field of the config is an override; what an item
of a sweep is, the flags say. `--search` finds the most rows that fit, by compiling. `--json FILE` adds the records to
those in FILE; `--show FILE` prints such a file as a page (tools/aot/README.md).

Each program is compiled with the options that a run has (lvr_jax.models.compiler_options). After the table comes a bill
of each: the compiler's own cycles by part of the network, loops counted, and a roofline (aot.roofline). Memory and
cycles are the compiler's plan, model FLOPs are counted analytically (lvr_jax.training.flops); nothing here is measured.

Exit status: 0 everything fits; 1 something does not; 2 bad input.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from aot.slices import ENVIRONMENT, SliceError

for _name, _value in ENVIRONMENT.items():       # before JAX is imported
    os.environ.setdefault(_name, _value)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))      # configs import each other as `configs.NAME`

from lvr_jax.command.arguments import parser  # noqa: E402

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and size: configs/lvr.py:3b.", lock_config=True)
TOPOLOGY = flags.DEFINE_multi_string("topology", [], "A slice as libtpu calls it: v5e:4x4, v5p:2x2x4, v6e:8x8*2.")
WHAT = flags.DEFINE_list("what", ["train"], "Programs: train; prefill and sweep of an audit; evaluate; taught and "
                         "free, the two of a held-out measurement.")  # fmt: skip
ITEMS = flags.DEFINE_integer("items", 8, "All but train: items a batch.")
PROMPT = flags.DEFINE_integer("prompt", 4096, "All but train: tokens of a prompt, image included.")
CONDITIONS = flags.DEFINE_integer("conditions", 64, "Sweep: conditions at a time.")
NEW_TOKENS = flags.DEFINE_integer("new_tokens", 64, "Sweep, evaluate: longest answer.")
SEARCH = flags.DEFINE_bool("search", False, "Find the most rows (items) that fit.")
EFFORT = flags.DEFINE_float("effort", 0.0, "Of the compiler, -1 to 1. A run has the default, 0; -1 is quicker, "
                            "overlaps less and may need less memory: for a first look.")  # fmt: skip
OPTION = flags.DEFINE_multi_string("option", [], "NAME=VALUE of XLA, tried instead of what a run has.")
JSON = flags.DEFINE_string("json", None, "File that the records are added to.")
SHOW = flags.DEFINE_string("show", None, "Print such a file as a page and do nothing else.")


def main(arguments: list[str]) -> int:
    from lvr_jax.checkpoints import CheckpointError
    from lvr_jax.data.sample import DataError
    from lvr_jax.latents.spec import SpecError
    from lvr_jax.models.attention import AttentionError
    from lvr_jax.models.interface import ConfigError
    from lvr_jax.training.config_fields import ConfigFieldError
    from lvr_jax.training.partitioning import MeshError

    try:
        if SHOW.value is not None:
            from aot.page import page

            print(page(_held(Path(SHOW.value))))
            return 0
        rows = _checked(arguments)
    except (
        AttentionError, CheckpointError, ConfigError, ConfigFieldError, DataError, MeshError, OSError, SliceError,
        SpecError,
    ) as error:  # fmt: skip
        print(f"compile_check: {error}", file=sys.stderr)
        return 2
    return 0 if all(row["fits"] for row in rows) else 1


def _checked(arguments: list[str]) -> list[dict]:
    from aot.check import PROGRAMS, Check
    from aot.programs import Asked
    from aot.report import shown_bill, table
    from aot.slices import Slice
    from lvr_jax.training.config_fields import ConfigFieldError

    if arguments[1:]:
        raise ConfigFieldError(f"argument {arguments[1]!r} is not a flag; see --help")
    if CONFIG.value is None or not TOPOLOGY.value:
        raise ConfigFieldError("expected --config FILE[:SIZE] and --topology NAME; see --help")
    if unknown := set(WHAT.value) - set(PROGRAMS):
        raise ConfigFieldError(f"--what {sorted(unknown)[0]!r}, expected some of {', '.join(PROGRAMS)}")
    if JSON.value and Path(JSON.value).exists():
        _held(Path(JSON.value))     # now, and not after an hour of compiling
    asked = Asked(ITEMS.value, PROMPT.value, CONDITIONS.value, NEW_TOKENS.value)
    rows = []
    for where in [Slice.parse(name) for name in TOPOLOGY.value]:
        for row in Check.of(CONFIG.value, where, asked, EFFORT.value, _options()).rows(WHAT.value, SEARCH.value):
            row["command"] = "python tools/compile_check.py " + " ".join(_said(where.name, row["program"]))
            rows.append(row)
            if JSON.value:
                _add(Path(JSON.value), row)
    print(table(rows))
    for row in rows:
        print(f"\n{shown_bill(row)}" if row["speed"] else "", end="\n" if row["speed"] else "")
    return rows


def _options() -> dict[str, Any]:
    """`--option NAME=VALUE`: numbers, true and false as what they are."""
    from lvr_jax.training.config_fields import ConfigFieldError

    found = {}
    for each in OPTION.value:
        name, equals, value = each.partition("=")
        if not name or not equals:
            raise ConfigFieldError(f"--option {each!r}, expected NAME=VALUE")
        found[name] = int(value) if value.lstrip("-").isdigit() else {"true": True, "false": False}.get(value, value)
    return found


def _said(topology: str, program: str) -> list[str]:
    """The command line that reproduces one row."""
    skip = ("--topology", "--what", "--json")
    said, left = [], iter(sys.argv[1:])
    for each in left:
        name, equals, _ = each.partition("=")
        value = [] if equals or not name.startswith("--") or name in ("--search", "--nosearch") else [next(left, "")]
        if name not in skip:
            said += [each, *value]
    return [*said, "--topology", topology, *([] if program == "train" else ["--what", program])]


def _held(path: Path) -> list[dict]:
    """The records of a file. OSError if there is none, ConfigFieldError if it holds something else."""
    from aot.page import page
    from lvr_jax.files import json_io
    from lvr_jax.training.config_fields import ConfigFieldError

    try:
        held = json_io.parse(path.read_bytes(), path)
    except json_io.JsonError as error:
        raise ConfigFieldError(str(error)) from None
    try:
        sound = isinstance(held, list) and all(row["command"] for row in held) and bool(page(held))
    except (AttributeError, KeyError, TypeError):       # a record that lacks what the page shows
        sound = False
    if not sound:
        raise ConfigFieldError(f"{path}: expected a list of records, as --json FILE writes it")
    return held


def _add(path: Path, row: dict) -> None:
    """Replaces the record of the same command, if there is one."""
    held = _held(path) if path.exists() else []
    held = [each for each in held if each["command"] != row["command"]] + [row]
    path.write_text(json.dumps(held, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main, flags_parser=parser("compile_check", CONFIG))
