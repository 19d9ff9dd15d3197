"""Train and audit latent visual reasoning in vision-language models.

    import lvr_jax

    model = lvr_jax.open("LVR-7B")
    reply = model.ask("photo.jpg", "What colour is the cup?", options=["red", "blue"])
    sweep = model.sweep(items, ["zero", "donor", lvr_jax.noise(0.3), my_condition])
    audit = lvr_jax.audit("LVR-7B", "vstar", "data/vstar")

The names below are the public interface. Importing this module loads none of it, and no JAX: each name comes when it is
first used.
"""

import importlib
from pathlib import Path

__version__ = "0.1.0"

# Checkpoints that ship with the package: the base of the miniature study, which feeds no latents, and an LVR model.
TINY, TINY_LVR = (str(Path(__file__).parent / "assets" / name) for name in ("tiny", "tiny_lvr"))

_LAZY = {
    "open": ("lvr_jax.api.model", "open_model"),
    "Model": ("lvr_jax.api.model", "Model"),
    "Item": ("lvr_jax.api.questions", "Item"),
    "scenes": ("lvr_jax.api.questions", "scenes"),
    "Reply": ("lvr_jax.api.reply", "Reply"),
    "Stream": ("lvr_jax.api.stream", "Stream"),
    "Sweep": ("lvr_jax.api.sweep", "Sweep"),
    "conditions": ("lvr_jax.api.conditions", None),
    "noise": ("lvr_jax.api.conditions", "noise"),
    "audit": ("lvr_jax.api.audited", "audit"),
}

__all__ = ["TINY", "TINY_LVR", "__version__", *_LAZY]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'lvr_jax' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    found = importlib.import_module(module)
    value = found if attribute is None else getattr(found, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
