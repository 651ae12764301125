"""Prepares the collection that a config names, and opens it for random access."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from scops_jax.data.builder import CollectionBuilder, describe
from scops_jax.data.folder.collection import ImageFolder
from scops_jax.data.prepared import DIGESTS, find_damage, only_writer, quiet_tfds, rebuild, write
from scops_jax.data.published.aflw import Aflw
from scops_jax.data.published.base import PublishedCollection
from scops_jax.data.published.celeba_wild import CelebaWild
from scops_jax.data.published.cub_parts import CubParts
from scops_jax.data.published.pascal_parts import PascalParts
from scops_jax.data.saliency_maps import map_path, read_map
from scops_jax.data.toy_faces.collection import ToyFaces
from scops_jax.errors import UserError
from scops_jax.storage.mirror import local_path, modified, pull, push
from scops_jax.storage.paths import as_path, is_remote

BUILDERS: dict[str, type[CollectionBuilder]] = {
  "aflw": Aflw,
  "celeba_wild": CelebaWild,
  "cub_parts": CubParts,
  "image_folder": ImageFolder,
  "pascal_parts": PascalParts,
  "toy_faces": ToyFaces,
}
_PICTURES = ("image", "saliency", "parts")
UNDECODED = {picture: tfds.decode.SkipDecoding() for picture in _PICTURES}  # for as_data_source


class ExampleSource(Sequence):
  """The examples of a split: `source[i]` reads and decodes example i.

  An example is a dict: name (str), image [H, W, 3] uint8, saliency [H, W] uint8 (0..255 for 0..1), landmarks
  [L, 2] float32 (x, y) in pixels, visible [L] bool, parts [H, W] uint8 (index into the part names), box [4]
  float32, the object's first and last column and row (x0, y0, x1, y1) in pixels.
  """

  def __init__(
    self,
    records: Sequence[dict[str, Any]],
    *,
    saliency: str = "collection",
    maps: Path | None = None,
    origin: str = "the data set",
  ) -> None:
    """Takes tfds's records, data.saliency, for "auto" the folder of the maps, and a name for messages."""
    self._records = records
    self._saliency = saliency
    self._maps = maps
    self._origin = origin

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
    return self.read(index, ("name", "landmarks", "visible", "box", *_PICTURES))

  def read(self, index: int, fields: Sequence[str]) -> dict[str, Any]:
    """Some fields of example `index`; other pictures are not decoded."""
    with self._reading(index) as record:
      return {field: self._decode(record, field) for field in fields}

  def encoded_image(self, index: int) -> tuple[str, bytes]:
    """The name and the image file's bytes of example `index`."""
    with self._reading(index) as record:
      return record["name"].decode(), record["image"]

  @contextmanager
  def _reading(self, index: int) -> Iterator[dict[str, Any]]:
    if not -len(self) <= index < len(self):
      raise IndexError(index)
    try:
      yield self._records[int(index)]
    except UserError:
      raise
    # array_record, tfds and Pillow raise many kinds of errors for damaged files.
    except Exception as error:
      raise UserError(
        f"{self._origin}: record {index} can't be read ({' '.join(str(error).split())}): run "
        "scops_jax.prepare with the same config, which prepares a damaged data set again"
      ) from error

  def _decode(self, record: dict[str, Any], field: str) -> Any:
    if field == "name":
      return record["name"].decode()
    if field not in _PICTURES:
      return record[field]
    if field == "saliency" and self._maps is not None:
      return read_map(map_path(self._maps, record["name"].decode()), record["image"])
    if field == "saliency" and self._saliency != "collection":
      width, height = Image.open(io.BytesIO(record["image"])).size
      return np.full((height, width), 255, np.uint8)
    picture = Image.open(io.BytesIO(record[field]))
    return np.asarray(picture.convert("RGB") if field == "image" else picture)


@dataclass(frozen=True)
class Collection:
  """A prepared collection."""

  train: ExampleSource
  regression: ExampleSource  # to fit the landmark regression on; `train` if there is no such split
  test: ExampleSource
  landmark_names: tuple[str, ...]
  part_names: tuple[str, ...]  # index 0 is the background; empty: no ground-truth parts
  fingerprint: str  # of the data's content
  train_digest: str | None  # of the training images and their saliency; None: earlier versions kept none
  # Folders of the computed saliency maps (data.saliency = "auto") and of the prepared data; storage.mirror
  # has copies of those that lie in a bucket.
  maps: Path | None
  folder: Path


@dataclass(frozen=True)
class Preparation:
  """What `prepare_collection` did."""

  path: Path
  built: bool  # False: it was there already
  counts: dict[str, dict[str, int]]  # by split: how many were read, filtered (and why), written
  skipped: tuple[str, ...]  # why bad examples were left out (data.on_bad_example = "skip")
  summary: tuple[str, ...]  # lines about a folder of own images
  notes: tuple[str, ...]  # lines about a data set that is damaged, out of date or without its sources

  def __str__(self) -> str:
    head = f"prepared {self.path}" if self.built else f"{self.path} is there already; nothing to do"
    lines = [f"{split}: {describe(counts)}" for split, counts in self.counts.items()]
    skipped = [f"skipped: {reason}" for reason in self.skipped]
    return "\n".join([*self.notes, head, *lines, *skipped, *self.summary])


