"""Batches of a collection's images, read ahead by Grain's threads and sharded over hosts.

Host i of n reads the i-th of n equal shards of every batch. In the order of the hosts, the shards make up the
batch that a single host would read.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scops_jax.data.collection import ExampleSource
from scops_jax.data.image_files import resize_pixels
from scops_jax.geometry import points_from_pixels


class Kept(NamedTuple):
  """An image's cached pixels and features."""

  image: NDArray[np.uint8]  # [S, S, 3]
  features: tuple[NDArray, ...]  # maps [h, w, C]


Batch = dict[str, Any]  # arrays; of features a tuple of them
Element = dict[str, Any]

_TRAIN_FIELDS = ("image", "saliency")
EVALUATION_FIELDS = ("image", "saliency", "landmarks", "visible", "box", "parts")


class TrainBatches(Iterator[Batch]):
  """Endless shuffled batches; `get_state` and `set_state` resume exactly."""

  def __init__(self, examples: grain.MapDataset, shard: "_Shard", options: grain.ReadOptions) -> None:
    """Takes the examples of all hosts, in order."""
    self._examples, self._shard, self._options = examples, shard, options
    self._taken = 0  # batches
    self._batches: Iterator[Batch] | None = None

  def __next__(self) -> Batch:
    if self._batches is None:
      self._batches = self._open()
    batch = next(self._batches)
    self._taken += 1
    return batch

  def get_state(self) -> dict[str, int]:
    """Returns the number of images that all hosts have taken, for JSON; it is the same on every host."""
    return {"next_index": self._taken * self._shard.global_size}

  def set_state(self, state: dict[str, int]) -> None:
    """Continues with the batch that followed `get_state`; the number of hosts may have changed."""
    self._taken = state["next_index"] // self._shard.global_size
    self._batches = None

  def _open(self) -> Iterator[Batch]:
    first = self._taken * self._shard.batch_size
    rows = grain.MapDataset.range(first, sys.maxsize)
    shard = rows.map(lambda row: self._examples[self._shard.position(row)])
    return iter(shard.to_iter_dataset(self._options).batch(self._shard.batch_size))


def train_batches(
  source: ExampleSource,
  *,
  batch_size: int,
  image_size: int,
  seed: int,
  num_threads: int,
  process_index: int = 0,
  process_count: int = 1,
  kept: Sequence[Kept] | None = None,
) -> TrainBatches:
  """Endless shuffled batches: `next(batches)`, and `get_state` / `set_state` to resume exactly.

  The epochs, each shuffled with its own seed, form one endless sequence that is cut into batches. So every
  batch is full, and a collection may be smaller than a batch.

  Args:
    source: the images.
    batch_size: B, images per batch on this host.
    image_size: S, height and width in pixels; other images are resized (bilinear).
    seed: of the order.
    num_threads: threads that read ahead; 0 reads in the caller's thread.
    process_index: this host.
    process_count: the number of hosts.
    kept: cached pixels and features of each image at image_size; with them the batches have features.

  Returns:
    An iterator over {"image": [B, S, S, 3] uint8, "saliency": [B, S, S] uint8}, with `kept` also
    {"features": a tuple of [B, h, w, C]}.
  """
  examples = image_order(len(source), seed).map(_Load(source, image_size, _TRAIN_FIELDS, kept))
  options = grain.ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=3 * batch_size if num_threads else 0
  )
  return TrainBatches(examples, _Shard(batch_size, process_index, process_count), options)


def image_order(num_images: int, seed: int) -> grain.MapDataset:
  """Returns the endless sequence of image indices that `train_batches` cuts into batches."""
  # Grain shuffles epoch e with seed + e. The seed is hashed first: otherwise a run with seed 1 would repeat
  # the epochs of a run with seed 0, one epoch earlier.
  order = int(np.random.SeedSequence(seed).generate_state(1)[0])
  return grain.MapDataset.range(num_images).shuffle(seed=order).repeat()


def evaluation_batches(
  source: ExampleSource,
  *,
  batch_size: int,
  image_size: int,
  num_threads: int = 2,
  process_index: int = 0,
  process_count: int = 1,
  fields: Sequence[str] = EVALUATION_FIELDS,
  kept: Sequence[Kept] | None = None,
) -> Iterator[Batch]:
  """Every image once, in order; the last batch is padded with the last image, where `valid` is False.

  All hosts yield the same number of batches; the last batch of the last hosts may be all padding.

  Args:
    source: the images.
    batch_size: B, images per batch on this host.
    image_size: S, height and width in pixels; other images are resized (bilinear, parts nearest).
    num_threads: threads that read ahead; 0 reads in the caller's thread.
    process_index: this host.
    process_count: the number of hosts.
    fields: the fields to read.
    kept: cached pixels and features of each image at image_size; with them the batches have features.

  Yields:
    {"image": [B, S, S, 3] uint8, "saliency": [B, S, S] uint8, "landmarks": [B, L, 2] float32 (x, y) where -1
    and 1 are the centres of the square's first and last pixel (see geometry.py), "visible": [B, L] bool,
    "box": [B, 4] float32 (x0, y0, x1, y1) in the same coordinates, "parts": [B, S, S] uint8}, or the fields
    asked for, and {"valid": [B] bool, "index": [B] int64}; with `kept` also {"features": a tuple of
    [B, h, w, C]}.
  """
  count = len(source)
  shard = _Shard(batch_size, process_index, process_count)
  rows = grain.MapDataset.range(-(-count // shard.global_size) * batch_size)
  load = _Load(source, image_size, fields, kept)

  def load_or_pad(row: int) -> Element:
    position = shard.position(row)
    index = min(position, count - 1)
    return {**load(index), "valid": np.bool_(position < count), "index": np.int64(index)}

  options = grain.ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=2 * batch_size if num_threads else 0
  )
  yield from rows.map(load_or_pad).to_iter_dataset(options).batch(batch_size)


@dataclasses.dataclass(frozen=True)
class _Shard:
  """This host's shard of every batch."""

  batch_size: int  # of this host
  process_index: int
  process_count: int

  @property
  def global_size(self) -> int:
    """Images per batch of all hosts."""
    return self.batch_size * self.process_count

  def position(self, row: int) -> int:
    """Returns the index, among the images of all hosts, of this host's image number `row`."""
    batch, offset = divmod(row, self.batch_size)
    return batch * self.global_size + self.process_index * self.batch_size + offset


@dataclasses.dataclass(frozen=True)
class _Load:
  """Reads an example and resizes it for the network."""

  source: ExampleSource
  image_size: int
  fields: Sequence[str]
  kept: Sequence[Kept] | None

  def __call__(self, index: int) -> Element:
    kept = None if self.kept is None else self.kept[index]
    fields = self.fields
    # Only coordinates need the original image: its size.
    if kept is not None and not {"landmarks", "box"}.intersection(fields):
      fields = [field for field in fields if field != "image"]
    example = self.source.read(index, fields)
    if "image" in example:
      height, width = example["image"].shape[:2]
      for field in {"landmarks", "box"}.intersection(example):
        pixels = example[field].reshape(-1, 2)  # a box is two points
        points = points_from_pixels(
          pixels, width=width, height=height, square=self.image_size, dtype=np.float32
        )
        example[field] = points.reshape(example[field].shape)
    for field, filter_ in (
      ("image", Image.Resampling.BILINEAR),
      ("saliency", Image.Resampling.BILINEAR),
      ("parts", Image.Resampling.NEAREST),
    ):
      if field in example:
        example[field] = resize_pixels(example[field], self.image_size, filter_)
    return example if kept is None else {**example, **kept._asdict()}
