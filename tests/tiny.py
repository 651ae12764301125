"""Small networks, batches and settings that compile in a second."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from scops_jax import models
from scops_jax.config import default_config
from scops_jax.models.layers import BatchNorm
from scops_jax.models.part_basis import PartBasis
from scops_jax.runs import setup
from scops_jax.train_step import Networks, TrainState

NUM_PARTS, CHANNELS = 3, 6


class Segmenter(models.Segmenter):
  """Two convolutions, logits at stride 4."""

  @nn.compact
  def __call__(self, images, train=False):
    x = nn.relu(nn.Conv(8, (5, 5), strides=4, dtype=images.dtype, name="trunk")(images))
    return nn.Conv(NUM_PARTS + 1, (3, 3), dtype=images.dtype, name="head_logits")(x)


class BatchNormSegmenter(models.Segmenter):
  """The same with a BatchNorm between them."""

  uses_batch_statistics: ClassVar[bool] = True

  @nn.compact
  def __call__(self, images, train=False, *, axis_name=None, passes=1):
    x = nn.Conv(8, (5, 5), strides=4, dtype=images.dtype, name="trunk")(images)
    x = nn.relu(BatchNorm(name="bn")(x, train=train, axis_name=axis_name, passes=passes))
    return nn.Conv(NUM_PARTS + 1, (3, 3), dtype=images.dtype, name="head_logits")(x)


class Reference(models.Reference):
  """One convolution at stride 8."""

  @nn.compact
  def __call__(self, images):
    return (nn.relu(nn.Conv(CHANNELS, (8, 8), strides=8, dtype=images.dtype)(images)),)


def networks(segmenter=None) -> Networks:
  basis = PartBasis(num_parts=NUM_PARTS, num_channels=CHANNELS)
  return Networks(segmenter or Segmenter(), Reference(layers=("conv",)), basis)


def config(**overrides):
  result = default_config()
  values = {
    "num_parts": NUM_PARTS,
    "batch_size": 4,
    "eval_batch_size": 4,
    "image_size": 16,
    "reference_image_size": 16,
    "num_steps": 10,
    # Large enough that a wrong term shows after a few steps.
    "optimizer.learning_rate": 1e-3,
  }
  result.update_from_flattened_dict(values | overrides)
  return result


def folder_config(root, monkeypatch, pictures, *, num_test=1, **overrides):
  """Returns the config of a run of these networks on own images [H, W, 3]; the last are for testing."""
  monkeypatch.setattr(setup, "create_networks", lambda config: networks())
  (root / "own" / "images").mkdir(parents=True)
  for index, pixels in enumerate(pictures):
    Image.fromarray(pixels).save(root / "own" / "images" / f"{index}.png")
  tested = range(len(pictures) - num_test, len(pictures))
  (root / "own" / "test.txt").write_text("".join(f"{index}.png\n" for index in tested))
  return config(
    **{
      "segmenter_weights": "random",
      "reference_weights": "random",
      "data.name": "image_folder",
      "data.dir": str(root / "own"),
      "data.cache_dir": str(root / "cache"),
      **overrides,
    }
  )


def batch(size=4, side=16, seed=0):
  rng = np.random.default_rng(seed)
  return {
    "image": rng.integers(0, 256, (size, side, side, 3), np.uint8),
    "saliency": rng.integers(0, 256, (size, side, side), np.uint8),
  }


def variables(nets: Networks, side=16):
  """Returns (params, batch statistics, reference variables)."""
  keys = jax.random.split(jax.random.key(0), 3)
  images = jnp.zeros((1, side, side, 3))
  segmenter = nets.segmenter.init(keys[0], images)
  params = {"segmenter": segmenter["params"], "basis": nets.basis.init(keys[1])["params"]}
  return params, segmenter.get("batch_stats", {}), nets.reference.init(keys[2], images)


def state(params, batch_stats, optimizer) -> TrainState:
  return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))
