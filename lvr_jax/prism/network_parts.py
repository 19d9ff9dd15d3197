"""Cuts a network into parts, by kind and by layer, and puts parts of one checkpoint into another.

Every parameter belongs to one kind: the token embedding (and the head that reads it), attention, MLP, norms, the latent
head, the vision tower. Parameters of the text blocks belong to a layer besides.
"""

import dataclasses
import re

import jax
import numpy as np

from lvr_jax.checkpoints.orbax_io import flat, nested

# The first pattern that matches a parameter's path says what it is of.
KINDS = {
    "vision": r"vision/",
    "latent head": r"latent_head/|latent_end$",
    "embedding": r"text/(embed|head)$",
    "norm": r"text/(norm$|blocks/(attention|mlp)_norm$)",
    "attention": r"text/blocks/(q|k|v|out)(_bias)?$",
    "mlp": r"text/blocks/mlp/",
}
STACKED = "text/blocks/"        # these have a leading L axis


@dataclasses.dataclass(frozen=True)
class Part:
    """The parameters of some kinds (None: of any), in some layers (None: in any, and outside of layers too)."""

    name: str
    kinds: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None


EVERYTHING, NOTHING = Part("everything"), Part("nothing", kinds=())


def kind_of(path: str) -> str:
    """The kind of a parameter, by its path. Raises ValueError for one that no kind is known for."""
    for kind, pattern in KINDS.items():
        if re.match(pattern, path):
            return kind
    raise ValueError(f"parameter {path!r} is of no known kind, expected one of {', '.join(KINDS)}")


def parts(layers: int, groups: int = 4) -> list[Part]:
    """What is transplanted one at a time: each kind, and each of up to `groups` runs of neighbouring text blocks."""
    found = [Part(kind, (kind,)) for kind in KINDS]
    for run in np.array_split(np.arange(layers), min(groups, layers)):
        first, last = int(run[0]), int(run[-1])
        found.append(Part(f"block {first}" if first == last else f"blocks {first}-{last}", layers=tuple(run.tolist())))
    return found


def chosen(path: str, part: Part) -> tuple[int, ...] | bool:
    """Which of a parameter belongs to a part: all of it, nothing, or some layers of its leading axis."""
    if part.kinds is not None and kind_of(path) not in part.kinds:
        return False
    if part.layers is None:
        return True
    return part.layers if path.startswith(STACKED) else False


@jax.jit
def _with_layers(own, given, layers) -> jax.Array:
    return own.at[layers].set(given[layers])


def transplanted(host: dict, donor: dict, part: Part) -> dict:
    """The host's parameters with the donor's in one part; what is not transplanted is the host's own array."""
    given, found = flat(donor), {}
    for path, own in flat(host).items():
        which = chosen(path, part)
        if isinstance(which, tuple):
            own = _with_layers(own, given[path], np.asarray(which))
        elif which:
            own = given[path]
        found[path] = own
    return nested(found)


def equal(a: dict, b: dict, part: Part) -> bool:
    """Whether two checkpoints hold the same values in a part, so that its transplant changes nothing."""
    theirs = flat(b)
    for path, own in flat(a).items():
        which = chosen(path, part)
        if which is False:
            continue
        rows = np.asarray(which) if isinstance(which, tuple) else slice(None)
        if not np.array_equal(np.asarray(jax.device_get(own))[rows], np.asarray(jax.device_get(theirs[path]))[rows]):
            return False
    return True
