"""Evaluates a checkpoint, Orbax or Hugging Face, on a benchmark: accuracy with intervals, and one JSON line an item.

    python tools/evaluate.py --checkpoint qwen_lvr_7b --benchmark vstar --data data/vstar_bench --output vstar.jsonl
    python tools/evaluate.py --checkpoint runs/lvr --benchmark digit_search --benchmark.size=200 --workdir runs/lvr/eval
    python tools/evaluate.py --checkpoint lvr --benchmark mmvp --data MMVP --protocol paper \\
        --protocol.mmvp_order=lexicographic --budget 16 --output mmvp.jsonl
    python tools/evaluate.py --compare lvr.jsonl n_lvr.jsonl

`--protocol.FIELD=VALUE` sets a switch of the protocol (lvr_jax/evaluation/protocol.py), `--benchmark.FIELD=VALUE` an
option of the benchmark's reader. A run that was stopped, killed or short of disk space goes on where it was when the
same command is given again. Rows are spread over a host's devices; parameters are cut by `--mesh fsdp=..,tensor=..`,
over several hosts if one cannot hold them. On a pod every host gets the same command (tools/launch_tpu.sh all) and an
output that all of them see, such as gs://bucket/vstar.jsonl: each does its part of the batches, the first one writes
the output. Elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who the hosts are.

Exit status: 0 done, 1 failed or stopped, 2 bad input.
"""

import argparse
import ast
import dataclasses
import os
import sys
import traceback

from lvr_jax.command.start import start_program

if __name__ == "__main__":          # what is imported below takes seconds
    start_program("evaluate")

import jax.numpy as jnp
from absl import logging

from lvr_jax.checkpoints import CheckpointError, read_config
from lvr_jax.data.sample import DataError
from lvr_jax.evaluation import protocol as protocols
from lvr_jax.evaluation.benchmarks import BENCHMARKS, SCENES
from lvr_jax.evaluation.comparison import compare
from lvr_jax.evaluation.extraction import rule_name
from lvr_jax.evaluation.parts import SUFFIX
from lvr_jax.evaluation.results import Results, read_results
from lvr_jax.evaluation.rows import BenchmarkError
from lvr_jax.evaluation.runner import load_benchmark, run
from lvr_jax.evaluation.scoring import reported, summarise
from lvr_jax.evaluation.subject import KNOWN, Subject, open_subject
from lvr_jax.files.lock import locked
from lvr_jax.latents.spec import SpecError
from lvr_jax.models.families import abstract_model, rules
from lvr_jax.models.interface import ConfigError
from lvr_jax.models.layers import Compute
from lvr_jax.multihost.cell import Cell
from lvr_jax.multihost.hosts import ALONE, Hosts, HostsError, MissingHost, Stopped, code_version
from lvr_jax.training.compilation import use_compilation_cache
from lvr_jax.training.distributed import DistributedError, initialize
from lvr_jax.training.partitioning import MeshError, make_cell, shardings

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
BAD_INPUT = (CheckpointError, ConfigError, SpecError, DataError, MeshError, HostsError, DistributedError)
ROWS_A_DEVICE, MOST_ROWS = 8, 2**16


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", metavar="DIR", help="Orbax or Hugging Face folder, tokenizer included")
    add("--benchmark", metavar="NAME", help=f"one of {', '.join((*BENCHMARKS, *SCENES))}")
    add("--data", metavar="PATH", help="where the benchmark was downloaded to (none for generated ones)")
    add("--system", metavar="NAME", help=f"latent system: {', '.join(KNOWN)} (default: what config.json says)")
    add("--protocol", default="clean", metavar="NAME", help=f"{' or '.join(protocols.PROTOCOLS)} (default: clean)")
    add("--budget", type=int, metavar="N", help="latents a block (default: the protocol's)")
    add("--batch", type=int, metavar="ROWS", help=f"items a batch (default: {ROWS_A_DEVICE} a device that rows go to)")
    add("--limit", type=int, metavar="N", help="only the first N items")
    add("--any-count", action="store_true", help="accept a folder with another number of questions than published")
    add("--output", metavar="FILE", help="JSONL of per-item results")
    add("--workdir", metavar="DIR", help="instead of --output: DIR/BENCHMARK-PROTOCOL.jsonl")
    add("--dtype", choices=DTYPES, help="of the computation (default: float32 on a CPU, else bfloat16)")
    add("--mesh", default="data=-1", metavar="AXIS=N,..", help="a host's devices by data, fsdp, tensor (default: "
        "data=-1); more than it has makes several hosts hold the weights together")
    add("--programs", type=int, default=4, metavar="N", help="compile at most this many sizes (default: 4)")
    add("--compare", nargs=2, metavar=("A", "B"), help="paired table of two result files; runs nothing")
    options, rest = parser.parse_known_args(arguments)
    options.switches, options.reader = {}, {}
    for each in rest:
        group, dot, setting = each.partition(".")
        name, equals, value = setting.partition("=")
        target = {"--protocol": options.switches, "--benchmark": options.reader}.get(group)
        if target is None or not dot or not equals:
            parser.error(f"unrecognised {each!r}, expected an option of --help, --protocol.x=y or --benchmark.x=y")
        target[name] = _literal(value)
    if options.compare is None:
        for name in ("checkpoint", "benchmark"):
            if getattr(options, name) is None:
                parser.error(f"--{name} is missing")
        if (options.output is None) == (options.workdir is None):
            parser.error("one of --output and --workdir is needed")
    if options.batch is not None and options.batch > MOST_ROWS:
        parser.error(f"--batch is {options.batch}, expected at most {MOST_ROWS}")
    for name in ("budget", "batch", "limit", "programs"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}, expected at least 1")
    return options


