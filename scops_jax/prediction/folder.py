"""The folder that `python -m scops_jax.predict` writes: each image's files, a journal, the table of parts.

An image is added to the journal (progress.jsonl) once all its files are written, with their checksums. So an
interrupted call, run again, labels only what is missing or damaged. At the end the table (parts.csv) is made
from the journal. A folder is predict's own if its settings.json or journal says so; in any other folder files
of the names that predict writes are somebody else's, and are not overwritten.

In a bucket, whose objects can't be appended to, the journal grows in a local file and is uploaded every ten
seconds and at the end: a killed call labels the images of the last seconds again.
"""

import contextlib
import csv
import json
import os
import pathlib
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO

from scops_jax.errors import UserError
from scops_jax.prediction.files import DoneImage, ImageFile, OutputFiles
from scops_jax.prediction.overlay import LabelledFile, draw_contact_sheet
from scops_jax.storage.files import replacing, upload
from scops_jax.storage.locks import InUseError, exclusive, lock_file
from scops_jax.storage.paths import is_remote

_COLUMNS = ("image", "part", "x", "y", "area", "mean_probability")
_JOURNAL = "progress.jsonl"
_SHEET = "contact_sheet.jpg"
_NAMES = (
  "settings.json",
  _JOURNAL,
  "parts.csv",
  "failed.txt",
  _SHEET,
  "labels",
  "overlays",
  "probabilities",
)
_UPLOAD_EVERY = 10.0  # seconds, of the journal
_THREADS = 16  # that read a bucket


