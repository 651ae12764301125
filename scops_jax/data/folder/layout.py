"""Which files a folder of own images consists of; see `image_folder` for what they are."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict
from PIL import Image

from scops_jax.data.folder.annotations import LandmarkTable, read_landmark_table, read_splits
from scops_jax.data.image_files import find_images
from scops_jax.errors import UserError


class FolderLayout(NamedTuple):
  """The files of a folder."""

  images: dict[str, Path]  # by name
  stems: dict[str, str]  # of the masks' and parts' files, by name
  masks: Path | None  # None: the images' alpha, or none
  parts: Path | None
  table: LandmarkTable
  splits: dict[str, list[str]]


def read_layout(config: ConfigDict) -> FolderLayout:
  """Finds the files of the folder `config.data.dir` and reads its text files.

  Raises:
    UserError: images/ is missing or empty, two images have the same stem, a text file is faulty, or there are
      no masks although data.saliency asks for them.
  """
  root = Path(config.data.dir)
  if not (root / "images").is_dir():
    raise UserError(
      f"there is no folder {root / 'images'}: data.dir={root} should hold the images in images/"
    )
  images = find_images(root / "images")
  stems = {name: Path(name).with_suffix("").as_posix() for name in images}
  first: dict[str, str] = {}
  for name, stem in stems.items():
    if stem in first:
      raise UserError(
        f"{root / 'images'} holds {first[stem]!r} and {name!r}: masks and parts are found by the name "
        "without its suffix, so rename one of them"
      )
    first[stem] = name
  table = LandmarkTable((), {})
  if (root / "landmarks.csv").exists():
    table = read_landmark_table(root / "landmarks.csv", images)
  parts = root / "parts"
  return FolderLayout(
    images=images,
    stems=stems,
    masks=_find_masks(config, images),
    parts=parts if parts.is_dir() else None,
    table=table,
    splits=read_splits(root, images),
  )


def _find_masks(config: ConfigDict, images: dict[str, Path]) -> Path | None:
  """Returns the masks' folder; None where the images' transparency serves or no mask is wanted."""
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
    with Image.open(path) as picture:  # reads the header only
      return picture.has_transparency_data
  except (OSError, SyntaxError):
    return False  # read_example meets and names it


def folder_digest(config: ConfigDict) -> str:
  """Differs where another file would be read, or a file has another size or date."""
  root = Path(config.data.dir)
  own_masks = config.data.saliency == "collection"
  folders = [root / "images", root / "parts"]
  if own_masks:
    folders.append(Path(config.data.saliency_dir or root / "saliency"))
  files = [root / name for name in ("landmarks.csv", "train.txt", "test.txt")]
  for folder in folders:
    files.extend(sorted(path for path in folder.rglob("*") if path.is_file()))
  digest = hashlib.sha256(f"{own_masks} {config.folder.max_edge}".encode())
  for path in files:
    if path.exists():
      status = path.stat()
      place = path.relative_to(root) if path.is_relative_to(root) else path
      digest.update(f"\n{place} {status.st_size} {status.st_mtime_ns}".encode())
  return digest.hexdigest()[:12]
