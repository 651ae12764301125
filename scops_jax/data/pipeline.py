"""Batches of a collection's images, read ahead by Grain's threads and sharded over hosts."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scops_jax.data.collection import ExampleSource
from scops_jax.data.image_files import resize_pixels

Batch = dict[str, NDArray]
Element = dict[str, Any]

_TRAIN_FIELDS = ("image", "saliency")
_EVALUATION_FIELDS = ("image", "saliency", "landmarks", "visible", "box", "parts")


def train_batches(
  source: ExampleSource,
  *,
  batch_size: int,
  image_size: int,
  seed: int,
  num_threads: int,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.DatasetIterator:
  """Endless shuffled batches: `next(batches)`, and `get_state` / `set_state` to resume exactly.

  All hosts share one endless order, in which every epoch is shuffled anew from the seed; host i of n takes
  elements i, i + n, i + 2n, … of it. So every batch is full, and a collection may be smaller than a batch.

  Args:
    source: the images.
    batch_size: B, images a batch on this host.
    image_size: S, pixels a side; other images are resized (bilinear).
    seed: of the order.
    num_threads: threads that read ahead; 0 reads in the caller's.
    process_index: this host.
    process_count: the number of hosts.

  Returns:
    An iterator over {"image": [B, S, S, 3] uint8, "saliency": [B, S, S] uint8}. Its state is a dict that JSON
    can hold; after `set_state` the next batch is the one that came next when `get_state` was called.
  """
  # Grain shuffles epoch e with seed + e: spread the seeds, or run 1 would have run 0's epochs one later.
  order = int(np.random.SeedSequence(seed).generate_state(1)[0])
  indices = grain.MapDataset.range(len(source)).shuffle(seed=order).repeat()
  examples = indices[process_index::process_count].map(_Load(source, image_size, _TRAIN_FIELDS))
  options = grain.ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=3 * batch_size if num_threads else 0
  )
  return iter(examples.to_iter_dataset(options).batch(batch_size, drop_remainder=True))


def evaluation_batches(
  source: ExampleSource,
  *,
  batch_size: int,
  image_size: int,
  limit: int = 0,
  num_threads: int = 2,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """Every image once, in order; the last batch is padded with the last image and `valid` is False there.

  All hosts yield the same number of batches; host i of n has images i, i + n, ….

  Args:
    source: the images.
    batch_size: B, images a batch on this host.
    image_size: S, pixels a side; other images are resized (bilinear; parts to the nearest pixel).
    limit: the number of images, from the first on; 0: all.
    num_threads: threads that read ahead; 0 reads in the caller's.
    process_index: this host.
    process_count: the number of hosts.

  Yields:
    {"image": [B, S, S, 3] uint8, "saliency": [B, S, S] uint8, "landmarks": [B, L, 2] float32 (x, y) where -1
    and 1 are the centres of the first and last pixel, "visible": [B, L] bool, "box": [B, 4] float32 (x0, y0,
    x1, y1) in the same coordinates, "parts": [B, S, S] uint8, "valid": [B] bool, "index": [B] int64}.
  """
  count = min(limit or len(source), len(source))
  padded = -(-count // (batch_size * process_count)) * batch_size * process_count
  indices = grain.MapDataset.range(padded)[process_index::process_count]
  load = _Load(source, image_size, _EVALUATION_FIELDS)

  def load_or_pad(index: int) -> Element:
    example = load(min(index, count - 1))
    return {**example, "valid": np.bool_(index < count), "index": np.int64(min(index, count - 1))}

  options = grain.ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=2 * batch_size if num_threads else 0
  )
  yield from indices.map(load_or_pad).to_iter_dataset(options).batch(batch_size)


@dataclasses.dataclass(frozen=True)
class _Load:
  """Reads one example and brings it to the network's size."""

  source: ExampleSource
  image_size: int
  fields: Sequence[str]

  def __call__(self, index: int) -> Element:
    example = self.source.read(index, self.fields)
    height, width = example["image"].shape[:2]
    last = np.asarray([width - 1, height - 1], np.float32)
    if "landmarks" in example:
      example["landmarks"] = 2 * example["landmarks"] / last - 1
    if "box" in example:
      example["box"] = 2 * example["box"] / np.tile(last, 2) - 1
    for field, filter_ in (
      ("image", Image.Resampling.BILINEAR),
      ("saliency", Image.Resampling.BILINEAR),
      ("parts", Image.Resampling.NEAREST),
    ):
      if field in example:
        example[field] = resize_pixels(example[field], self.image_size, filter_)
    return example
