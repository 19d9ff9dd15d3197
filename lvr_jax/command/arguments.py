"""Parses the flags of a program that takes a config: what is wrong with them is one line and exit status 2."""

import sys

from absl import flags

from lvr_jax.files.shipped import config_file

_CONFIG = ("--config", "-config")


def parser(program: str, config: flags.FlagHolder, default: str = ""):
    """The `flags_parser` that absl.app.run takes: absl's own ends with status 1 and a page of help.

    config: the program's `--config`, a path or the name of an experiment; default: the one that is meant where none is
    given. It is not the flag's default, which absl would read before it can be asked to say in one line what is wrong.
    """

    def parse(arguments: list[str]) -> list[str]:
        try:
            left = flags.FLAGS(_named(arguments, default))
            if config.value is not None:
                config.value.keys()     # a file that could not be loaded says so only now
            return left
        except (AttributeError, KeyError) as error:
            message = f"{error}: the config has no such field to set"
        except (flags.Error, OSError, TypeError, ValueError) as error:
            # A fault inside a config file comes with its traceback: what was raised is the last line.
            message = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)

    return parse


def _named(arguments: list[str], default: str) -> list[str]:
    """The arguments with the config as a file."""
    found, given = list(arguments), False
    for number, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if argument == "--":
            break
        if flag in _CONFIG:
            given = True
            if equals:
                found[number] = f"{flag}={config_file(value)}"
            elif number + 1 < len(arguments):
                found[number + 1] = config_file(arguments[number + 1])
    return found if given or not default else [found[0], f"--config={config_file(default)}", *found[1:]]
