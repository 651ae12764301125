"""The text files of a folder of own images: landmarks.csv, train.txt and test.txt."""

import csv
import difflib
import hashlib
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from scops_jax.data.published.files import read_lines
from scops_jax.errors import UserError

_COLUMNS = ("image", "landmark", "x", "y", "visible")
_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no")
_TEST_SHARE = 10  # one image in ten is a test image


class Point(NamedTuple):
  """A visible landmark, in pixels: an integer is a pixel's centre, the origin is top-left."""

  x: float
  y: float
  line: int  # of the table, from 1


class LandmarkTable(NamedTuple):
  """What landmarks.csv says."""

  names: tuple[str, ...]  # in the order of their first appearance
  points: dict[str, dict[str, Point]]  # visible ones by image and landmark


def read_landmark_table(path: Path, images: Collection[str]) -> LandmarkTable:
  """Reads a table with the columns image, landmark, x, y, visible, in any order; others are not read.

  A landmark is hidden where its row says so, then x and y may be empty, and where it has no row.

  Args:
    path: of the table, comma-separated, with a header; any line ends, fields may be quoted.
    images: the names that the column "image" may have.

  Raises:
    UserError: it can't be read, or a line names an unknown image, repeats a landmark of an image, or has a
      value that is not a number or truth value; the message names the line.
  """
  table = LandmarkTable((), {})
  names: dict[str, None] = {}
  seen: dict[tuple[str, str], int] = {}
  try:
    with path.open(newline="", encoding="utf-8-sig") as file:
      rows = csv.DictReader(file, skipinitialspace=True, strict=True)
      columns = [(name or "").strip() for name in rows.fieldnames or ()]
      if not set(_COLUMNS) <= set(columns):
        raise UserError(f"{path}, line 1: expected a header with the columns {','.join(_COLUMNS)}")
      rows.fieldnames = columns
      for row in rows:
        image, landmark, point = _parse_row(row, f"{path}, line {rows.line_num}", rows.line_num, images)
        if (image, landmark) in seen:
          first = f"line {seen[image, landmark]}"
          raise UserError(f"{path}, line {rows.line_num}: {landmark!r} of {image!r} is in {first} already")
        seen[image, landmark] = rows.line_num
        names[landmark] = None
        if point is not None:
          table.points.setdefault(image, {})[landmark] = point
  except csv.Error as error:
    raise UserError(f"{path}, line {rows.line_num + 1}: {error}") from error  # counts whole lines only
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path} can't be read as text in UTF-8: {error}") from error
  return table._replace(names=tuple(names))


def _parse_row(
  row: dict[str, str | None], where: str, number: int, images: Collection[str]
) -> tuple[str, str, Point | None]:
  """Returns image, landmark and, if it is visible, its place."""
  if None in row or None in row.values():
    raise UserError(f"{where}: expected as many fields as the header has")
  image, landmark, x, y, visible = ((row[name] or "").strip() for name in _COLUMNS)
  check_name(image, images, where)
  if not landmark:
    raise UserError(f"{where}: the landmark has no name")
  if visible.lower() not in _TRUE + _FALSE:
    raise UserError(f"{where}: visible={visible!r} should be 1 or 0")
  if visible.lower() in _FALSE:
    return image, landmark, None
  return image, landmark, Point(_number(x, "x", where), _number(y, "y", where), number)


def _number(text: str, what: str, where: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise UserError(f"{where}: {what}={text!r} is not a number")
  return value


def check_name(name: str, images: Collection[str], where: str) -> None:
  """Raises UserError, with the nearest name, unless `name` is an image."""
  if name not in images:
    nearest = difflib.get_close_matches(name, images, n=1)
    hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
    raise UserError(f"{where}: there is no image {name!r} in images/{hint}")


def read_splits(folder: Path, images: Collection[str]) -> dict[str, list[str]]:
  """The images' names by split, "train" and "test", sorted.

  train.txt and test.txt hold one name a line. Without either, an image is a test image if the SHA-256 of its
  name, as a number, is a multiple of ten, so that added images don't move the others; at least one is. Where
  one of them is missing, its split is what the other does not name.

  Raises:
    UserError: a line names no image, one that was named before, or there are fewer than two images.
  """
  lists = {split: folder / f"{split}.txt" for split in ("train", "test")}
  listed: dict[str, set[str]] = {}
  lines: dict[str, str] = {}  # where each name stands
  for split, path in lists.items():
    if not path.exists():
      continue
    listed[split] = set()
    for line in read_lines(path):
      name = line.text.strip()
      check_name(name, images, str(line))
      if name in lines:
        raise UserError(f"{line}: {name!r} is in {lines[name]} already")
      lines[name] = str(line)
      listed[split].add(name)
  if not listed:
    listed["test"] = _choose_test(images)
  for split, other in (("train", "test"), ("test", "train")):
    if split not in listed:
      listed[split] = set(images) - listed[other]
  for split, names in listed.items():
    if not names:
      raise UserError(
        f"{folder} has no image for the {split} split: {len(images)} in images/, see {split}.txt"
      )
  return {split: sorted(listed[split]) for split in lists}


def _choose_test(images: Iterable[str]) -> set[str]:
  numbers = {name: int.from_bytes(hashlib.sha256(name.encode()).digest(), "big") for name in images}
  chosen = {name for name, number in numbers.items() if number % _TEST_SHARE == 0}
  if not chosen or len(chosen) == len(numbers):  # very few images
    chosen = {min(numbers, key=numbers.__getitem__)}
  return chosen
