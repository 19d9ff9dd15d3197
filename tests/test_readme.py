"""Every command of the README and of tools/README.md exists: program, config, field, flag. CI runs the first ones."""

import json
import re
import shlex
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
README = (ROOT / "README.md").read_text() + (ROOT / "tools/README.md").read_text()
# Commands are indented, or code in a sentence; a backslash carries one on to the next line.
LINES = [line for line in README.replace("\\\n", " ").splitlines() if line.startswith("    ")]
LINES += re.findall(r"`([^`\n]+)`", README)
COMMANDS = sorted({command for line in LINES for command in re.findall(r"python tools/\w+\.py[^'|]*", line)})


def config_of(words: list[str]):
    """The config that a command names, or None."""
    named = [words[i + 1] for i, word in enumerate(words) if word == "--config"]
    if not named:
        return None
    path, _, argument = named[0].partition(":")
    module = __import__(path.removesuffix(".py").replace("/", "."), fromlist=["get_config"])
    return module.get_config(argument) if argument else module.get_config()


def test_commands_are_found():
    tools = {re.match(r"python tools/(\w+)", c)[1] for c in COMMANDS}
    assert {"convert", "train", "evaluate", "prism", "reproduce", "compile_check", "check_golden", "bench"} <= tools


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_things_that_exist(command):
    words = shlex.split(command, comments=True)
    program = ROOT / words[1]
    assert program.exists()
    config = config_of(words)
    if program.stem == "reproduce":
        from configs import reproduce

        config = reproduce.get_config()
    text = program.read_text()
    for word in words[2:]:
        if not word.startswith("--") or word == "--config":
            continue
        flag = word.split("=")[0].removeprefix("--")
        group, dot, name = flag.partition(".")
        if group == "config":
            node = config
            for part in name.split("."):
                assert part in node, f"{word}: the config has no such field"
                node = node[part]
        elif dot:
            assert group in ("benchmark", "protocol") and program.stem == "evaluate", word
        else:
            assert f'"--{flag}"' in text or f'("{flag}"' in text or f'"{flag}"' in text, f"{word}: no such flag"


def test_the_page_of_slices_is_what_was_compiled():
    """tools/aot/README.md is what `compile_check.py --show` prints of the records."""
    from aot.page import page

    records = json.loads((ROOT / "tools/aot/compiled.json").read_text())
    assert (ROOT / "tools/aot/README.md").read_text() == page(records) + "\n"
    assert len(records) > 20 and all(r["command"].startswith("python tools/compile_check.py ") for r in records)


@pytest.mark.slow
def test_the_readmes_python_runs_as_it_stands(capsys):
    """From the import to the end of the indented block, in one namespace."""
    block = re.search(r"    import lvr_jax\n(?:    .*\n|\n)+", README)[0]
    names = {}
    exec(textwrap.dedent(block), names)
    assert names["reply"].latents.shape[1] == names["states"].shape[1] and len(names["states"]) == 8
    assert {row["condition"] for row in names["sweep"].table()} == {"clean", "zero", "donor", "noise_0.3", "negated"}
    assert names["reply"].text in capsys.readouterr().out
