"""The folder that `python -m scops_jax.predict` writes: each image's files, a journal, the table of parts.

An image is added to the journal (progress.jsonl) once all its files are written, so that an interrupted
call, run again, labels only what is missing. At the end the table (parts.csv) is made from the journal.
"""

import csv
import fcntl
import json
import os
import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from scops_jax.errors import UserError
from scops_jax.prediction.files import DoneImage, ImageFile, OutputFiles
from scops_jax.storage.files import replacing

_COLUMNS = ("image", "part", "x", "y", "area", "mean_probability")


class PredictionFolder:
  """The folder, locked while it is open."""

  def __init__(self, path: pathlib.Path, *, settings: Mapping[str, Any], probabilities: bool) -> None:
    """Creates the folder, or continues it.

    Args:
      path: of the folder.
      settings: what the predictions depend on; a folder with other settings is refused.
      probabilities: whether soft maps are written.

    Raises:
      UserError: it can't be written, is in use, or holds predictions with other settings.
    """
    self.files = OutputFiles(path, probabilities)
    try:
      path.mkdir(parents=True, exist_ok=True)
      self._journal = (path / "progress.jsonl").open("a+b")
    except OSError as error:
      raise UserError(f"--out={path} can't be written ({error.strerror}): give a writable folder") from error
    try:
      fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
      self._check_settings(settings)
      self._records = self._read_journal()
    except BlockingIOError as error:
      self.close()
      raise UserError(f"--out={path} is being written by another call: wait for it") from error
    except Exception:
      self.close()
      raise

  def _check_settings(self, settings: Mapping[str, Any]) -> None:
    saved = self.files.path / "settings.json"
    if not saved.exists():
      with replacing(saved) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
      return
    before = json.loads(saved.read_text(encoding="utf-8"))
    keys = [key for key in settings if before.get(key) != settings[key]]
    if keys:
      shown = ", ".join(f"{key} (was {before.get(key)}, now {settings[key]})" for key in keys)
      raise UserError(f"--out={self.files.path} holds predictions of another {shown}: give another --out")

  def _read_journal(self) -> dict[str, tuple[dict[str, Any], int]]:
    """Returns each stem's source and the offset of its last line; cuts the file at the first damaged line."""
    records: dict[str, tuple[dict[str, Any], int]] = {}
    self._journal.seek(0)
    position = 0
    for line in self._journal:
      try:
        record = json.loads(line)
        complete = line.endswith(b"\n")
      except ValueError:
        complete = False
      if not complete:
        break
      records[record["stem"]] = record["source"], position
      position += len(line)
    self._journal.truncate(position)
    return records

  def is_done(self, file: ImageFile) -> bool:
    """Returns whether all output files of this image, in its present version, exist."""
    source, _ = self._records.get(file.stem, (None, 0))
    try:
      unchanged = source == file.version()
    except OSError:
      return False
    return unchanged and all(written.exists() for written in self.files.of(file.stem).values())

  def add(self, image: DoneImage) -> None:
    """Records that an image is done."""
    self._records[image.stem] = image.source, self._journal.seek(0, os.SEEK_END)
    self._journal.write((json.dumps(image._asdict()) + "\n").encode())
    self._journal.flush()

  def write_table(self, images: Sequence[ImageFile], failures: Sequence[str]) -> None:
    """Writes parts.csv and failed.txt.

    Args:
      images: in the table's order; those that are not done are left out.
      failures: for each image that can't be read, the reason.
    """
    with replacing(self.files.path / "parts.csv") as temporary, _open_text(temporary) as file:
      table = csv.writer(file, lineterminator="\n")
      table.writerow(_COLUMNS)
      for image in images:
        if self.is_done(image):
          self._journal.seek(self._records[image.stem][1])
          rows = json.loads(self._journal.readline())["rows"]
          table.writerows([image.name, *row] for row in rows)
    failed = self.files.path / "failed.txt"
    if failures:
      with replacing(failed) as temporary, _open_text(temporary) as file:
        file.writelines(f"{line}\n" for line in failures)
    else:
      failed.unlink(missing_ok=True)

  def close(self) -> None:
    """Unlocks the folder."""
    self._journal.close()


def image_files(images: Mapping[str, pathlib.Path]) -> list[ImageFile]:
  """Returns the images, path by name, each with a distinct stem for its output files.

  "sub/a.png" gets "sub/a", or its full name "sub/a.png" where another image of that folder has the same stem,
  in whatever case.
  """
  stems = {name: str(pathlib.PurePosixPath(name).with_suffix("")) for name in images}
  while True:
    counts = Counter(stem.casefold() for stem in stems.values())
    shared = [name for name, stem in stems.items() if counts[stem.casefold()] > 1 and stem != name]
    if not shared:
      return [ImageFile(name, path, stems[name]) for name, path in images.items()]
    stems.update((name, name) for name in shared)


def _open_text(path: pathlib.Path) -> TextIO:
  """Opens for writing; file names that are not valid UTF-8 keep their bytes."""
  return path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
