"""A progress bar for a terminal that is a line now and then in a log: tqdm, but without carriage returns in a pipe.

    from lvr_jax.progress import tqdm

Where the file is a terminal this is tqdm itself. Elsewhere a process prints a line at most every EVERY seconds,
whichever of its bars it belongs to: a log of hours stays readable, and work of seconds says nothing of its progress.
"""

import sys
import time

import tqdm as original

EVERY = 30.0                # seconds
LINE = "{desc}: {percentage:3.0f} % {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_printed: list[float] = []  # when this process printed last, or made its first bar


class tqdm(original.tqdm):  # noqa: N801
    """Takes tqdm's arguments. In a log `bar_format` is used without its bar, and `leave` means nothing."""

    disable: bool

    def __init__(self, *arguments, **options):
        self.in_a_log = not (options.get("file") or sys.stderr).isatty()
        if self.in_a_log:
            if not _printed:
                _printed.append(time.monotonic())
            given = options.get("bar_format") or LINE
            options |= {"bar_format": given.replace("{bar} ", ""), "mininterval": 1.0, "maxinterval": 10.0}
        super().__init__(*arguments, **options)

    def display(self, msg=None, pos=None) -> bool:
        """A line, if it is time for one."""
        if not self.in_a_log:
            return bool(super().display(msg, pos))
        if time.monotonic() - _printed[0] >= EVERY:
            _printed[0] = time.monotonic()
            print(str(self).strip(" :"), file=self.fp, flush=True)
        return True

    def clear(self, nolock=False) -> None:
        if not self.in_a_log:
            super().clear(nolock)

    def close(self) -> None:
        if not self.in_a_log or self.disable:
            return super().close()
        # What tqdm's own does besides moving the cursor.
        self.disable = True
        self._decr_instances(self)
        self.display()
