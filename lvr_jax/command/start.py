"""Prepares a program for the seconds in which it imports its libraries, and for what JAX does to Python's memory."""

import gc
import os
import signal
from collections.abc import Callable

# Python looks for cycles whenever 700 more objects live (2,000 from 3.14 on). Importing JAX and tracing a step make
# millions that stay: looking at them again and again took a tenth of an audit of a tiny network, and finds next to
# nothing.
OBJECTS_BETWEEN_COLLECTIONS = 5000


def start_program(
    program: str, status: Callable[[int], int] = lambda number: 1, then: str = "the same command goes on from here"
) -> None:
    """Makes SIGTERM and Ctrl-C end the process at once, with a line, until the program sets handlers of its own; has
    garbage collected less often.

    To be called before the first slow import, when nothing has been begun: what is raised inside the import of a
    library may be swallowed there, or come out as another error.
    """

    def end(number: int, frame) -> None:
        os.write(2, f"{program}: stopped by {signal.Signals(number).name}; {then}\n".encode())
        os._exit(status(number))

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
