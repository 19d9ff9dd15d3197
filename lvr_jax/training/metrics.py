"""Where do a run's numbers go? JSON lines and TensorBoard, from process 0, true after a restart."""

import json
import os
from collections.abc import Mapping

import jax
from etils import epath


class Writer:
    """`metrics.jsonl` (one object a step: step, then names) and TensorBoard event files in `workdir`.

    start: the step that the run goes on after. What an earlier process wrote beyond it is cut off: those steps are
    done again. Processes other than the first write nothing. A remote store cannot append: there the lines are
    written anew at every flush.
    """

    def __init__(self, workdir: str | os.PathLike, start: int = 0, tensorboard: bool = True):
        self.events, self.path, self._unwritten = None, epath.Path(workdir) / "metrics.jsonl", []
        self.active = jax.process_index() == 0
        if not self.active:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._remote = "://" in os.fspath(workdir)
        self._lines = [line for line in self._read() if json.loads(line)["step"] <= start]
        self.path.write_text("".join(f"{line}\n" for line in self._lines))
        if tensorboard:
            from tensorboardX import SummaryWriter

            self.events = SummaryWriter(os.fspath(epath.Path(workdir) / "tensorboard"), purge_step=start + 1)

    def _read(self) -> list[str]:
        """Complete lines; one that a killed process left half-written is dropped."""
        if not self.path.exists():
            return []
        text = self.path.read_text()
        return text[: text.rfind("\n") + 1].splitlines()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if not self.active:
            return
        self._unwritten.append(json.dumps({"step": step} | {k: float(v) for k, v in values.items()}))
        for name, value in values.items():
            if self.events:
                self.events.add_scalar(name, float(value), step)

    def flush(self) -> None:
        if not self.active:
            return
        new, self._unwritten = self._unwritten, []
        self._lines = self._lines + new if self._remote else []
        if self._remote:
            self.path.write_text("".join(f"{line}\n" for line in self._lines))
        else:
            with open(self.path, "a") as file:
                file.write("".join(f"{line}\n" for line in new))
        if self.events:
            self.events.flush()

    def close(self) -> None:
        self.flush()
        if self.events:
            self.events.close()
