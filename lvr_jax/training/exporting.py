"""Exports a finished run for the other tools: the trained network as a checkpoint folder of ours.

It converts to Hugging Face (tools/convert.py) and then runs in the released code of "Cosine Misleads": config.json has
the fields that its trainer writes and its model class reads, and the tokenizer holds the latent tokens.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from etils import epath

from lvr_jax import checkpoints
from lvr_jax.checkpoints.folder import MARKER, copy_files
from lvr_jax.checkpoints.hugging_face import travelling_files
from lvr_jax.data.layout_fields import layout_fields
from lvr_jax.data.templates import TEMPLATES
from lvr_jax.latents.routing import FIELD
from lvr_jax.latents.spec import system
from lvr_jax.training.experiment import Experiment, files_of
from lvr_jax.training.state import State, join

TOKENIZER = "tokenizer.json"


def export(experiment: Experiment, state: State, folder: epath.Path) -> None:
    """Writes `folder`, complete or not at all; one that is there already stays. Every process calls this."""
    if (folder / MARKER).exists():
        return
    checkpoint, network = experiment.config.init.checkpoint, experiment.network
    fields = exported_fields(experiment)
    with tempfile.TemporaryDirectory() as files:
        # Every process describes the same checkpoint; the first one's files travel.
        if checkpoint:
            copy_files(travelling_files(epath.Path(files_of(checkpoint))), files_of(checkpoint), files)
        else:
            (Path(files) / "config.json").write_text(json.dumps(network.to_hf()))
        (Path(files) / TOKENIZER).write_text(experiment.tokenizer.backend.to_str())
        checkpoints.save_params(
            folder, join(state.trained, state.frozen), network, files=files, fields=fields, overwrite=True
        )


def exported_fields(experiment: Experiment) -> dict[str, Any]:
    """What a run adds to config.json: ids of the latent tokens, the layout of its blocks, and how they were trained."""
    network, objective = experiment.network, experiment.recipe.objective
    found = layout_fields(TEMPLATES[experiment.data.template])
    found |= {f: experiment.tokenizer.id(token) for f, token in system(experiment.config.system.name).config_ids}
    if objective.attention != "full":
        found[FIELD] = objective.attention
    # The released model class reads the first three whatever a checkpoint has; its trainer writes the others.
    return found | {
        "lvr_head": network.latent_head != "none", "latent_end_token": network.latent_end_embedding,
        "loss_lvr_fct": objective.distance, "nlvr_mode": objective.noise > 0, "nlvr_noise_scale": objective.noise,
    }  # fmt: skip
