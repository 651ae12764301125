"""What a run logs: metrics.jsonl and TensorBoard events in its work directory."""

import json
import pathlib
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from scops_jax.runs.workdir import write_text


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
  """Returns the lines of metrics.jsonl; a half-written last line of a killed run is left out."""
  path = workdir / "metrics.jsonl"
  if not path.exists():
    return []
  # After the last newline there is nothing, or a line that was cut off.
  return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


class MetricsLog:
  """`metrics.jsonl` (one object for each log step) and TensorBoard events."""

  def __init__(self, workdir: pathlib.Path, *, start_step: int) -> None:
    """Drops lines after `start_step`: the steps that a killed run did after its last checkpoint."""
    path = workdir / "metrics.jsonl"
    kept = [record for record in read_metrics(workdir) if record["step"] <= start_step]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
    self._file = path.open("a", encoding="utf-8")
    self._writer = SummaryWriter(str(workdir), purge_step=start_step + 1)

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Appends a line and the scalars."""
    self._file.write(json.dumps({"step": step, **scalars}) + "\n")
    self._file.flush()
    self.write_scalars(step, scalars, prefix="train")

  def write_scalars(self, step: int, scalars: dict[str, Any], *, prefix: str) -> None:
    """TensorBoard only; entries that are not numbers are left out."""
    for name, value in scalars.items():
      if isinstance(value, float):
        self._writer.add_scalar(f"{prefix}/{name}", value, step)

  def write_image(self, step: int, name: str, image: np.ndarray) -> None:
    """TensorBoard only; image uint8 `[H, W, 3]`."""
    self._writer.add_image(name, image, step, dataformats="HWC")

  def close(self) -> None:
    """Flushes both."""
    self._file.close()
    self._writer.close()
