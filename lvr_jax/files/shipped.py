"""Finds programs and experiments: in the checkout, or in the package where it was installed without one.

A wheel holds `tools/` and `configs/` of the checkout as `lvr_jax/shipped/tools` and `lvr_jax/shipped/configs`
(setup.cfg), side by side as in the checkout, so that everything that looks for one from the other finds it.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "shipped"
ROOT = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent
TOOLS, CONFIGS = ROOT / "tools", ROOT / "configs"


def experiments() -> dict[str, Path]:
    """The configs by the names that `--config` takes: `lvr`, `prism`, `data/visual_cot`."""
    return {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in sorted(CONFIGS.rglob("*.py"))}


def config_file(value: str) -> str:
    """`NAME[:ARGUMENT]` -> `FILE[:ARGUMENT]`; what is a path already stays. ValueError for a name that nothing has."""
    name, colon, argument = value.partition(":")
    if name.endswith(".py") or Path(name).is_file():
        return value
    known = experiments()
    if name not in known:
        raise ValueError(f"--config {name!r}: no such file, and no experiment of that name; expected a path or one of "
                         f"{', '.join(known)}")  # fmt: skip
    return f"{known[name]}{colon}{argument}"
