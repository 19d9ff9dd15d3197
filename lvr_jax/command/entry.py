"""The console command `lvr`: runs a program of tools/ by its name, from any folder.

    lvr train --config lvr:tiny --workdir runs/lvr
    python tools/train.py --config configs/lvr.py:tiny --workdir runs/lvr       # the same, in a checkout
"""

import ast
import runpy
import sys
import textwrap

from lvr_jax.files.shipped import TOOLS, experiments

# In the order of a first hour. What looks after the code itself (bench, make_tiny) is at home in the checkout.
PROGRAMS = (
    "reproduce", "ask", "playground", "convert", "inspect_data", "train", "evaluate", "prism", "transplant",
    "compile_check", "doctor", "check_golden",
)  # fmt: skip


def main() -> int:
    """Ends with the program's own exit status; 2 for a program that does not exist."""
    name, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name in ("-h", "--help", "-help", "help"):
        print(usage())
        return 0
    name = name.replace("-", "_")
    if name not in PROGRAMS:
        print(f"lvr: there is no program {sys.argv[1]!r}, expected one of {', '.join(PROGRAMS)}", file=sys.stderr)
        return 2
    path = TOOLS / f"{name}.py"
    sys.argv = [f"lvr {name}", *arguments]
    sys.path.insert(0, str(TOOLS))      # as `python tools/NAME.py` does: programs import the folders beside them
    runpy.run_path(str(path), run_name="__main__")
    return 0


def usage() -> str:
    """The programs with the first sentence of each, and the experiments that `--config` takes by name."""
    width = max(map(len, PROGRAMS))
    lines = [f"  {name:{width}}  {_summary(name)}" for name in PROGRAMS]
    return "\n".join([
        "usage: lvr PROGRAM [ARGUMENTS]      lvr PROGRAM --help      in a checkout also: python tools/PROGRAM.py", "",
        *lines, "",
        "--config takes a path or a name, with a size or another argument behind a colon (lvr:3b, prism:light):", "",
        textwrap.fill(", ".join(experiments()), 116, initial_indent="  ", subsequent_indent="  "),
    ])  # fmt: skip


def _summary(name: str) -> str:
    said = ast.get_docstring(ast.parse((TOOLS / f"{name}.py").read_text())) or ""
    return said.partition("\n")[0]
