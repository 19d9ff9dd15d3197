"""Turns a gradient into an update: AdamW with the official parameter groups, clipped, on a cosine.

torch's AdamW and this one differ only in rounding (golden case H: five recorded steps).
"""

import dataclasses
import re
from typing import Any

import jax
import optax

from lvr_jax.checkpoints.orbax_io import flat, nested
from lvr_jax.training.schedules import Schedule, cosine_with_warmup

# Paths that weight decay leaves alone. The official code meant to spare norms too, but its type test does not know
# RMSNorm: what was trained decays norms and embeddings (golden H lists the names).
NO_DECAY = {
    "official": r".*bias",
    "conventional": r".*(bias|norm)",
}


@dataclasses.dataclass(frozen=True)
class AdamW:
    """peak: highest learning rate; decay_rule: key of NO_DECAY; clip: largest global norm of a step's gradient."""

    peak: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay_rule: str = "official"
    warmup_ratio: float = 0.03
    clip: float = 1.0

    def __post_init__(self):
        if self.decay_rule not in NO_DECAY:
            raise ValueError(f"optimizer.decay_rule is {self.decay_rule!r}, expected one of {sorted(NO_DECAY)}")

    def rate(self, steps: int) -> Schedule:
        return cosine_with_warmup(self.peak, steps, self.warmup_ratio)

    def transformation(self, steps: int) -> optax.GradientTransformation:
        """For a run of `steps`; its state is fp32 and counts the steps itself, so it travels to a fork as it is."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.scale_by_adam(*self.betas, eps=self.eps),
            optax.add_decayed_weights(self.weight_decay, mask=lambda params: decayed(params, self.decay_rule)),
            optax.scale_by_learning_rate(self.rate(steps)),
        )


def decayed(params: dict, rule: str) -> dict[str, Any]:
    """A tree like the parameters', True where weight decay applies."""
    spared = re.compile(NO_DECAY[rule])
    return nested({path: spared.fullmatch(path) is None for path in flat(params)})


def state_like(transformation: optax.GradientTransformation, trained: dict, per_param: dict, other: Any) -> Any:
    """The optimizer's state with every leaf replaced: a parameter's by that of `per_param`, any other by `other`.

    trained: arrays or ShapeDtypeStructs; per_param: the same tree, for example of shardings.
    """
    state = jax.eval_shape(transformation.init, trained)
    return optax.tree_map_params(transformation, lambda _, x: x, state, per_param, transform_non_params=lambda _: other)
