"""The input pipeline: batches from JPEG files as large as photographs, through tfds's array_record and Grain.

The files are drawn into a temporary folder: cartoon faces of EDGE × EDGE pixels.
"""

import contextlib
import io
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from experiments.benchmarks import workload
from scops_jax.data.builder import CollectionBuilder, Example
from scops_jax.data.collection import UNDECODED, ExampleSource
from scops_jax.data.pipeline import train_batches
from scops_jax.data.toy_faces.drawing import LANDMARK_NAMES, draw_face
from scops_jax.data.workers import num_workers

EDGE = 448  # pixels; CelebA's photographs are about this large
_NUM_IMAGES = 24
_QUALITY = 92  # of the JPEGs
_BUFFERED = 8  # batches; more than the pipeline reads ahead


class JpegFaces(CollectionBuilder, skip_registration=True):  # type: ignore[call-arg]
  """Drawings as JPEG files."""

  splits = ("train",)
  landmark_names = LANDMARK_NAMES

  @classmethod
  def variant(cls, config: ConfigDict) -> str:
    """All configs share one variant."""
    del config
    return "benchmark"

  def list_records(self, split: str) -> Sequence[int]:
    """A record is the drawing's seed."""
    del split
    return range(_NUM_IMAGES)

  def read_example(self, record: int) -> Example:
    """Draws one image."""
    face = draw_face(np.random.default_rng(record), EDGE)
    stream = io.BytesIO()
    Image.fromarray(face.image).save(stream, "JPEG", quality=_QUALITY)
    return Example(
      name=f"{record}",
      image=stream.getvalue(),
      landmarks=face.landmarks,
      visible=face.visible,
      saliency=face.saliency,
    )


class InputPipeline:
  """Batches for a workload's training step; a call takes the next one."""

  def __init__(self, folder: pathlib.Path) -> None:
    """Draws the files and opens the pipeline."""
    config = workload.read_config(folder)
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    # The records are read from it until the process ends.
    self._cache = tempfile.TemporaryDirectory()
    config.data.cache_dir = self._cache.name
    with contextlib.redirect_stdout(io.StringIO()):  # tfds claims to download something
      JpegFaces(config).download_and_prepare(file_format="array_record")
    records = JpegFaces(config).as_data_source("train", decoders=UNDECODED)
    self.image_bytes = int(np.mean([len(record["image"]) for record in records]))
    self._batches = train_batches(
      ExampleSource(records),
      batch_size=config.batch_size,
      image_size=config.image_size,
      seed=config.seed,
      num_threads=num_workers(config.data),
    )

  def __call__(self) -> dict[str, Any]:
    """Takes the next batch."""
    return next(self._batches)

  def empty_buffer(self) -> None:
    """Takes the batches that were read ahead while nothing was timed."""
    for _ in range(_BUFFERED):
      next(self._batches)
