"""Prepares the collection that a config names, and opens it for random access."""

import fcntl
import io
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from scops_jax.data.builder import CollectionBuilder, describe
from scops_jax.data.folder.collection import ImageFolder
from scops_jax.data.published.aflw import Aflw
from scops_jax.data.published.celeba_wild import CelebaWild
from scops_jax.data.published.cub_parts import CubParts
from scops_jax.data.published.pascal_parts import PascalParts
from scops_jax.data.saliency_maps import map_path, read_map
from scops_jax.data.toy_faces.collection import ToyFaces
from scops_jax.errors import UserError

BUILDERS: dict[str, type[CollectionBuilder]] = {
  "aflw": Aflw,
  "celeba_wild": CelebaWild,
  "cub_parts": CubParts,
  "image_folder": ImageFolder,
  "pascal_parts": PascalParts,
  "toy_faces": ToyFaces,
}
_PICTURES = ("image", "saliency", "parts")


class ExampleSource(Sequence):
  """The examples of a split: `source[i]` reads and decodes example i.

  An example is a dict: name (str), image [H, W, 3] uint8, saliency [H, W] uint8 (0..255 for 0..1), landmarks
  [L, 2] float32 (x, y) in pixels, visible [L] bool, parts [H, W] uint8 (index into the part names), box [4]
  float32, the object's first and last column and row (x0, y0, x1, y1) in pixels.
  """

  def __init__(
    self, records: Sequence[dict[str, Any]], *, saliency: str = "collection", maps: Path | None = None
  ) -> None:
    """Takes tfds's records, the value of data.saliency and, if it is "auto", the folder of the maps."""
    self._records = records
    self._saliency = saliency
    self._maps = maps

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
    return self.read(index, ("name", "landmarks", "visible", "box", *_PICTURES))

  def read(self, index: int, fields: Sequence[str]) -> dict[str, Any]:
    """Some fields of example `index`; other pictures are not decoded."""
    record = self._records[int(index)]
    return {field: self._decode(record, field) for field in fields}

  def encoded_image(self, index: int) -> tuple[str, bytes]:
    """The name and the image file's bytes of example `index`."""
    record = self._records[int(index)]
    return record["name"].decode(), record["image"]

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
  maps: Path | None  # folder of the computed saliency maps (data.saliency = "auto")
  folder: Path  # of the prepared data set


@dataclass(frozen=True)
class Preparation:
  """What `prepare_collection` did."""

  path: Path
  built: bool  # False: it was there already
  counts: dict[str, dict[str, int]]  # by split: how many were read, filtered (and why), written
  skipped: tuple[str, ...]  # why bad examples were left out (data.on_bad_example = "skip")
  summary: tuple[str, ...]  # lines about a folder of own images

  def __str__(self) -> str:
    head = f"prepared {self.path}" if self.built else f"{self.path} is there already; nothing to do"
    lines = [f"{split}: {describe(counts)}" for split, counts in self.counts.items()]
    return "\n".join([head, *lines, *(f"skipped: {reason}" for reason in self.skipped), *self.summary])


def prepare_collection(config: ConfigDict) -> Preparation:
  """Writes the tfds data set of `config.data.name` under `config.data.cache_dir`, unless it is there.

  Raises:
    UserError: `data.name` is unknown, a split has no image, an example can't be read, or the folder can't be
      written.
  """
  try:
    with _quiet_tfds():
      builder = _builder(config)
      with _only_writer(builder):
        built = not builder.is_prepared()
        if built:
          _write(builder)
      builder = _builder(config)  # reads what this or another process has written
  except OSError as error:
    raise UserError(
      f"can't prepare {config.data.name} in data.cache_dir={config.data.cache_dir}: {error}"
    ) from error
  metadata = builder.info.metadata
  if metadata["skipped"] and config.data.on_bad_example == "error":
    raise UserError(
      f"{builder.data_dir} was prepared without {len(metadata['skipped'])} bad examples, the first: "
      f"{metadata['skipped'][0]} (set data.on_bad_example=skip, or delete the folder and repair the files)"
    )
  return Preparation(
    path=Path(builder.data_dir),
    built=built,
    counts=metadata["counts"],
    skipped=tuple(metadata["skipped"]),
    summary=tuple(metadata.get("summary", ())),
  )


def open_collection(config: ConfigDict, preparation: Preparation | None = None) -> Collection:
  """Opens the collection of `config.data.name`.

  Args:
    config: the run's.
    preparation: from `prepare_collection`; None: calls it, with its errors, and prints what it did.
  """
  if preparation is None:
    preparation = prepare_collection(config)
    if preparation.built or preparation.summary:
      print(preparation)
  with _quiet_tfds():
    builder = _builder(config)
  undecoded = {picture: tfds.decode.SkipDecoding() for picture in _PICTURES}
  maps = _maps_folder(config, preparation.path) if config.data.saliency == "auto" else None
  sources = {
    split: ExampleSource(
      builder.as_data_source(split, decoders=undecoded), saliency=config.data.saliency, maps=maps
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


def _builder(config: ConfigDict) -> CollectionBuilder:
  if config.data.name not in BUILDERS:
    raise UserError(f"data.name={config.data.name!r} is not one of {', '.join(sorted(BUILDERS))}")
  return BUILDERS[config.data.name](config)


@contextmanager
def _quiet_tfds() -> Iterator[None]:
  """Suppresses tfds's messages, which speak of downloads although there are none."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)


@contextmanager
def _only_writer(builder: CollectionBuilder) -> Iterator[None]:
  """Holds the data set's lock, which the system releases if the process dies."""
  folder = Path(builder.data_dir).parent
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / "lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def _write(builder: CollectionBuilder) -> None:
  for leftover in Path(builder.data_dir).parent.glob("incomplete.*"):  # of a killed preparation
    shutil.rmtree(leftover)
  options = tfds.download.DownloadConfig(try_download_gcs=False)
  builder.download_and_prepare(download_config=options, file_format="array_record")
