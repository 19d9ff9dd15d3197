"""What does a finished run leave for the other tools? The trained network as a checkpoint folder of ours.

It converts to Hugging Face (tools/convert.py): config.json names the latent tokens' ids, as the released code reads
them, and the tokenizer holds the tokens.
"""

import json
import tempfile
from pathlib import Path

from etils import epath

from lvr_jax import checkpoints
from lvr_jax.checkpoints.folder import MARKER, copy_files
from lvr_jax.checkpoints.hugging_face import travelling_files
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
    fields = {f: experiment.tokenizer.id(token) for f, token in system(experiment.config.system.name).config_ids}
    # The released model class reads these two whatever a checkpoint has.
    if experiment.config.objective.attention != "full":
        fields[FIELD] = experiment.config.objective.attention
    fields |= {"lvr_head": network.latent_head != "none", "latent_end_token": network.latent_end_embedding}
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
