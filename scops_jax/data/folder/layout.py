"""Finds the files of a folder of own images and reads its text files; `folder.collection` describes them."""

import contextlib
import csv
import difflib
import hashlib
import math
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from scops_jax.data.image_files import SUFFIXES, find_images, open_image
from scops_jax.data.source_files import (
  Line,
  chosen_for_test,
  list_files,
  name_number,
  read_split_lists,
)
from scops_jax.errors import UserError, printable

_COLUMNS = ("image", "landmark", "x", "y", "visible")
_TEXT_FILES = ("landmarks.csv", "train.txt", "test.txt")
_MAX_BYTES = 1 << 28  # of landmarks.csv
_MAX_NUMBER = 1e6  # of a coordinate in pixels
_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no")


class LandmarkTable(NamedTuple):
  """The content of landmarks.csv."""

  names: tuple[str, ...]  # in the order of their first appearance
  points: dict[str, dict[str, tuple[float, float]]]  # (x, y) of the visible ones, by image and landmark


class FolderLayout(NamedTuple):
  """The files of a folder."""

  images: dict[str, Path]  # by name
  masks: Path | None  # folder of the masks; None: the images' transparency, or no masks
  parts: Path | None  # folder of the index maps
  table: LandmarkTable
  splits: dict[str, list[str]]
  others: list[str]  # files among the images that are not read


def read_layout(config: ConfigDict) -> FolderLayout:
  """Finds the files of the folder `config.data.dir` and reads its text files.

  Raises:
    UserError: there is no image, two images would have the same mask, a text file has a mistake, or
      there are no masks although data.saliency asks for them.
  """
  root = Path(config.data.dir)
  folder, images = _find_images(config)
  first: dict[str, str] = {}
  for name in images:
    if first.setdefault(map_name(name), name) != name:
      raise UserError(
        f"{folder} holds {first[map_name(name)]!r} and {name!r}: masks and parts are found by the "
        "name without its suffix, so rename one of them"
      )
  table = LandmarkTable((), {})
  if (root / "landmarks.csv").exists():
    table = read_landmark_table(root / "landmarks.csv", images)
  parts = root / "parts"
  return FolderLayout(
    images=images,
    masks=_find_masks(config, images),
    parts=parts if parts.is_dir() else None,
    table=table,
    splits=read_splits(root, images),
    others=_find_others(config, folder, images),
  )


def _find_images(config: ConfigDict) -> tuple[Path, dict[str, Path]]:
  """Returns the folder of the images, images/ or data.dir itself, and their paths by name."""
  root = Path(config.data.dir)
  if (root / "images").is_dir():
    return root / "images", find_images(root / "images")
  images = {}
  if root.is_dir():
    with contextlib.suppress(UserError):  # the message below says more
      images = find_images(root)
  images = {name: path for name, path in images.items() if not _lies_beside(config, root, name)}
  # Of a folder that holds pictures in subfolders only, a subfolder is meant.
  if not any("/" not in name for name in images):
    raise UserError(
      f"data.dir={root} should hold the images in images/, or directly, as {', '.join(SUFFIXES)} files"
    )
  return root, images


def _find_others(config: ConfigDict, folder: Path, images: Collection[str]) -> list[str]:
  names = (name for name in list_files(folder, "**/*") if name not in images)
  return [name for name in names if not _lies_beside(config, folder, name)]


def _lies_beside(config: ConfigDict, folder: Path, name: str) -> bool:
  """Returns whether a file below the images' folder is none of them, but masks, parts or text about them."""
  root = Path(config.data.dir)
  if folder != root:
    return False
  beside = {root / "saliency", root / "saliency_auto", root / "parts"}
  if config.data.saliency_dir:
    beside.add(Path(config.data.saliency_dir))
  return name in _TEXT_FILES or not beside.isdisjoint((root / name).parents)


def map_name(name: str) -> str:
  """The file name of an image's mask and index map: "a/b.jpg" → "a/b.png"."""
  return Path(name).with_suffix(".png").as_posix()


def _find_masks(config: ConfigDict, images: dict[str, Path]) -> Path | None:
  """Returns the masks' folder; None if masks are the images' transparency, or none are read."""
  if config.data.saliency != "collection":
    return None
  folder = Path(config.data.saliency_dir or Path(config.data.dir) / "saliency")
  if folder.is_dir():
    return folder
  if not config.data.saliency_dir and any(map(_has_transparency, images.values())):
    return None
  raise UserError(
    f"there is no folder of masks {folder}, and no image is transparent: add masks, or set "
    "data.saliency=auto to have them computed, or data.saliency=ones if the object fills its images"
  )


def _has_transparency(path: Path) -> bool:
  try:
    with open_image(path, str(path)) as picture:  # reads the header only
      return picture.has_transparency_data
  except ValueError:
    return False  # read_example gets the same error and reports it


