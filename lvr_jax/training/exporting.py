"""Exports a finished run for the other tools: the trained network as a checkpoint folder of ours.

It converts to Hugging Face (tools/convert.py) and then runs in the released code of "Cosine Misleads": config.json has
the fields that its trainer writes and its model class reads, and the tokenizer holds the latent tokens.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from lvr_jax import checkpoints
from lvr_jax.checkpoints.folder import MARKER, copy_files
from lvr_jax.checkpoints.hugging_face import travelling_files
from lvr_jax.data.layout_fields import FIELDS, layout_fields
from lvr_jax.data.templates import TEMPLATES
from lvr_jax.files.json_io import read_object
from lvr_jax.latents.routing import FIELD
from lvr_jax.latents.spec import HEAD_FIELD, PREDICTORS, system
from lvr_jax.training.config_fields import ConfigFieldError
from lvr_jax.training.distributed import gather
from lvr_jax.training.experiment import Experiment, files_of
from lvr_jax.training.state import State, join

TOKENIZER = "tokenizer.json"
DTYPES = ("keep", "bfloat16", "float32")


def export(experiment: Experiment, state: State, folder: epath.Path) -> None:
    """Writes `folder`, complete or not at all; one that is there already stays. Every process calls this.

    What an export that was killed left on a store without renames is written anew. The first process decides.
    """
    if gather((folder / MARKER).exists())[0]:
        return
    checkpoint, network = experiment.config.init.checkpoint, experiment.network
    fields = exported_fields(experiment)
    with tempfile.TemporaryDirectory() as files:
        # Every process describes the same checkpoint; the first one's files travel.
        if checkpoint:
            copy_files(travelling_files(epath.Path(files_of(checkpoint))), files_of(checkpoint), files)
            _forget_its_run(Path(files) / "config.json")
        else:
            (Path(files) / "config.json").write_text(json.dumps(network.to_hf()))
        (Path(files) / TOKENIZER).write_text(experiment.tokenizer.backend.to_str())
        params = _cast(join(state.trained, state.frozen), experiment.config.export.dtype)
        checkpoints.save_params(folder, params, network, files=files, fields=fields, overwrite=True)


def _forget_its_run(config: Path) -> None:
    """Removes the fields of config.json that describe the base's own training; this run writes its own."""
    said = read_object(config)
    config.write_text(json.dumps({key: x for key, x in said.items() if key not in (*FIELDS, FIELD)}, indent=2) + "\n")


def check_dtype(dtype: str) -> None:
    """ConfigFieldError for a type that no export has."""
    if dtype not in DTYPES:
        raise ConfigFieldError(f"export.dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")


def _cast(params: dict, dtype: str) -> dict:
    """Casts parameters on their devices; the copy keeps their sharding."""
    check_dtype(dtype)
    if dtype == "keep":
        return params
    where = jax.tree.map(lambda x: x.sharding, params)
    return jax.jit(lambda p: jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), p), out_shardings=where)(params)


def exported_fields(experiment: Experiment) -> dict[str, Any]:
    """What a run adds to config.json: ids of the latent tokens, the layout of its blocks, and how they were trained."""
    network, objective = experiment.network, experiment.recipe.objective
    found = layout_fields(TEMPLATES[experiment.data.template])
    found |= {f: experiment.tokenizer.id(token) for f, token in system(experiment.config.system.name).config_ids}
    if objective.attention != "full":
        found[FIELD] = objective.attention
    if network.latent_head != "none":       # the base's own says another kind where the run gave it one
        found |= {"lvr_head_type": network.latent_head, HEAD_FIELD: PREDICTORS}
    # The released model class reads the first three whatever a checkpoint has; its trainer writes the others.
    return found | {
        "lvr_head": network.latent_head != "none", "latent_end_token": network.latent_end_embedding,
        "loss_lvr_fct": objective.distance, "nlvr_mode": objective.noise > 0, "nlvr_noise_scale": objective.noise,
    }  # fmt: skip