class PredictionFolder:
  """The folder, locked while it is open."""

  def __init__(self, files: OutputFiles, *, settings: Mapping[str, Any]) -> None:
    """Creates the folder, or continues it.

    Args:
      files: what is written, and where.
      settings: what the predictions depend on; a folder with other settings is refused.

    Raises:
      UserError: it can't be written, is in use, holds predictions with other settings, or files of others.
    """
    self.files, path = files, files.path
    self._offsets: dict[str, int] = {}  # of the journal's line of each finished image, by stem
    self._reading = threading.Lock()  # of the journal
    self._uploaded = time.monotonic()
    with contextlib.ExitStack() as stack:
      try:
        if is_remote(path):
          stack.enter_context(exclusive(path / "lock"))
          scratch = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scops_jax_")))
          self._local_journal = scratch / _JOURNAL
          if (path / _JOURNAL).exists():
            self._local_journal.write_bytes((path / _JOURNAL).read_bytes())
        else:
          path.mkdir(parents=True, exist_ok=True)
          self._local_journal = path / _JOURNAL
        self._journal = stack.enter_context(self._local_journal.open("a+b"))
        if not is_remote(path):
          lock_file(self._journal)
      except (BlockingIOError, InUseError) as error:
        raise UserError(f"out={path} is being written by another call: wait for it") from error
      except OSError as error:
        raise UserError(
          f"out={path} can't be written ({error.filename or path}: {error.strerror or error}): give a "
          "writable folder"
        ) from error
      self._open(settings)
      self._opened = stack.pop_all()

  def _open(self, settings: Mapping[str, Any]) -> None:
    path = self.files.path
    before = _read_settings(path / "settings.json", settings)
    end, damaged = self._read_journal()
    if before is None:
      if not self._offsets:
        self._check_empty()
      else:
        _note(f"{path / 'settings.json'} is missing or damaged: it is written again, all images are labelled")
      self._offsets.clear()
      end, damaged = 0, False
      with replacing(path / "settings.json") as temporary:
        temporary.write_text(
          json.dumps({**settings, "crc": _crc(settings)}, indent=2) + "\n", encoding="utf-8"
        )
    elif keys := [key for key in settings if before[key] != settings[key]]:
      shown = ", ".join(f"{key} (was {before[key]}, now {settings[key]})" for key in keys)
      raise UserError(f"out={path} holds predictions of another {shown}: give another folder")
    if damaged:
      _note(f"{path / _JOURNAL} is damaged: images after the damage are labelled again")
    self._journal.truncate(end)

  def _check_empty(self) -> None:
    """Raises UserError if a file that is not predict's has a name that predict writes."""
    path = self.files.path
    foreign = [name for name in _NAMES if _has_content(path / name)]
    if foreign:
      if _JOURNAL not in foreign and not is_remote(path):
        (path / _JOURNAL).unlink()  # made just now, to lock the folder
      raise UserError(
        f"out={path} holds {', '.join(foreign)}, which predict did not write and would replace: give "
        "another folder, or move them away"
      )

  def _read_journal(self) -> tuple[int, bool]:
    """Returns where its intact lines end, and whether something other than an unfinished line follows."""
    self._journal.seek(0)
    position = 0
    for line in self._journal:
      record = _parse(line)
      if record is None:
        return position, line.endswith(b"\n")
      self._offsets[record["stem"]] = position
      position += len(line)
    return position, False

  def unfinished(self, files: Sequence[ImageFile]) -> list[ImageFile]:
    """Returns the images that are not done in their present version, or whose output files are damaged."""
    if is_remote(self.files.path):
      with ThreadPoolExecutor(_THREADS) as threads:
        done = list(threads.map(self._is_done, files))
    else:
      done = [self._is_done(file) for file in files]
    todo = [file for file, is_done in zip(files, done, strict=True) if not is_done]
    for file in todo:
      self._offsets.pop(file.stem, None)
    return todo

  def _is_done(self, file: ImageFile) -> bool:
    record = self._record(file.stem)
    if record is None:
      return False
    try:
      return record["source"] == file.version() and all(
        record["checksums"].get(kind) == zlib.crc32(path.read_bytes())
        for kind, path in self.files.of(file.stem).items()
      )
    except OSError:
      return False

  def _record(self, stem: str) -> dict[str, Any] | None:
    if stem not in self._offsets:
      return None
    with self._reading:
      self._journal.seek(self._offsets[stem])
      return _parse(self._journal.readline())

  def add(self, image: DoneImage) -> None:
    """Records that an image is done."""
    record = image._asdict()
    self._offsets[image.stem] = self._journal.seek(0, os.SEEK_END)
    self._journal.write(json.dumps({**record, "crc": _crc(record)}).encode() + b"\n")
    self._journal.flush()
    if time.monotonic() > self._uploaded + _UPLOAD_EVERY:
      self._publish()

  def _publish(self) -> None:
    """Uploads the journal if the folder is in a bucket."""
    if is_remote(self.files.path):
      upload(self._local_journal, self.files.path / _JOURNAL)
    self._uploaded = time.monotonic()

  def write_table(self, images: Sequence[ImageFile], failures: Sequence[str]) -> None:
    """Writes parts.csv and failed.txt.

    Args:
      images: in the table's order; those that are not done are left out.
      failures: for each image that can't be labelled, the reason.
    """
    with replacing(self.files.path / "parts.csv") as temporary, _open_text(temporary) as file:
      table = csv.writer(file, lineterminator="\n")
      table.writerow(_COLUMNS)
      for image in images:
        record = self._record(image.stem)
        if record is not None:
          table.writerows([image.name, *row] for row in record["rows"])
    failed = self.files.path / "failed.txt"
    if failures:
      with replacing(failed) as temporary, _open_text(temporary) as file:
        file.writelines(f"{line}\n" for line in failures)
    else:
      failed.unlink(missing_ok=True)

  def write_contact_sheet(self, images: Sequence[ImageFile], *, num_parts: int) -> None:
    """Writes a picture of several images with their parts, if two or more are done."""
    done = []
    for image in images:
      record = self._record(image.stem)
      if record is not None:
        places = [(x, y) for _, x, y, *_ in record["rows"]]
        done.append(LabelledFile(image.name, image.path, self.files.of(image.stem)["labels"], places))
    names = self.files.part_names
    sheet = draw_contact_sheet(done, num_parts=num_parts, names=names) if len(done) > 1 else None
    if sheet is None:
      (self.files.path / _SHEET).unlink(missing_ok=True)
      return
    with replacing(self.files.path / _SHEET) as temporary:
      sheet.save(temporary, format="JPEG", quality=90)

  def close(self) -> None:
    """Unlocks the folder."""
    with self._opened:
      self._publish()


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


def _read_settings(path: pathlib.Path, expected: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns the settings that predict has written; None if the file is missing or anything else."""
  try:
    settings = json.loads(path.read_bytes())
    crc = settings.pop("crc")
    return settings if (settings.keys(), _crc(settings)) == (expected.keys(), crc) else None
  except (OSError, ValueError, AttributeError, KeyError, TypeError):
    return None


def _parse(line: bytes) -> dict[str, Any] | None:
  """Returns a line of the journal as a dict of DoneImage's fields; None if it is damaged or unfinished."""
  try:
    record = json.loads(line)
    intact = line.endswith(b"\n") and record.pop("crc") == _crc(record)
    return record if intact else None
  except (ValueError, AttributeError, KeyError, TypeError):
    return None


def _crc(record: Mapping[str, Any]) -> int:
  return zlib.crc32(json.dumps(record).encode())


def _has_content(path: pathlib.Path) -> bool:
  if path.is_dir():
    return any(path.iterdir())
  return path.exists() and bool(path.open("rb").read(1))


def _note(text: str) -> None:
  print(text, file=sys.stderr)


def _open_text(path: pathlib.Path) -> TextIO:
  """Opens for writing; file names that are not valid UTF-8 keep their bytes."""
  return path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
