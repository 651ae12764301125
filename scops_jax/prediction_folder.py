"""The folder that `python -m scops_jax.predict` writes: files of each image, a journal, and the table.

An image's line goes to the journal (progress.jsonl) after all its files are in place, so that a call that is
interrupted and run again does what is missing and no more. The table (parts.csv) is made from the journal at
the end.
"""

import csv
import fcntl
import json
import math
import os
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scops_jax.errors import UserError
from scops_jax.files import replacing
from scops_jax.part_labels import label_pixels
from scops_jax.visualize import part_colors
from scops_jax.workdir import write_text

COLUMNS = ("image", "part", "x", "y", "area", "mean_probability")

_OPACITIES = [0] + [round(255 * 0.55)] * 255  # of part colours in overlays; the background stays
_JPEG_QUALITY = 90
_PNG_LEVEL = 1  # of compression: four times as fast as the default, and label maps are small anyway
_PALETTE = np.concatenate([np.zeros((1, 3), np.uint8), part_colors(255)]).tobytes()


class ImageMaps(NamedTuple):
  """What the network says of one image."""

  labels: NDArray[np.uint8]  # [S, S]
  probs: NDArray[np.float32]  # [S, S, K+1]
  centers: NDArray[np.float32]  # [K, 2] in [-1, 1]


class PredictionFolder:
  """The folder, locked while it is open."""

  def __init__(self, path: pathlib.Path, *, settings: Mapping[str, Any], probabilities: bool) -> None:
    """Makes the folder or goes on with it.

    Args:
      path: of the folder.
      settings: what the predictions depend on; a folder of others is refused.
      probabilities: whether soft maps are kept.

    Raises:
      UserError: it can't be written, is in use, or holds predictions of other settings.
    """
    self.path = path
    self._probabilities = probabilities
    try:
      path.mkdir(parents=True, exist_ok=True)
      self._journal = (path / "progress.jsonl").open("a+b")
    except OSError as error:
      raise UserError(f"--out={path} can't be written ({error.strerror}): give a writable folder") from error
    try:
      fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
      self._check_settings(dict(settings))
      self._records = self._read_journal()
    except BlockingIOError as error:
      self.close()
      raise UserError(f"--out={path} is being written by another call: wait for it") from error
    except Exception:
      self.close()
      raise

  def _check_settings(self, settings: dict[str, Any]) -> None:
    saved = self.path / "settings.json"
    if not saved.exists():
      write_text(saved, json.dumps(settings, indent=2) + "\n")
      return
    before = json.loads(saved.read_text(encoding="utf-8"))
    keys = [key for key in settings if before.get(key) != settings[key]]
    if keys:
      shown = ", ".join(f"{key} (was {before.get(key)}, now {settings[key]})" for key in keys)
      raise UserError(f"--out={self.path} holds predictions of another {shown}: give another --out")

  def _read_journal(self) -> dict[str, tuple[dict[str, Any], int]]:
    """Returns by stem the source and the position of its last line; drops what follows a damaged line."""
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

  def files(self, stem: str) -> dict[str, pathlib.Path]:
    """Returns the files of an image by kind."""
    files = {
      "labels": self.path / "labels" / f"{stem}.png",
      "overlays": self.path / "overlays" / f"{stem}.jpg",
    }
    if self._probabilities:
      files["probabilities"] = self.path / "probabilities" / f"{stem}.npz"
    return files

  def is_done(self, name: str, path: pathlib.Path, stem: str) -> bool:
    """Whether all files of this image, as it is now, are there."""
    source, _ = self._records.get(stem, (None, 0))
    try:
      unchanged = source == describe_source(name, path)
    except OSError:
      return False
    return unchanged and all(file.exists() for file in self.files(stem).values())

  def write_image(self, stem: str, pixels: NDArray[np.uint8], maps: ImageMaps) -> list[list[Any]]:
    """Writes the files of an image; may run in a thread.

    Args:
      stem: of its files.
      pixels: `[H, W, 3]` uint8, the original.
      maps: the network's.

    Returns:
      The rows of parts.csv without the image's name.
    """
    height, width = pixels.shape[:2]
    found = label_pixels(maps.probs, maps.labels, height=height, width=width)
    files = self.files(stem)
    labels = Image.fromarray(found.labels)
    labels.putpalette(_PALETTE)
    with replacing(files["labels"]) as temporary:
      labels.save(temporary, format="PNG", compress_level=_PNG_LEVEL)
    with replacing(files["overlays"]) as temporary:
      _overlay(pixels, labels).save(temporary, format="JPEG", quality=_JPEG_QUALITY)
    if self._probabilities:
      with replacing(files["probabilities"]) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, probs=maps.probs.astype(np.float16), centers=maps.centers)
    last = np.array([width - 1, height - 1])
    points = (maps.centers.astype(np.float64) + 1) / 2 * last
    return [
      [k, round(float(x), 3), round(float(y), 3), int(found.areas[k]), _rounded(found.mean_probs[k])]
      for k, (x, y) in enumerate(points, 1)
    ]

  def add(self, stem: str, source: dict[str, Any], rows: list[list[Any]]) -> None:
    """Notes that an image is done."""
    line = json.dumps({"stem": stem, "source": source, "rows": rows}) + "\n"
    self._records[stem] = source, self._journal.seek(0, os.SEEK_END)
    self._journal.write(line.encode())
    self._journal.flush()

  def write_table(
    self, images: Mapping[str, pathlib.Path], stems: Mapping[str, str], failures: Sequence[str]
  ) -> None:
    """Writes parts.csv and failed.txt.

    Args:
      images: path by name, in the table's order; those that are not done are left out.
      stems: of the images.
      failures: a line for each image that can't be read.
    """
    with replacing(self.path / "parts.csv") as temporary, _open_text(temporary) as file:
      table = csv.writer(file, lineterminator="\n")
      table.writerow(COLUMNS)
      for name, path in images.items():
        if self.is_done(name, path, stems[name]):
          self._journal.seek(self._records[stems[name]][1])
          rows = json.loads(self._journal.readline())["rows"]
          table.writerows([name, *row] for row in rows)
    failed = self.path / "failed.txt"
    if failures:
      with replacing(failed) as temporary, _open_text(temporary) as file:
        file.writelines(f"{line}\n" for line in failures)
    else:
      failed.unlink(missing_ok=True)

  def close(self) -> None:
    """Unlocks the folder."""
    self._journal.close()