def _literal(text: str):
    """A Python literal (8, 1.05, False, ('Counting',)), else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def protocol_of(options: argparse.Namespace) -> protocols.Protocol:
    """The named protocol with its switches; `steps.accuracy=16` sets one field of a budget."""
    base = protocols.protocol(options.protocol)
    switches: dict = {}
    for name, value in options.switches.items():
        field, dot, part = name.partition(".")
        if dot:
            budget = switches.get(field, getattr(base, field, None))
            if not isinstance(budget, protocols.Budget) or not hasattr(budget, part):
                raise BenchmarkError(f"protocol {base.name}: no switch {name!r}, expected steps.accuracy or the like")
            value = dataclasses.replace(budget, **{part: value})
        switches[field] = value
    if options.budget is not None:
        for field in ("steps", "staged_steps"):
            budget = switches.get(field, getattr(base, field))
            if not isinstance(budget, protocols.Budget):
                raise BenchmarkError(f"protocol {base.name}: {field} is {budget!r}, expected {field}.accuracy=N")
            switches[field] = dataclasses.replace(budget, accuracy=options.budget)
    return protocols.protocol(options.protocol, **switches)


def cell_of(options: argparse.Namespace, hosts: Hosts) -> Cell:
    """The devices that evaluate together, by axis."""
    try:
        shape = {name: int(size) for name, size in (each.split("=") for each in options.mesh.split(","))}
    except ValueError:
        raise MeshError(f"--mesh is {options.mesh!r}, expected AXIS=N,... such as data=2,tensor=4") from None
    return make_cell(shape, hosts)


def evaluate(options: argparse.Namespace, hosts: Hosts = ALONE) -> tuple[Subject, Results]:
    """Evaluates the checkpoint that the options name, or goes on where an earlier process stopped."""
    hosts.same({"code": code_version(), "options": {key: repr(value) for key, value in vars(options).items()}})
    output = options.output or os.path.join(options.workdir, f"{options.benchmark}-{options.protocol}.jsonl")
    hosts.share(os.path.dirname(output) or ".")
    with locked(output + SUFFIX, hosts.first):
        return _evaluate(options, output, hosts)


def _evaluate(options: argparse.Namespace, output: str, hosts: Hosts) -> tuple[Subject, Results]:
    use_compilation_cache("auto", os.path.dirname(output))
    protocol = protocol_of(options)
    benchmark = load_benchmark(
        options.benchmark, options.data, protocol, any_count=options.any_count, **options.reader
    )
    rule_name(protocol.extraction, benchmark.family)
    reported(protocol.aggregation, benchmark.family)        # before weights are read, which takes a while
    if options.limit is not None and options.limit < len(benchmark):
        benchmark = benchmark.subset(range(options.limit))
    cell = cell_of(options, hosts)
    compute = Compute.of_prompts(DTYPES.get(options.dtype))
    config = read_config(options.checkpoint)
    # Weights are held as they are used: half the memory and half the reading where the computation is in bfloat16.
    where = None if cell.mesh is None else shardings(abstract_model(config)[1], rules(config), cell.mesh)
    subject = open_subject(options.checkpoint, system=options.system, shardings=where, dtype=compute.dtype)
    say = lambda line: print(line, file=sys.stderr) if hosts.first else None  # noqa: E731
    for note in subject.notes:
        say(f"note: {note}")
    return subject, run(
        subject, benchmark, protocol, output, rows=options.batch or ROWS_A_DEVICE * cell.shards, cell=cell,
        compute=compute, programs=options.programs, say=say,
        details={"options": {k: repr(v) for k, v in sorted(options.reader.items())}},
    )  # fmt: skip


def summary(results: Results) -> str:
    """The protocol's own numbers first, then the share in each category; 95 % intervals."""
    header, items, marks = results.header, results.items, results.marks()
    lines = [f"{header.benchmark}  {header.checkpoint}  [{header.details['system']}; {header.protocol.name}]"]
    names = []
    for name in reported(header.protocol.aggregation, header.family):
        try:
            summarise(marks, [name], resamples=1)
            names.append(name)
        except BenchmarkError as error:                 # half a pair, after --limit
            lines.append(f"{name}: not defined here ({error})")
    for score in summarise(marks, names):
        lines.append(f"{score.aggregation:10} {score.category or 'all':24} {100 * score.value:5.1f} %"
                     f"  [{100 * score.low:.1f}, {100 * score.high:.1f}] {score.interval}, n = {score.items}")
    followed = [item.follows for item in items if item.follows is not None]
    if followed:                                        # elsewhere the letter is the content
        score = summarise(results.content_marks(), ["micro"])[0]
        lines.append(f"{'content':10} {'all':24} {100 * score.value:5.1f} %  [{100 * score.low:.1f}, "
                     f"{100 * score.high:.1f}] {score.interval}, n = {score.items}; the letter is that of the reply's"
                     f" own word in {sum(followed)} of {len(followed)}")
    triggered, unread = sum(item.triggered for item in items), sum(not item.readable for item in items)
    latents = sum(item.latents_fed for item in items) / len(items)
    lines.append(f"latent mode entered by {triggered} of {len(items)}, {latents:.1f} latents an item;"
                 f" {unread} replies without an answer")
    return "\n".join([*lines, results.path])


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.set_verbosity(logging.ERROR)            # Orbax warns of what is meant to be so
    hosts = ALONE
    try:
        if options.compare:
            print(compare(*(read_results(path) for path in options.compare)).table())
            return 0
        initialize()
        hosts = Hosts.here("evaluate")
        _, results = evaluate(options, hosts)
        if hosts.first:
            print(summary(results))
        hosts.finish()
    except BAD_INPUT as error:
        return hosts.leave(2, f"evaluate: {error}")
    except (Stopped, MissingHost, OSError) as error:
        return hosts.leave(1, f"evaluate: {error}")
    except Exception as error:                      # a fault of the program: the other hosts must not wait
        if hosts.count == 1:
            raise
        traceback.print_exc()
        return hosts.leave(1, f"evaluate: {type(error).__name__}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
