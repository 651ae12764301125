"""What readers of collections share: text tables, pictures, saliency maps, boxes, and the default split."""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from scops_jax.data.image_files import decode_image, open_image, resize_pixels
from scops_jax.errors import UserError, printable

_MAX_BYTES = 1 << 28  # of a file
_MAX_NUMBER = 1e6  # of a coordinate in pixels


class Line(NamedTuple):
  """A line of a text table; its fields are parsed on demand, so that a bad line affects one image only."""

  path: Path
  number: int  # from 1
  text: str

  @property
  def key(self) -> str:
    """The first field."""
    return self.text.split(maxsplit=1)[0]

  def words(self, count: int) -> list[str]:
    """The `count` fields after the first; the last of them may contain spaces.

    Raises:
      UserError: there are fewer.
    """
    fields = self.text.split(maxsplit=count)[1:]
    if len(fields) != count:
      raise UserError(f"{self}: expected {count} fields after {printable(self.key)!r}, got {len(fields)}")
    return fields

  def numbers(self, count: int) -> NDArray[np.float64]:
    """The fields after the first, of which there must be `count`.

    Raises:
      UserError: there are more or fewer, or one is not a number between -10⁶ and 10⁶.
    """
    fields = self.text.split()[1:]
    try:
      values = np.asarray([float(field) for field in fields])
    except ValueError:
      values = np.full(len(fields), np.nan)
    if len(fields) != count or not (np.abs(values) <= _MAX_NUMBER).all():
      got = printable(" ".join(fields))
      raise UserError(f"{self}: expected {count} numbers after {printable(self.key)!r}, got {got!r}")
    return values

  def __str__(self) -> str:
    return f"{self.path}, line {self.number}"


