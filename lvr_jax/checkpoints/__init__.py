"""The one door to Orbax and safetensors: checkpoints of Hugging Face and ours, loaded, saved and converted.

`load` reads either kind of folder. `to_flax` and `to_hf` convert, bit for bit (tools/convert.py is their program);
`save_params` writes what training made.
"""

from lvr_jax.checkpoints.conversion import to_flax, to_hf
from lvr_jax.checkpoints.errors import CheckpointError, DiskFullError
from lvr_jax.checkpoints.hugging_face import open_hf
from lvr_jax.checkpoints.loading import load, load_hf, load_params, read_config, save_params
from lvr_jax.checkpoints.ours import open_ours

__all__ = [
    "CheckpointError", "DiskFullError", "load", "load_hf", "load_params", "open_hf", "open_ours", "read_config",
    "save_params", "to_flax", "to_hf",
]  # fmt: skip
