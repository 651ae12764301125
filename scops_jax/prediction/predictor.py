"""A run's network as a function of images: scops_jax.load_predictor(workdir)(images)."""

import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from scops_jax import geometry
from scops_jax.data.image_files import pad_batch, resize_pixels
from scops_jax.dense_crf import dense_crf
from scops_jax.kernels.compilation import jit
from scops_jax.prediction.labels import resize_maps
from scops_jax.prediction.restore import Segmenter, load_segmenter
from scops_jax.train_step import predict_step


class PartPrediction(NamedTuple):
  """The parts in a batch of images; label and channel 0 are the background."""

  labels: chex.Array  # uint8 [B, H, W], the likeliest channel
  probs: chex.Array  # float32 [B, H, W, K+1], sums to 1 over the channels
  centers: chex.Array  # float32 [B, K, 2], soft part centres (x, y) in the network's square, see geometry.py


def load_predictor(workdir: str | pathlib.Path, *, batch_size: int | None = None) -> "Predictor":
  """Loads the newest checkpoint of a run.

  Args:
    workdir: the run's directory.
    batch_size: images per call of the network; None: `fast_batch_size`.

  Returns:
    A function of images, see Predictor.

  Raises:
    UserError: no run, or no checkpoint yet.
  """
  return Predictor(load_segmenter(workdir), batch_size=batch_size)


class Predictor:
  """Finds the parts in images of any size.

  The network sees each image resized to image_size², as in training. Its soft maps are resized to the image,
  as Pillow does it, before the likeliest channel is taken. The centres are those of the maps before that, in
  the square's frame: `geometry.pixels_from_points` gives pixels of the image. Small batches are padded to a
  power of two, so that few programs are compiled.
  """

  def __init__(self, segmenter: Segmenter, *, batch_size: int | None = None) -> None:
    if batch_size is not None and batch_size < 1:
      raise ValueError(f"expected batch_size >= 1, got {batch_size}")
    self._batch_size = batch_size or fast_batch_size()
    self._predict = compile_segmenter(segmenter)
    self.image_size: int = segmenter.config.image_size
    self.num_parts: int = segmenter.config.num_parts

  def __call__(self, images: NDArray[np.uint8]) -> PartPrediction:
    """Finds the parts.

    Args:
      images: uint8 `[B, H, W, 3]` RGB, B at least 1.

    Returns:
      Labels uint8 `[B, H, W]`, probs float32 `[B, H, W, K+1]` and centers float32 `[B, K, 2]`, NumPy arrays.

    Raises:
      TypeError, ValueError: `images` has another dtype or shape.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
      raise TypeError(f"expected images of dtype uint8, RGB 0..255, got {images.dtype}")
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
      raise ValueError(f"expected images [B, H, W, 3] with B, H, W >= 1, got shape {images.shape}")
    size = padded_batch_size(len(images), self._batch_size)
    found = [self._predict_batch(images[i : i + size], size) for i in range(0, len(images), size)]
    return PartPrediction(*map(np.concatenate, zip(*found, strict=True)))

  def _predict_batch(self, images: NDArray[np.uint8], size: int) -> PartPrediction:
    height, width = images.shape[1:3]
    pixels = np.stack([resize_pixels(image, self.image_size) for image in images])
    arrays = jax.device_get(self._predict(pad_batch(pixels, size)))
    maps = PartPrediction(*(array[: len(images)] for array in arrays))
    if (height, width) != pixels.shape[1:3]:
      probs = np.stack([resize_maps(image, height, width) for image in maps.probs])
      maps = maps._replace(probs=probs, labels=probs.argmax(axis=-1).astype(np.uint8))
    return maps


def fast_batch_size() -> int:
  """Returns how many images to give the network at once; on a CPU few, whose maps stay in its caches."""
  return 8 if jax.default_backend() == "cpu" else 32


def padded_batch_size(count: int, limit: int) -> int:
  """Returns the batch size for `count` images: the next power of two, or `limit` if that is smaller."""
  return min(limit, 1 << (count - 1).bit_length())


def compile_segmenter(segmenter: Segmenter, *, crf: bool = False) -> Callable[[chex.Array], PartPrediction]:
  """Returns `predict_parts` as a function of images alone, compiled once for each B.

  It returns arrays on the device, before they are computed.
  """
  compiled = jit(functools.partial(predict_parts, segmenter, crf=crf))
  weights = jax.device_put((segmenter.params, segmenter.batch_stats))
  return lambda images: compiled(images, weights)


def predict_parts(
  segmenter: Segmenter, images: chex.Array, weights: chex.ArrayTree, *, crf: bool = False
) -> PartPrediction:
  """Finds the parts at the network's own size; a pure function.

  Args:
    segmenter: the networks and config; its own parameters are not used.
    images: uint8 `[B, S, S, 3]` RGB, S = config.image_size.
    weights: the segmenter's (params, batch_stats).
    crf: whether to refine the maps by dense_crf with config.crf; labels and centres are then those of the
      refined maps.

  Returns:
    The parts at S × S pixels.
  """
  params, batch_stats = weights
  maps = predict_step(params, batch_stats, images, networks=segmenter.networks, config=segmenter.config)
  if not crf:
    return PartPrediction(maps["labels"], maps["probs"], maps["centers"])
  options = segmenter.config.crf.to_dict()
  if not options["num_iterations"]:  # 0 turns the CRF off in evaluations; here, take dense_crf's default
    del options["num_iterations"]
  probs = dense_crf(maps["probs"], images, **options)
  return PartPrediction(
    jnp.argmax(probs, axis=-1).astype(jnp.uint8), probs, geometry.part_centers(probs, epsilon=0.0)
  )
