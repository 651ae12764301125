"""A run's work directory: the resolved config, metrics.jsonl, TensorBoard events, evaluation.json.

The hosts of a run share it; the first alone writes.
"""

import json
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from scops_jax.runs import hosts
from scops_jax.config import default_config
from scops_jax.errors import UserError
from scops_jax.storage.files import replacing


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes all of it or nothing."""
  with replacing(path) as temporary:
    temporary.write_text(text, encoding="utf-8")


def open_workdir(workdir: str | pathlib.Path, config: ConfigDict, *, create: bool = True) -> pathlib.Path:
  """Makes the directory on the first host, or checks that it holds a run of the same config.

  Raises:
    UserError: the directory can't be written, holds no run though `create` is false or another host has made
      it, or holds a run of another config; the message names the keys that differ.
  """
  path = pathlib.Path(workdir)
  saved = path / "config.json"
  if saved.exists():
    try:
      before = json.loads(saved.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
      raise UserError(f"{saved} can't be read as a run's config ({error}): give another --workdir") from error
    _check_same(before, json.loads(_dump(config)), path)
    return path
  if not create:
    raise UserError(f"--workdir={path} holds no run (no config.json): train there first")
  if not hosts.is_first():
    raise UserError(
      f"--workdir={path} is not what the first host sees: give a directory that all hosts share"
    )
  try:
    path.mkdir(parents=True, exist_ok=True)
    write_text(saved, _dump(config))
  except OSError as error:
    raise UserError(
      f"--workdir={path} can't be written ({error.strerror}): give a writable directory"
    ) from error
  return path


def _dump(config: ConfigDict) -> str:
  return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
  return flat


def _check_same(before: dict[str, Any], now: dict[str, Any], path: pathlib.Path) -> None:
  # A run that was begun before a key was there did what the key's default does.
  old = {**_flatten(json.loads(_dump(default_config()))), **_flatten(before)}
  new = _flatten(now)
  keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
  if keys:
    shown = ", ".join(f"{key} (was {old.get(key)!r}, now {new.get(key)!r})" for key in keys[:5])
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    raise UserError(
      f"--workdir={path} holds a run of another config: {shown}{more}. "
      "Give another --workdir, or the same config to resume"
    )


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
  """Returns the lines of metrics.jsonl; a half-written last line of a killed run is left out."""
  path = workdir / "metrics.jsonl"
  if not path.exists():
    return []
  lines = path.read_text(encoding="utf-8").split("\n")
  # The last piece has no newline behind it: it is empty, or cut off in the middle.
  return [json.loads(line) for line in lines[:-1]]


class MetricsLog:
  """`metrics.jsonl` (one object a log step) and TensorBoard events."""

  def __init__(self, workdir: pathlib.Path, *, start_step: int) -> None:
    """Drops lines after `start_step`: the steps that a killed run did beyond its last checkpoint."""
    self._path = workdir / "metrics.jsonl"
    kept = [record for record in self.records() if record["step"] <= start_step]
    write_text(self._path, "".join(json.dumps(record) + "\n" for record in kept))
    self._file = self._path.open("a", encoding="utf-8")
    self._writer = SummaryWriter(str(workdir), purge_step=start_step + 1)

  def records(self) -> list[dict[str, float]]:
    """Returns what has been logged."""
    return read_metrics(self._path.parent)

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
