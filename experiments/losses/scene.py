"""What the studies look at: two drawn faces, their features and masks, and a spatial transform."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scops_jax import config as config_module
from scops_jax import geometry, train_step, warp
from scops_jax.data.toy_faces.canvas import CLOTHES, HAIR, NECK
from scops_jax.data.toy_faces.drawing import draw_face
from scops_jax.evaluation import factorization
from scops_jax.runs import setup

FACES = (27, 24)  # of the drawings, those studied
NUM_PARTS = 4
_RIM = 0.5  # of the longest feature, below which a position is left out of the clusters


class Scene(NamedTuple):
  """The inputs of the losses, constant while logits and part basis are optimised.

  The map of the pictures' size is H × W = S × S.
  """

  images: np.ndarray  # [2, P, P, 3] uint8, for pictures only
  warped_image: np.ndarray  # [P, P, 3] uint8, the first after the transform
  features: jax.Array  # [2, h, w, C] float32, of the frozen network, mean square 1
  saliency: jax.Array  # [2, S, S] in [0, 1]
  colors: jax.Array  # [2, S, S, 3], 0..255, the images
  basis: jax.Array  # [K, C], clusters of both images' features, where the toy faces' training starts too
  grid: jax.Array  # [1, S, S, 2], the transform: where each target pixel reads
  example_logits: (
    jax.Array
  )  # [1, S, S, K+1], a sensible segmentation of the first image: hair, face, neck, clothes


def make_scene(size: int = 64, *, reference_weights: str = "imagenet", reference_size: int = 257) -> Scene:
  """Draws the faces and computes their features with the reference of configs/toy_faces.py.

  Args:
    size: S, side of the part maps, pixels; the pictures have twice that.
    reference_weights: as the config's.
    reference_size: side of the reference's input, pixels.
  """
  faces = [draw_face(np.random.default_rng([7, 0, index]), 2 * size) for index in FACES]
  images = np.stack([face.image for face in faces])
  saliency = np.stack([face.saliency for face in faces]).astype(np.float32) / 255
  saliency = saliency.reshape(2, size, 2, size, 2).mean(axis=(2, 4))
  points = warp.similarity_transform(
    warp.control_lattice()[None],
    angle=jnp.array([0.5]),
    scale=jnp.array([0.85]),
    shift=jnp.array([[0.1, -0.05]]),
  )
  fine = warp.thin_plate_grid(points, 2 * size, 2 * size)
  warped = warp.warp(jnp.asarray(images[:1], jnp.float32), fine)
  features = _features(images, reference_weights, reference_size)
  resized = geometry.resize_bilinear(jnp.asarray(saliency)[..., None], *features.shape[1:3])
  salient = features * resized
  factors = factorization.fit_dff(jax.random.key(0), salient, num_parts=NUM_PARTS, num_iterations=50)
  return Scene(
    images=images,
    warped_image=np.asarray(warped[0]).astype(np.uint8),
    features=features,
    saliency=jnp.asarray(saliency),
    colors=jnp.asarray(images.reshape(2, size, 2, size, 2, 3).mean(axis=(2, 4)), jnp.float32),
    basis=factorization.cluster_basis(factors, salient, background=_RIM),
    grid=warp.thin_plate_grid(points, size, size),
    example_logits=_example_logits(faces[0].parts[::2, ::2]),
  )


def _features(images: np.ndarray, weights: str, size: int) -> jax.Array:
  config = config_module.default_config()
  config.update({"num_parts": NUM_PARTS, "reference_weights": weights, "reference_image_size": size})
  networks = setup.create_networks(config)
  variables = setup.load_reference(networks, config)
  (maps,) = jax.jit(lambda v, x: train_step.reference_features(v, x, networks=networks, config=config))(
    variables, images
  )
  return maps / jnp.sqrt(jnp.mean(maps**2))


def _example_logits(drawn: np.ndarray) -> jax.Array:
  """Returns logits [1, S, S, 5] that are 5 for the drawing's hair, face, neck or clothes at each pixel."""
  groups = {HAIR: 1, NECK: 3, CLOTHES: 4}
  labels = np.where(drawn > 0, 2, 0)
  for part, group in groups.items():
    labels[drawn == part] = group
  return 5.0 * jax.nn.one_hot(labels, NUM_PARTS + 1)[None]
