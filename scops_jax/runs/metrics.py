"""What a run logs: metrics.jsonl and TensorBoard events in its work directory."""

import contextlib
import hashlib
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from scops_jax.config import flat_values
from scops_jax.errors import UserError
from scops_jax.runs import hosts
from scops_jax.runs.workdir import write_text, writing
from scops_jax.storage.files import file_digest, upload
from scops_jax.storage.paths import is_remote

_FILE = "metrics.jsonl"
_UPLOAD_EVERY = 10.0  # seconds; stores take one version of an object a second


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
  """Returns the lines of metrics.jsonl; damaged ones are left out and reported.

  A last line without its end, as a killed run leaves it, is left out without a word.

  Raises:
    UserError: it can't be read at all.
  """
  path = workdir / _FILE
  if not path.exists():
    return []
  try:
    lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")[:-1]
  except OSError as error:
    raise UserError(f"{path} can't be read ({error.strerror or error}): move it away") from error
  records = [record for line in lines if (record := _record(line)) is not None]
  if len(records) < len(lines):
    print(f"{path}: damaged lines left out: {len(lines) - len(records)}", file=sys.stderr)
  return records


def check_metrics(workdir: pathlib.Path, step: int, digest: str | None) -> None:
  """Says so if the lines up to a checkpoint's step are not those that there were when it was saved.

  Args:
    workdir: the run's directory.
    step: of the checkpoint.
    digest: as MetricsLog.digest returned it then; None: it is not known.
  """
  path = workdir / _FILE
  lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
  kept = b"".join(
    line for line in lines if (record := _record(line.decode(errors="replace"))) and record["step"] <= step
  )
  if digest is not None and digest != hashlib.sha256(kept).hexdigest() and hosts.is_first():
    print(f"{path} is damaged: its lines up to step {step} are not those that were written", file=sys.stderr)


def _record(line: str) -> dict[str, float] | None:
  try:
    record = json.loads(line)
    valid = isinstance(record["step"], int) and all(
      isinstance(value, int | float) for value in record.values()
    )
  except (AttributeError, KeyError, TypeError, ValueError):
    return None
  return record if valid else None


class MetricsLog:
  """`metrics.jsonl` (one object for each log step) and TensorBoard events, which the first host writes.

  Objects of a bucket can't be appended to. There both grow in a local folder and are uploaded whole, at most
  every ten seconds and with `publish`.
  """

  def __init__(self, workdir: pathlib.Path, *, start_step: int, config: ConfigDict | None = None) -> None:
    """Drops lines after `start_step`: the steps that a killed run did after its last checkpoint.

    Args:
      workdir: the run's directory.
      start_step: the last step that counts.
      config: of the run; TensorBoard shows it as text, and its wandb_project is logged to as well.

    Raises:
      UserError: the files can't be written; so do all methods.
    """
    self._workdir, self._wandb = workdir, None
    if not hosts.is_first():
      return
    self._scratch = tempfile.TemporaryDirectory(prefix="scops_jax_") if is_remote(workdir) else None
    self._folder = workdir if self._scratch is None else pathlib.Path(self._scratch.name)
    self._uploaded = 0.0
    self._path = self._folder / _FILE
    if config is not None and config.wandb_project:
      from scops_jax.runs.wandb_log import WandbLog

      self._wandb = WandbLog(workdir, config)
    kept = [record for record in read_metrics(workdir) if record["step"] <= start_step]
    with writing(workdir / _FILE):
      write_text(self._path, "".join(json.dumps(record) + "\n" for record in kept))
      self._file = self._path.open("a", encoding="utf-8")
      # Not tensorboardX's SummaryWriter: its thread dies on a full disk, and its queue then blocks for ever.
      self._events = EventsWriter(str(self._folder / "events"))
      start = SessionLog(status=SessionLog.START)
      self._events.write_event(Event(step=start_step + 1, session_log=start))  # hides what was dropped
    if config is not None:
      self._write_config(start_step, config)

  def write(self, step: int, scalars: dict[str, float]) -> None:
    """Appends a line and the scalars."""
    if not hosts.is_first():
      return
    with writing(self._workdir / _FILE):
      self._file.write(json.dumps({"step": step, **scalars}) + "\n")
      self._file.flush()
    self.write_scalars(step, scalars, prefix="train")
    if time.monotonic() > self._uploaded + _UPLOAD_EVERY:
      self.publish()

  def _write_config(self, step: int, config: ConfigDict) -> None:
    lines = "".join(f"    {key}={value}\n" for key, value in flat_values(config).items())
    self._write_event(step, summary.text("config", lines))  # four spaces: Markdown for code

  def write_scalars(self, step: int, scalars: dict[str, Any], *, prefix: str) -> None:
    """TensorBoard only: numbers, and lists of them as NAME/1, NAME/2, …; other entries are left out."""
    for name, value in scalars.items():
      if isinstance(value, list):
        self.write_scalars(step, {f"{name}/{i}": entry for i, entry in enumerate(value, 1)}, prefix=prefix)
      elif isinstance(value, float):
        self._write_event(step, summary.scalar(f"{prefix}/{name}", value))
        if self._wandb is not None:
          self._wandb.write(step, {f"{prefix}/{name}": value})

  def write_image(self, step: int, name: str, image: np.ndarray) -> None:
    """TensorBoard only; image uint8 `[H, W, 3]`."""
    self._write_event(step, summary.image(name, image, dataformats="HWC"))

  def _write_event(self, step: int, content: Any) -> None:
    with writing(self._workdir / "events.out.tfevents"):
      self._events.write_event(Event(step=step, summary=content, wall_time=time.time()))
      self._events.flush()

  def digest(self) -> str | None:
    """Returns a digest of all lines, for `check_metrics`; None on other hosts than the first."""
    return file_digest(self._path) if hosts.is_first() else None

  def publish(self) -> None:
    """Uploads what a bucket does not have yet; readers then find all lines there, as on a disk."""
    if not hosts.is_first() or self._scratch is None:
      return
    for path in self._folder.iterdir():
      with writing(self._workdir / path.name):
        upload(path, self._workdir / path.name)
    self._uploaded = time.monotonic()

  def close(self) -> None:
    """Closes all of them."""
    if not hosts.is_first():
      return
    with contextlib.ExitStack() as stack:  # all of them, whichever fails
      if self._scratch is not None:
        stack.callback(self._scratch.cleanup)
      stack.callback(self.publish)
      if self._wandb is not None:
        stack.callback(self._wandb.close)
      stack.enter_context(writing(self._workdir / _FILE))
      stack.callback(self._events.close)
      stack.callback(self._file.close)