def folder_digest(config: ConfigDict) -> str:
  """A digest of which files are read, and of their sizes and dates."""
  root = Path(config.data.dir)
  own_masks = config.data.saliency == "collection"
  folders = [root / "parts"]
  if own_masks:
    folders.append(Path(config.data.saliency_dir or root / "saliency"))
  files = [root / name for name in _TEXT_FILES]
  files.extend(_find_images(config)[1].values())
  for folder in folders:
    files.extend(sorted(path for path in folder.rglob("*") if path.is_file()))
  digest = hashlib.sha256(
    f"2 {own_masks} {config.folder.max_edge}".encode()
  )  # 2: of more formats than before
  for path in files:
    if path.exists():
      status = path.stat()
      place = path.relative_to(root) if path.is_relative_to(root) else path
      digest.update(f"\n{place} {status.st_size} {status.st_mtime_ns}".encode(errors="surrogateescape"))
  return digest.hexdigest()[:12]


def read_landmark_table(path: Path, images: Collection[str]) -> LandmarkTable:
  """Reads a table with the columns image, landmark, x, y, visible in any order, ignoring other columns.

  A landmark is hidden if its row says so (x and y may then be empty) or if it has no row.

  Args:
    path: a comma-separated table with a header; it may have any line ends and quoted fields.
    images: the names that may stand in the column "image".

  Raises:
    UserError: the file can't be read, or a line names an unknown image, repeats a landmark of an image, or
      has a value that is not a number or truth value; the message names the line.
  """
  points: dict[str, dict[str, tuple[float, float]]] = {}
  lines: dict[tuple[str, str], int] = {}  # line of each image and landmark
  if not path.is_file() or path.stat().st_size > _MAX_BYTES:
    raise UserError(f"{path} is no file, or has over {_MAX_BYTES >> 20} MiB")
  try:
    with path.open(newline="", encoding="utf-8-sig") as file:
      rows = csv.DictReader(file, skipinitialspace=True, strict=True)
      columns = [(name or "").strip() for name in rows.fieldnames or ()]
      if not set(_COLUMNS) <= set(columns):
        raise UserError(f"{path}, line 1: expected a header with the columns {','.join(_COLUMNS)}")
      rows.fieldnames = columns
      for row in rows:
        where = f"{path}, line {rows.line_num}"
        image, landmark, point = _parse_row(row, where, images)
        if (image, landmark) in lines:
          raise UserError(f"{where}: {landmark!r} of {image!r} is in line {lines[image, landmark]} already")
        lines[image, landmark] = rows.line_num
        if point is not None:
          points.setdefault(image, {})[landmark] = point
  except csv.Error as error:
    raise UserError(f"{path}, line {rows.line_num + 1}: {error}") from error  # line_num counts complete lines
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path} can't be read as text in UTF-8: {error}") from error
  names = tuple(dict.fromkeys(landmark for _, landmark in lines))
  return LandmarkTable(names, points)


def _parse_row(
  row: dict[str, str | None], where: str, images: Collection[str]
) -> tuple[str, str, tuple[float, float] | None]:
  """Returns image, landmark and its (x, y) if it is visible."""
  if None in row or None in row.values():
    raise UserError(f"{where}: expected as many fields as the header has")
  image, landmark, x, y, visible = ((row[name] or "").strip() for name in _COLUMNS)
  _check_name(image, images, where)
  if not landmark:
    raise UserError(f"{where}: the landmark has no name")
  if visible.lower() not in _TRUE + _FALSE:
    raise UserError(f"{where}: visible={printable(visible)!r} should be 1 or 0")
  if visible.lower() in _FALSE:
    return image, landmark, None
  return image, landmark, (_number(x, "x", where), _number(y, "y", where))


def _number(text: str, what: str, where: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not abs(value) <= _MAX_NUMBER:
    raise UserError(f"{where}: {what}={printable(text)!r} is not a number between ±10⁶")
  return value


def _check_name(name: str, images: Collection[str], where: str) -> None:
  """Raises UserError, which suggests the nearest name, unless `name` is an image."""
  if name not in images:
    shown = printable(name)
    nearest = difflib.get_close_matches(shown, images, n=1)
    hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
    raise UserError(f"{where}: there is no image {shown!r}{hint}")


def read_splits(folder: Path, images: Collection[str]) -> dict[str, list[str]]:
  """The images' names by split, "train" and "test", sorted.

  train.txt and test.txt hold a name on each line. If one of them is missing, its split is what the other does
  not name. If both are, `chosen_for_test` decides, and at least one image is for tests.

  Raises:
    UserError: a line names no image, or one that was named before, or a split is empty.
  """
  splits = ("train", "test")

  def check(name: str, line: Line) -> None:
    _check_name(name, images, str(line))

  listed = {split: set(names) for split, names in read_split_lists(folder, splits, check).items()}
  lists = ", see " + " and ".join(f"{split}.txt" for split in listed) if listed else ""
  if not listed:
    chosen = {name for name in images if chosen_for_test(name)}
    # Very few images: none or all of them may be chosen.
    listed["test"] = chosen if 0 < len(chosen) < len(images) else {min(images, key=name_number)}
  for split in splits:
    listed.setdefault(split, set(images).difference(*listed.values()))
    if not listed[split]:
      raise UserError(f"{folder} has no image for the {split} split: {len(images)} images{lists}")
  return {split: sorted(listed[split]) for split in splits}
