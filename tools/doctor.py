"""Checks the host that it runs on, and whether all hosts of a run have the same: before a long run is started.

    python tools/doctor.py gs://bucket/lvr
    tools/launch_tpu.sh doctor gs://bucket/lvr          # on every host of a slice

One line a check: Python, packages, this code, chips and hosts, and the workdir, where every host writes, reads what the
others wrote, and removes it again. The same line of every host is compared.

Exit status: 0 all is well, 2 something is not.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036     the image's Python is what is in question
    print(f"doctor: Python is {sys.version.split()[0]}, expected 3.11 or newer (launch_tpu.sh setup makes one)")
    sys.exit(2)

import argparse
import importlib.metadata
import os
import uuid

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "gcsfs")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", nargs="?", help="folder of a run to come, local or gs://")
    return parser.parse_args(arguments)


def packages() -> str:
    """Versions of the packages that matter, as one line."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} -")
    return ", ".join(found)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    from lvr_jax.training.distributed import DistributedError, hosts_of_slice, initialize

    try:
        initialize()
    except (DistributedError, RuntimeError) as error:
        print(f"doctor: the hosts do not find each other: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return 2
    import jax

    from lvr_jax.multihost.hosts import Hosts, HostsError, MissingHost, code_version

    hosts, wrong = Hosts.here("doctor"), []
    try:
        devices = jax.local_devices()
        said = {
            "Python": sys.version.split()[0], "packages": packages(), "code": code_version(),
            "chips a host": f"{len(devices)} of {devices[0].device_kind}",
        }  # fmt: skip
        for name, value in said.items():
            print(f"{name:14} {value}")
        print(f"{'hosts':14} {hosts.count}, this is {hosts.index}; {jax.device_count()} chips in all")
        expected = hosts_of_slice()
        if hosts.count % expected:
            wrong.append(f"{hosts.count} hosts found each other, the slice has {expected}")
        if os.environ.get("JAX_PLATFORMS", "") != "cpu" and devices[0].platform == "cpu":
            wrong.append("no accelerator was found, only the CPU")
        hosts.same(said)
        if options.workdir:
            wrong += workdir_faults(options.workdir, hosts)
            print(f"{'workdir':14} {options.workdir}")
        # What is wrong on one host is said by it, and ends all.
        faults = [fault for found in hosts.gather("faults", wrong) for fault in found]
    except (HostsError, MissingHost) as error:
        return hosts.leave(2, f"doctor: {error}")
    for fault in wrong:
        print(f"doctor: {fault}", file=sys.stderr)
    hosts.finish()
    if not faults and hosts.first:
        print("all is well")
    return 2 if faults else 0


def workdir_faults(workdir: str, hosts) -> list[str]:
    """Every host writes a file and reads those of all; whatever a store's library raises is what is wrong."""
    from etils import epath

    folder = epath.Path(workdir if "://" in workdir else os.path.abspath(workdir))
    own, found = f".doctor-{uuid.uuid4().hex}", []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / own).write_text(own)
    except Exception as error:
        found.append(f"{workdir}: cannot be written to ({' '.join(str(error).split())[:200]})")
    names = hosts.gather("workdir", None if found else own)
    try:
        blind = [index for index, name in enumerate(names) if name and (folder / name).read_text() != name]
    except Exception as error:
        found.append(f"{workdir}: what another host wrote cannot be read ({' '.join(str(error).split())[:200]})")
    else:
        found += [f"{workdir}: what host {index} wrote reads differently" for index in blind]
    hosts.wait("workdir read")
    if names[hosts.index]:
        (folder / own).unlink()
    return found


if __name__ == "__main__":
    sys.exit(main())
