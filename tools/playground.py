"""Opens checkpoints in a browser page on this machine: ask, look at the latents, corrupt them by hand.

    python tools/playground.py                                                  # the tiny checkpoint that ships
    python tools/playground.py --checkpoint LVR-7B Monet-7B --port 7861         # side by side

Upload a picture or draw a generated scene, ask, and see for each latent where in the picture it looks and which words
the LM head reads in it; the answer and its options' probabilities under every condition come from one sweep. Needs
`pip install -e '.[demo]'` (Gradio). The page is served to this machine alone (127.0.0.1), asks nothing of any other,
and keeps no file: what was uploaded is read and removed. SIGTERM or Ctrl-C ends it.

Exit status: 0 stopped, 1 failed (a port in use), 2 bad input.
"""

import argparse
import fcntl
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lvr_jax
from lvr_jax.command.start import start_program
from lvr_jax.files.marked import remove_marked

HOST, PORT, LARGEST_UPLOAD = "127.0.0.1", 7860, 20 * 2**20
_FOLDER, _OURS = "lvr_jax_playground_", ".lvr_jax_playground"      # and the file that says whose it is


class PortInUse(OSError):
    """Another program listens where the page is to be."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The flags, checked; ends the program with status 2 and a line for one that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", nargs="+", metavar="DIR", help="one or two folders, Hugging Face or ours (default: tiny_lvr)")
    add("--port", type=int, default=PORT, help=f"of {HOST} (default: {PORT}; 0: any that is free)")
    add("--system", metavar="NAME", help="latent system (default: what config.json says)")
    add("--budget", type=int, metavar="N", help="latents a block (default: the checkpoint's, else 8)")
    add("--max-new-tokens", type=int, default=128, metavar="N", help="of a reply (default: 128)")
    add("--force-latents", action="store_true", help="open a latent block in every reply")
    options = parser.parse_args(arguments)
    options.checkpoint = options.checkpoint or [lvr_jax.TINY_LVR]
    if len(options.checkpoint) > 2:
        parser.error(f"--checkpoint names {len(options.checkpoint)} folders, expected one or two")
    if not 0 <= options.port < 2**16:
        parser.error(f"--port is {options.port}, expected 0 to {2**16 - 1}")
    for name in ("budget", "max_new_tokens"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}, expected at least 1")
    return options


def free_port(port: int) -> int:
    """The port, or any free one for 0; PortInUse if another program has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PortInUse(f"--port {port}: {str(error.strerror).lower()}; choose another one") from error
        return probe.getsockname()[1]


@contextmanager
def own_folder() -> Iterator[str]:
    """A folder for uploads, removed at the end; of a process that was killed, by the next one that starts."""
    for left in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*/{_OURS}"):
        with _locked(left.parent) as mine:
            if mine:
                with suppress(OSError):         # another process is at it
                    remove_marked(left.parent, _OURS)
    with tempfile.TemporaryDirectory(prefix=_FOLDER, ignore_cleanup_errors=True) as folder, _locked(Path(folder)):
        (Path(folder) / _OURS).touch()
        yield folder


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Holds the folder's lock, which dies with the process; False if another process has it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:                     # another user's, or gone
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    stopped, serving = threading.Event(), False
    held: list[str] = []

    def stop(number, frame) -> None:
        stopped.set()
        if not serving:
            # Opening a checkpoint takes a while and has nothing to lose. What is raised here would be swallowed where
            # a library has called back.
            _say("stopped")
            for folder in held:
                shutil.rmtree(folder, ignore_errors=True)
            os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        port = free_port(options.port)
        with own_folder() as folder:
            # Where Gradio puts uploads; read when it is imported.
            os.environ["GRADIO_TEMP_DIR"] = folder
            held.append(folder)
            from lvr_jax.training.compilation import use_compilation_cache

            try:
                from demo import page
            except ModuleNotFoundError as error:
                if error.name != "gradio":
                    raise
                return _end("Gradio is missing: pip install -e '.[demo]'", 2)
            use_compilation_cache("auto", ".")
            sessions = page.open_sessions(options.checkpoint, say=_say, **{
                name: getattr(options, name) for name in ("system", "budget", "max_new_tokens", "force_latents")
            })  # fmt: skip
            serving = True
            with page.served(sessions, HOST, port, LARGEST_UPLOAD) as address:
                print(address, flush=True)
                stopped.wait()
    except ValueError as error:         # what a checkpoint's reader refuses
        return _end(error, 2)
    except OSError as error:
        return _end(error, 1)
    _say("stopped")
    return 0


def _say(line: str) -> None:
    print(f"playground: {line}", file=sys.stderr, flush=True)


def _end(error: object, status: int) -> int:
    _say(" ".join(str(error).split()))
    return status


if __name__ == "__main__":
    start_program("playground", lambda number: 0)
    sys.exit(main())