def read_lines(path: Path) -> list[Line]:
  """The lines of a text file that are not blank; any line ends will do.

  Raises:
    UserError: the file is missing, not text, or too large.
  """
  if not path.is_file():
    raise _missing(path)
  try:
    if path.stat().st_size > _MAX_BYTES:
      raise UserError(f"{path} has over {_MAX_BYTES >> 20} MiB: no published list is so large")
    text = path.read_text(encoding="utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path} can't be read as text: {error}") from error
  return [Line(path, number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def list_files(folder: Path, pattern: str = "*") -> list[str]:
  """The sorted paths, relative to a folder, of its files that match a pattern and are not hidden.

  Raises:
    UserError: the folder is missing.
  """
  if not folder.is_dir():
    raise _missing(folder)
  names = [path.relative_to(folder).as_posix() for path in folder.glob(pattern) if not path.is_dir()]
  return sorted(name for name in names if not name.startswith(".") and "/." not in name)


def _missing(path: Path) -> UserError:
  return UserError(f"{path} is missing: data.dir must hold the collection as it is published")


def by_key(lines: Iterable[Line]) -> dict[str, Line]:
  """Lines by their first field.

  Raises:
    UserError: two lines have the same first field.
  """
  found: dict[str, Line] = {}
  for line in lines:
    if line.key in found:
      raise UserError(f"{line}: {printable(line.key)!r} is in line {found[line.key].number} already")
    found[line.key] = line
  return found


def read_bytes(path: Path, name: str) -> bytes:
  """A file's content.

  Raises:
    ValueError: it can't be read; the message begins with `name`.
  """
  try:
    if not path.is_file():  # nor do we wait for a pipe
      raise ValueError(f"{name}: there is no file {path}")
    if path.stat().st_size > _MAX_BYTES:
      raise ValueError(f"{name}: {path} has over {_MAX_BYTES >> 20} MiB")
    return path.read_bytes()
  except OSError as error:
    raise ValueError(f"{name}: {path} can't be read: {error.strerror}") from error


def read_picture(path: Path, name: str) -> NDArray[np.uint8]:
  """A picture's pixels [H, W, 3].

  Raises:
    ValueError: it is missing or can't be decoded; the message begins with `name`.
  """
  return decode_image(read_bytes(path, name), f"{name}: the image")


def picture_size(path: Path, name: str) -> tuple[int, int]:
  """A picture's height and width, from the file's header; raises as `read_picture` does."""
  if not path.is_file():
    raise ValueError(f"{name}: there is no file {path}")
  with open_image(path, f"{name}: the image") as picture:
    return picture.height, picture.width


def find_saliency_folder(config: ConfigDict, *published: Path) -> Path | None:
  """The folder of saliency maps; None if none is read (data.saliency "ones" or "auto").

  Args:
    config: the run's; a `data.saliency_dir` replaces the published folders.
    *published: the collection's own folders, of which the first that exists is taken.

  Raises:
    UserError: there is no such folder.
  """
  if config.data.saliency != "collection":
    return None
  places = (Path(config.data.saliency_dir),) if config.data.saliency_dir else published
  for place in places:
    if place.is_dir():
      return place
  raise UserError(
    f"there is no folder of saliency maps {' or '.join(map(str, places))}: "
    "set data.saliency_dir, or data.saliency=ones to take every pixel for foreground, or data.saliency=auto "
    "to have maps computed"
  )


def read_saliency(folder: Path | None, name: str, shape: tuple[int, int]) -> NDArray[np.uint8] | None:
  """An image's soft saliency map, 0..255 for 0..1.

  Args:
    folder: from `find_saliency_folder`.
    name: the image's path in its folder; the map has the same path, with .png in place of the suffix or
      appended.
    shape: (H, W) of the image; a map of another size is resized (bilinear).

  Returns:
    [H, W]; None if `folder` is None.

  Raises:
    ValueError: there is no map, or it can't be decoded.
  """
  if folder is None:
    return None
  path = folder / Path(name).with_suffix(".png")
  if not path.is_file():
    path = folder / f"{name}.png"
  if not path.is_file():
    raise ValueError(f"{name}: there is no saliency map {folder / Path(name).with_suffix('.png')}")
  return resize_pixels(decode_image(path, f"{name}: saliency map {path}", mode="L"), shape)


def read_split_lists(
  folder: Path, splits: Sequence[str], check: Callable[[str, Line], None]
) -> dict[str, list[str]]:
  """The names on the lines of a folder's SPLIT.txt, for each split that has such a file.

  Args:
    folder: of the lists.
    splits: the splits' names.
    check: raises UserError for a name, in a line, that is no image's.

  Raises:
    UserError: what `check` raises; or a name is listed twice.
  """
  lines: dict[str, Line] = {}
  listed: dict[str, list[str]] = {}
  for split in splits:
    if not (folder / f"{split}.txt").exists():
      continue
    listed[split] = []
    for line in read_lines(folder / f"{split}.txt"):
      name = line.text.strip()
      check(name, line)
      if name in lines:
        raise UserError(f"{line}: {printable(name)!r} is in {lines[name]} already")
      lines[name] = line
      listed[split].append(name)
  return listed


def chosen_for_test(name: str) -> bool:
  """Whether an image is a test image where no list says so: one in ten, by the SHA-256 of its name.

  So images that are added do not move the others.
  """
  return name_number(name) % 10 == 0


def name_number(name: str) -> int:
  """The SHA-256 of a name as a number."""
  return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest(), "big")


def corner_box(x: float, y: float, width: float, height: float) -> NDArray[np.float32]:
  """A box in pixels as its first and last column and row, (x0, y0, x1, y1)."""
  return np.asarray((x, y, x + width - 1, y + height - 1), np.float32)


def mask_box(mask: NDArray[np.bool_]) -> NDArray[np.float32] | None:
  """The first and last column and row of a mask [H, W], (x0, y0, x1, y1); None if it is empty."""
  rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
  if not rows.size:
    return None
  return np.asarray((columns[0], rows[0], columns[-1], rows[-1]), np.float32)


def square_around(
  box: NDArray[np.floating], height: int, width: int, *, enlarge: float = 1.1
) -> tuple[slice, slice]:
  """The rows and columns of a square with a box in its middle.

  A square that crosses the image's edge is moved inside. If it is larger than the image, the rest is cut off.

  Args:
    box: [4], as `corner_box` gives it.
    height: of the image.
    width: of the image.
    enlarge: the square's side divided by the box's longer edge; 1.1 leaves a margin of 5 % on each side.
  """
  side = math.ceil(enlarge * (np.max(box[2:] - box[:2]) + 1))
  spans = []
  for first, last, length in zip(box[:2], box[2:], (width, height), strict=True):
    start = math.floor((first + last + 1 - side) / 2)
    start = max(0, min(start, length - side))
    spans.append(slice(start, min(length, start + side)))
  return spans[1], spans[0]
