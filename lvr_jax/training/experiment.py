"""Turns a config's fields into the objects of a run; every mistake in them is one line.

    experiment = Experiment.from_config(config)     # shapes only: nothing is read but config.json and the tokenizer
    state = experiment.initial_state()

`Experiment.shapes` does without the tokenizer: enough to compile a step, also for devices that are not here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from lvr_jax import checkpoints
from lvr_jax.checkpoints.folder import FILES, is_ours, resolve
from lvr_jax.data.branches import Branches
from lvr_jax.data.device import batch_sharding
from lvr_jax.data.from_config import DataConfig, make_tokenizer
from lvr_jax.data.packing import Alignment
from lvr_jax.data.templates import TEMPLATES
from lvr_jax.data.tokenizers import ChatTokenizer
from lvr_jax.latents.objectives import Objective
from lvr_jax.latents.unroll import Part
from lvr_jax.models.attention import IMPLEMENTATIONS
from lvr_jax.models.families import abstract_model, random_params, rules, sizes
from lvr_jax.models.interface import Config, Rules
from lvr_jax.models.layers import REMAT, Compute, default_remat
from lvr_jax.training.config_fields import ConfigFieldError, check_numbers
from lvr_jax.training.optimizer import AdamW
from lvr_jax.training.partitioning import make_mesh, shardings
from lvr_jax.training.schedules import Points
from lvr_jax.training.state import State, abstract_state, start
from lvr_jax.training.step import Recipe, compiled_step

HEAD = "latent_head"                    # of the parameters
LATENT_HEADS = ("simple", "glu")        # that a run can give a network without one


def _plain(value: Any) -> Any:
    """ConfigDicts as dicts, and every list as a tuple: frozen records want them."""
    if isinstance(value, ConfigDict | Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _record(cls: type, name: str, fields: Mapping) -> Any:
    try:
        return cls(**_plain(fields))
    except (TypeError, ValueError) as error:
        text = str(error)
        raise ConfigFieldError(text if text.startswith(name) else f"{name}: {text}") from error


def _schedule(name: str, fields: Mapping, steps: int) -> Points:
    """Converts points given as shares of the run to points by step."""
    points = tuple((round(share * steps), value) for share, value in fields["points"])
    # A run of no steps has them all at its start.
    return _record(Points, name, {**_plain(fields), "points": points if steps else points[:1]})


def head_of(c: ConfigDict, held: str) -> str:
    """The kind of latent head of a run whose checkpoint has the kind `held`. ConfigFieldError for one that it cannot
    have."""
    if c.latent_head in ("", held):
        return held
    if c.latent_head not in LATENT_HEADS or held != "none":
        allowed = LATENT_HEADS if held == "none" else (held,)
        raise ConfigFieldError(
            f"latent_head is {c.latent_head!r}, expected '' or {' or '.join(map(repr, allowed))}: the checkpoint's is "
            f"{held!r}"
        )
    return c.latent_head


def objective_of(c: ConfigDict, head: str) -> Objective:
    """The objective of a network with this kind of latent head. ConfigFieldError for what none can have."""
    objective = _record(Objective, "objective", c.objective)
    if objective.route == "head_only" and head == "none":
        raise ConfigFieldError(
            "objective.route is 'head_only' and the network has no latent head: expected latent_head 'simple' or "
            "'glu', or another route"
        )
    return objective


def compute_of(fields: Mapping, objective: Objective, aligned: bool, platform: str, device_kind: str = "") -> Compute:
    """`auto` is bf16 on accelerators and fp32 on CPUs; splash on TPUs where the mask allows it, blocks on CPUs; and
    what the backward pass keeps by the memory of the chip (a jax.Device.device_kind)."""
    dtype, attention, remat = fields["dtype"], fields["attention"], fields["remat"]
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    if attention == "auto":
        plain = objective.attention == "full" and not aligned
        attention = "blocks" if platform == "cpu" else "splash" if platform == "tpu" and plain else "xla"
    if remat == "auto":
        remat = default_remat(device_kind)
    for name, value, allowed in (
        ("dtype", dtype, ("float32", "bfloat16")), ("attention", attention, IMPLEMENTATIONS), ("remat", remat, REMAT)
    ):  # fmt: skip
        if value not in allowed:
            raise ConfigFieldError(f"compute.{name} is {value!r}, expected 'auto' or one of {sorted(allowed)}")
    cpu = platform == "cpu"
    return Compute(jnp.dtype(dtype), attention, remat, unroll=8 if cpu else 1, skip_unread=cpu)


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """A config resolved into the objects of a run.

    config: as given; data: its `data` fields, with the network's geometry and the rows of a whole step;
    tokenizer: None where only shapes are wanted; network, graph: the model; like: the state as shapes, types and
    shardings; rows: sharding of a batch
    """

    config: ConfigDict
    data: DataConfig
    tokenizer: ChatTokenizer | None
    network: Config
    graph: nnx.GraphDef
    recipe: Recipe
    mesh: Mesh
    like: State
    rows: NamedSharding
    alignment: Alignment | None
    branches: Branches | None

    @classmethod
    def from_config(cls, config: ConfigDict, mesh: Mesh | None = None) -> Experiment:
        """The experiment of a config. mesh: instead of the config's own."""
        found = cls.shapes(config, mesh)
        tokenizer = make_tokenizer(found.data)
        if len(tokenizer) > found.network.text.vocab:
            raise ConfigFieldError(
                f"tokenizer {found.data.tokenizer} has {len(tokenizer)} entries with the latent tokens, the embedding "
                f"{found.network.text.vocab} rows"
            )
        return dataclasses.replace(found, tokenizer=tokenizer)

    @classmethod
    def shapes(cls, config: ConfigDict, mesh: Mesh | None = None) -> Experiment:
        """The experiment without its tokenizer. mesh: instead of the config's own, even of absent devices."""
        c = config
        mesh = make_mesh(c.mesh) if mesh is None else mesh
        network = _network(c)
        data = data_of(c, network)
        alignment = _record(Alignment, "alignment", c.alignment) if c.alignment.latents else None
        objective = objective_of(c, network.latent_head)
        if (objective.feedback != "teacher") != (alignment is not None):
            raise ConfigFieldError(
                f"objective.feedback is {objective.feedback!r} and alignment.latents {c.alignment.latents}: own "
                "latents need aligned rows, and only they do"
            )
        branches = _record(Branches, "branches", c.branches) if c.branches.count > 1 else None
        if branches and alignment:
            raise ConfigFieldError(f"branches.count is {c.branches.count}: rows for own latents hold one question")
        stages = len(TEMPLATES[data.template].stages)
        if len(objective.stage_weights) != max(stages, 1):
            raise ConfigFieldError(
                f"objective.stage_weights has {len(objective.stage_weights)} entries, expected one for each of the "
                f"{stages} stages of the template {data.template!r}"
            )
        rows = batch_sharding(mesh)
        spread = mesh.shape["data"] * mesh.shape["fsdp"]
        if c.rows % (c.accumulate * spread):
            raise ConfigFieldError(
                f"rows = {c.rows}: expected a multiple of accumulate ({c.accumulate}) times the devices that rows are "
                f"spread over ({spread})"
            )
        optimizer = _record(AdamW, "optimizer", c.optimizer)
        graph, params = abstract_model(network)
        chip = mesh.devices.flat[0]
        compute = compute_of(c.compute, objective, alignment is not None, chip.platform, chip.device_kind)
        transformation = optimizer.transformation(c.steps)
        recipe = Recipe(
            graph=graph, objective=objective, compute=compute, transformation=transformation,
            rate=optimizer.rate(c.steps), reconstruction=_schedule("reconstruction", c.reconstruction, c.steps),
            own=_schedule("own", c.own, c.steps), accumulate=c.accumulate,
            parts=() if alignment is None else tuple(Part(*bounds) for bounds in alignment.bounds),
            branches=(branches.shared, branches.count) if branches else None, seed=c.seed,
        )  # fmt: skip
        like = abstract_state(params, c.frozen, transformation, sharding_rules(c, network), mesh, compute.dtype)
        return cls(c, data, None, network, graph, recipe, mesh, like, rows, alignment, branches)

    def step(self) -> Callable:
        return compiled_step(self.recipe, self.like, self.rows, self.mesh)

    def initial_state(self) -> State:
        """The state before step 0."""
        where = shardings(abstract_model(self.network)[1], sharding_rules(self.config, self.network), self.mesh)
        if self.config.init.checkpoint:
            # A head that the config adds is drawn; everything else is the checkpoint's.
            found = checkpoints.read_config(self.config.init.checkpoint)
            new = {} if found.latent_head == self.network.latent_head else {HEAD: where.pop(HEAD)}
            held = dataclasses.replace(self.network, latent_head="none") if new else self.network
            params = checkpoints.load(self.config.init.checkpoint, where, config=held)[1]
            if new:
                draw_head = lambda: random_params(self.network, self.config.seed)[HEAD]  # noqa: E731
                params[HEAD] = jax.jit(draw_head, out_shardings=new[HEAD])()
        else:
            draw = lambda: random_params(self.network, self.config.seed)  # noqa: E731
            params = jax.jit(draw, out_shardings=where)()
        return start(params, self.like, self.recipe.transformation, self.config.frozen)


