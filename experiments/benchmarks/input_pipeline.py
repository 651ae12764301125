"""The input pipeline: batches from JPEG files of photographs' size, through tfds's array_record and Grain.

The files are drawn anew, into a temporary folder: cartoon faces of EDGE pixels with the noise of a camera.
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
from scops_jax.data.collection import ExampleSource
from scops_jax.data.pipeline import train_batches
from scops_jax.data.toy_faces.drawing import LANDMARK_NAMES, draw_face

EDGE = 448  # pixels; the photographs of CelebA have about as many
_NUM_IMAGES = 24
_QUALITY = 92  # of the JPEGs
_BUFFERED = 8  # batches: more than are read ahead


class JpegFaces(CollectionBuilder, skip_registration=True):  # type: ignore[call-arg]
  """Drawings as JPEG files."""

  splits = ("train",)
  landmark_names = LANDMARK_NAMES

  @classmethod
  def variant(cls, config: ConfigDict) -> str:
    """One variant."""
    del config
    return "benchmark"

  def list_records(self, split: str) -> Sequence[int]:
    """Indices."""
    del split
    return range(_NUM_IMAGES)

  def read_example(self, record: int) -> Example:
    """Draws one."""
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
  """Batches for a workload's training step; calling it takes the next one."""

  def __init__(self, folder: pathlib.Path) -> None:
    """Prepares the files."""
    config = workload.read_config(folder)
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    # Kept until the process ends: the records are read from it.
    self._cache = tempfile.TemporaryDirectory()
    config.data.cache_dir = self._cache.name
    with contextlib.redirect_stdout(io.StringIO()):  # tfds says that it downloads, which it does not
      JpegFaces(config).download_and_prepare(file_format="array_record")
    undecoded = {picture: tfds.decode.SkipDecoding() for picture in ("image", "saliency", "parts")}
    records = JpegFaces(config).as_data_source("train", decoders=undecoded)
    self.image_bytes = int(np.mean([len(record["image"]) for record in records]))
    self._batches = train_batches(
      ExampleSource(records),
      batch_size=config.batch_size,
      image_size=config.image_size,
      seed=config.seed,
      num_threads=config.data.num_threads,
    )

  def __call__(self) -> dict[str, Any]:
    """Takes the next batch."""
    return next(self._batches)

  def empty_buffer(self) -> None:
    """Takes what was read ahead while nobody asked."""
    for _ in range(_BUFFERED):
      next(self._batches)
