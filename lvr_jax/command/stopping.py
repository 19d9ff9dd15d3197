"""Ends a program in a line when a signal comes before it heeds signals itself: while its libraries are imported."""

import os
import signal
from collections.abc import Callable


def end_at_signal(
    program: str, status: Callable[[int], int] = lambda number: 1, then: str = "the same command goes on from here"
) -> None:
    """Makes SIGTERM and Ctrl-C end the process at once, with a line, until the program sets handlers of its own.

    To be called before the first slow import, when nothing has been begun: what is raised inside the import of a
    library may be swallowed there, or come out as another error.
    """

    def end(number: int, frame) -> None:
        os.write(2, f"{program}: stopped by {signal.Signals(number).name}; {then}\n".encode())
        os._exit(status(number))

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