def data_of(c: ConfigDict, network: Config | None = None) -> DataConfig:
    """The `data` fields of an experiment, with what its other fields and its checkpoint say of them."""
    check_numbers(c)
    network = network or _network(c)
    return DataConfig.read(
        {
            **c.data.to_dict(), "rows": c.rows, "seed": c.seed, "merge": network.vision.merge,
            "window": network.vision.window, "tokenizer": c.data.tokenizer or files_of(c.init.checkpoint),
        }
    )  # fmt: skip


def files_of(checkpoint: str) -> str:
    """The folder of tokenizer and config.json of a checkpoint of either kind; "" for none."""
    return os.fspath(resolve(checkpoint) / FILES) if checkpoint and is_ours(resolve(checkpoint)) else checkpoint


def sharding_rules(c: ConfigDict, network: Config) -> Rules:
    """The sharding rules of the config, or those of the network's family where it has none."""
    return _plain(c.sharding) or rules(network)


def _network(c: ConfigDict) -> Config:
    known = sizes()
    if not c.init.checkpoint and c.model not in known:
        raise ConfigFieldError(f"model is {c.model!r}, expected one of {sorted(known)}")
    found = checkpoints.read_config(c.init.checkpoint) if c.init.checkpoint else known[c.model]
    return dataclasses.replace(found, latent_head=head_of(c, found.latent_head))