def prepare_collection(config: ConfigDict) -> Preparation:
  """Writes the tfds data set of `config.data.name` under `config.data.cache_dir`, unless it is there.

  A data set whose files differ from what was written, by their sizes or SHA-256, is prepared again.

  Raises:
    UserError: `data.name` is unknown, a split has no image, an example can't be read, the folder can't be
      written, or a damaged data set can't be prepared again.
  """
  if config.data.name not in BUILDERS:
    raise UserError(f"data.name={config.data.name!r} is not one of {', '.join(sorted(BUILDERS))}")
  if not config.data.cache_dir:
    raise UserError("data.cache_dir is empty: it should name a folder for prepared data sets")
  builder_class = BUILDERS[config.data.name]
  for key in ("dir", "saliency_dir"):
    if is_remote(config.data[key]):
      raise UserError(
        f"data.{key}={config.data[key]}: source files are read from a local folder; prepared data sets may "
        "lie in a bucket (data.cache_dir)"
      )
  try:
    variant, notes = _choose_variant(builder_class, config)
    named = as_path(config.data.cache_dir) / config.data.name / variant / str(builder_class.VERSION)
    # In a bucket a data set is complete once it has DIGESTS. Two hosts that prepare it at the same time write
    # the same files.
    folder, config = local_path(named), _on_disk(config)
    with only_writer(folder.parent):
      pull(named, flat=True)
      damage = find_damage(folder) if folder.exists() else None
      built = damage is not None or not folder.exists()
      if damage is not None:
        notes.append(f"{damage}: the data set is prepared again")
        rebuild(builder_class, config, folder, damage)
      elif built:
        write(builder_class, config, folder)
      push(named, flat=True, last=DIGESTS)
      metadata = _open_builder(config, folder).info.metadata
  except OSError as error:
    raise UserError(
      f"can't prepare {config.data.name} in data.cache_dir={config.data.cache_dir}: {error}"
    ) from error
  if metadata["skipped"] and config.data.on_bad_example == "error":
    raise UserError(
      f"{named} was prepared without {len(metadata['skipped'])} bad examples, the first: "
      f"{metadata['skipped'][0]} (set data.on_bad_example=skip, or delete the folder and repair the files)"
    )
  return Preparation(
    path=named,
    built=built,
    counts=metadata["counts"],
    skipped=tuple(metadata["skipped"]),
    summary=tuple(metadata.get("summary", ())),
    notes=tuple(notes),
  )


def open_collection(config: ConfigDict, preparation: Preparation | None = None) -> Collection:
  """Opens the collection of `config.data.name`.

  Args:
    config: the run's.
    preparation: from `prepare_collection`; None: calls it, with its errors, and prints what it did.
  """
  if preparation is None:
    preparation = prepare_collection(config)
    if preparation.built or preparation.summary or preparation.notes:
      print(preparation)
  builder = _open_builder(_on_disk(config), preparation.path)
  maps = _maps_folder(config, preparation.path) if config.data.saliency == "auto" else None
  sources = {
    split: ExampleSource(
      builder.as_data_source(split, decoders=UNDECODED),
      saliency=config.data.saliency,
      maps=None if maps is None else pull(maps),
      origin=f"{preparation.path}, split {split}",
    )
    for split in builder.splits
  }
  metadata = builder.info.metadata
  return Collection(
    train=sources["train"],
    regression=sources.get("regression", sources["train"]),
    test=sources["test"],
    landmark_names=tuple(metadata["landmark_names"]),
    part_names=tuple(metadata["part_names"]),
    fingerprint=f"{builder.info.full_name}/{metadata['digest']}/{config.data.saliency}",
    train_digest=metadata.get("train_digest"),
    maps=maps,
    folder=preparation.path,
  )


def _maps_folder(config: ConfigDict, prepared: Path) -> Path:
  """The folder of computed saliency maps: in a folder of own images, else beside the prepared data set.

  So maps of own images, and edits of them, are kept when the folder changes.
  """
  if config.data.saliency_dir:
    return Path(config.data.saliency_dir)
  if config.data.name == "image_folder":
    return Path(config.data.dir) / "saliency_auto"
  return prepared.parent / "saliency_auto"


def _choose_variant(builder_class: type[CollectionBuilder], config: ConfigDict) -> tuple[str, list[str]]:
  """The name of the config's data set, and notes about others of the same files."""
  variant = builder_class.variant(config)
  if not issubclass(builder_class, PublishedCollection):
    return variant, []
  home = as_path(config.data.cache_dir) / config.data.name
  prepared = home.glob(f"{builder_class.place(config)}-*/{builder_class.VERSION}/{DIGESTS}")
  others = sorted(prepared, key=modified)
  if not others or (home / variant / str(builder_class.VERSION)).exists():
    return variant, []
  latest = others[-1].parent.parent
  if not Path(config.data.dir).is_dir():
    return latest.name, [f"there is no folder data.dir={config.data.dir}: taking {latest} as it was prepared"]
  return variant, [f"files in {config.data.dir} have changed since {latest} was prepared (you may delete it)"]


def _on_disk(config: ConfigDict) -> ConfigDict:
  """Returns the config with the local copy's path as data.cache_dir."""
  if not is_remote(config.data.cache_dir):
    return config
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.data.cache_dir = str(local_path(config.data.cache_dir))
  return config


def _open_builder(config: ConfigDict, folder: Path) -> CollectionBuilder:
  with quiet_tfds():
    return BUILDERS[config.data.name](config, variant=folder.parent.name)
