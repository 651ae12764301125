"""A trained network as a function of images: scops_jax.load_predictor("toy_faces")("photo.jpg")."""

import functools
import os
import pathlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeAlias, overload

import chex
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scops_jax import geometry
from scops_jax.data.image_files import decode_picture, pad_batch, read_image, resize_image
from scops_jax.dense_crf import dense_crf
from scops_jax.kernels.compilation import jit
from scops_jax.prediction.labels import resize_maps
from scops_jax.prediction.overlay import overlay_parts
from scops_jax.prediction.restore import load_segmenter
from scops_jax.prediction.segmenter import Segmenter
from scops_jax.train_step import predict_step

# A file's path, Pillow's image of any mode, or uint8 [H, W, 3] RGB.
OneImage: TypeAlias = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]


class PartPrediction(NamedTuple):
  """The parts in images; label and channel 0 are the background. Without B for a single image."""

  labels: chex.Array  # uint8 [B, H, W], the likeliest channel
  probs: chex.Array  # float32 [B, H, W, K+1], sums to 1 over the channels
  centers: chex.Array  # float32 [B, K, 2], soft part centres (x, y) in the network's square, see geometry.py


def load_predictor(
  workdir: str | pathlib.Path, *, batch_size: int | None = None, crf: bool = False
) -> "Predictor":
  """Loads a trained network.

  Args:
    workdir: a run's directory, whose newest checkpoint is used; a file that `python -m scops_jax.export` has
      written, NAME.scops; or "toy_faces", the network of the default run, which comes with this package.
    batch_size: images per call of the network; None: `fast_batch_size`.
    crf: whether a dense CRF sharpens the maps along the image's edges.

  Returns:
    A function of images, see Predictor.

  Raises:
    UserError: there is no such network, or it is damaged.
  """
  return Predictor(load_segmenter(workdir), batch_size=batch_size, crf=crf)


class Predictor:
  """Finds the parts in images of any size.

  The network sees each image resized to image_size², as in training. Its soft maps are resized to the image,
  as Pillow does it, before the likeliest channel is taken. The centres are those of the maps before that, in
  the square's frame: `geometry.pixels_from_points` gives pixels of the image. Small batches are padded to a
  power of two, so that few programs are compiled.

  Attributes:
    num_parts: K.
    part_names: of parts 1..K, or ().
    image_size: of the network's square, pixels.
  """

  def __init__(self, segmenter: Segmenter, *, batch_size: int | None = None, crf: bool = False) -> None:
    if batch_size is not None and batch_size < 1:
      raise ValueError(f"expected batch_size >= 1, got {batch_size}")
    self._batch_size = batch_size or fast_batch_size()
    self._predict = compile_segmenter(segmenter, crf=crf)
    self.image_size: int = segmenter.config.image_size
    self.num_parts: int = segmenter.config.num_parts
    self.part_names = segmenter.part_names

  @overload
  def __call__(self, images: OneImage) -> PartPrediction: ...

  @overload
  def __call__(self, images: list[Any] | tuple[Any, ...]) -> list[PartPrediction]: ...

  def __call__(self, images: OneImage | list[Any] | tuple[Any, ...]) -> PartPrediction | list[PartPrediction]:
    """Finds the parts.

    Args:
      images: one image (a file's path, Pillow's image, or uint8 `[H, W, 3]` RGB), a list of them, of any
        sizes, or uint8 `[B, H, W, 3]` RGB, B at least 1.

    Returns:
      Of one image labels uint8 `[H, W]`, probs float32 `[H, W, K+1]` and centers float32 `[K, 2]`, NumPy
      arrays; of a list a list of these; of `[B, H, W, 3]` the same arrays with a leading B. Image files are
      turned upright. probs takes 4 (K + 1) bytes for each pixel.

    Raises:
      TypeError, ValueError: an image is of another type, dtype or shape.
      UserError: a file can't be read.
    """
    if isinstance(images, list | tuple):
      found = self.find_maps(pictures := [open_picture(image) for image in images])
      return [_at_size(maps, picture.size) for maps, picture in zip(found, pictures, strict=True)]
    if getattr(images, "ndim", None) != 4:
      (maps,) = self.find_maps([picture := open_picture(images)])
      return _at_size(maps, picture.size)
    batch = np.asarray(images)
    if batch.shape[3] != 3 or 0 in batch.shape:
      raise ValueError(f"expected images [B, H, W, 3] with B, H, W >= 1, got shape {batch.shape}")
    found = self.find_maps([open_picture(image) for image in batch])
    return PartPrediction(
      *map(np.stack, zip(*(_at_size(maps, batch.shape[2:0:-1]) for maps in found), strict=True))
    )

  def overlay(
    self,
    image: OneImage,
    *,
    shown: Collection[int] | None = None,
    opacity: float = 0.5,
    numbers: bool = True,
    legend: bool = True,
  ) -> Image.Image:
    """Draws the parts over an image.

    Args:
      image: one image, as above.
      shown: the parts that are drawn, of 1..K; None: all.
      opacity: of the colours, 0 to 1.
      numbers: whether the parts' centres are marked with their numbers.
      legend: whether a legend is added below the image.

    Returns:
      RGB; an image whose longer side is below 300 pixels is enlarged.
    """
    picture = open_picture(image)
    (maps,) = self.find_maps([picture])
    return overlay_parts(
      picture,
      maps.probs,
      maps.centers,
      names=self.part_names,
      shown=shown,
      opacity=opacity,
      numbers=numbers,
      legend=legend,
    )

  def find_maps(self, pictures: Sequence[Image.Image]) -> list[PartPrediction]:
    """Returns the network's output for RGB images, at image_size²."""
    size = padded_batch_size(len(pictures), self._batch_size)
    found: list[PartPrediction] = []
    for start in range(0, len(pictures), size):
      pixels = [resize_image(picture, self.image_size) for picture in pictures[start : start + size]]
      arrays = jax.device_get(self._predict(pad_batch(np.stack(pixels), size)))
      found.extend(PartPrediction(*(array[i] for array in arrays)) for i in range(len(pixels)))
    return found


def open_picture(image: OneImage) -> Image.Image:
  """Returns an image as Pillow's, RGB and upright; transparent pixels are blended with white.

  Raises:
    TypeError, ValueError: it is not one of the types of OneImage, or an array of another dtype or shape.
    UserError: the file can't be read.
  """
  if isinstance(image, str | os.PathLike):
    return read_image(pathlib.Path(image)).image
  if isinstance(image, Image.Image):
    plain = image.mode == "RGB" and not image.has_transparency_data and not image.getexif()
    return image if plain else decode_picture(image.copy()).image
  pixels = np.asarray(image)
  if pixels.dtype != np.uint8:
    raise TypeError(
      f"expected a path, Pillow's image, or an array of dtype uint8, RGB 0..255, got {pixels.dtype}"
    )
  if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
    raise ValueError(f"expected an image [H, W, 3] or images [B, H, W, 3], got shape {pixels.shape}")
  return Image.fromarray(pixels)


def _at_size(maps: PartPrediction, size: tuple[int, int]) -> PartPrediction:
  """Returns the maps of one image at its (width, height)."""
  width, height = size
  if maps.labels.shape == (height, width):
    return maps
  probs = resize_maps(maps.probs, height, width)
  return maps._replace(probs=probs, labels=probs.argmax(axis=-1).astype(np.uint8))


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