def describe_source(name: str, path: pathlib.Path) -> dict[str, Any]:
  """Returns what tells an image file from another of the same name."""
  status = path.stat()
  return {"image": name, "bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def output_stems(names: Iterable[str]) -> dict[str, str]:
  """Returns a distinct stem of output files for each image name.

  "sub/a.png" gives "sub/a", but where another image of that folder has the same stem, in whatever case, the
  full name "sub/a.png".
  """
  stems = {name: str(pathlib.PurePosixPath(name).with_suffix("")) for name in names}
  while True:
    counts = Counter(stem.casefold() for stem in stems.values())
    shared = [name for name, stem in stems.items() if counts[stem.casefold()] > 1 and stem != name]
    if not shared:
      return stems
    stems.update((name, name) for name in shared)


def _open_text(path: pathlib.Path) -> TextIO:
  """Opens for writing; names that are not valid text come out with the bytes they came in with."""
  return path.open("w", encoding="utf-8", errors="surrogateescape", newline="")


def _overlay(pixels: NDArray[np.uint8], labels: Image.Image) -> Image.Image:
  image = Image.fromarray(pixels)
  indices = Image.frombuffer("L", labels.size, labels.tobytes())
  image.paste(labels.convert("RGB"), mask=indices.point(_OPACITIES))
  return image


def _rounded(value: float) -> float | None:
  return None if math.isnan(value) else round(float(value), 4)
