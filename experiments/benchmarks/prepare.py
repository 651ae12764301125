"""Makes a workload: images, initial networks, and the random draws of training steps.

`step` runs it in a process of its own, python -m experiments.benchmarks.prepare FOLDER, where
FOLDER/request.json holds the arguments of `workload.load_config`.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from experiments.benchmarks import workload
from scops_jax import appearance, models, train_step, warp, weights
from scops_jax.config import check_values
from scops_jax.data.image_files import resize_pixels
from scops_jax.data.toy_faces.drawing import draw_face
from scops_jax.errors import UserError


def prepare(folder: pathlib.Path, config: ConfigDict) -> None:
  """Writes the workload of a config.

  Weights are random if the config's files are missing; a step takes as long with them.

  Raises:
    UserError: a value of the config can't serve.
  """
  check_values(config)
  try:
    models.check_image_size(config.segmenter, config.image_size)
    networks = train_step.create_networks(config)
  except ValueError as error:
    raise UserError(str(error)) from error
  segmenter_key, reference_key, basis_key = jax.random.split(jax.random.key(config.seed), 3)
  images = {
    "segmenter": jnp.zeros((1, config.image_size, config.image_size, 3)),
    "reference": jnp.zeros((1, config.reference_image_size, config.reference_image_size, 3)),
  }
  keys = {"segmenter": segmenter_key, "reference": reference_key}
  state_dicts = {}
  for name in workload.STATE_DICTS:
    variables = jax.jit(getattr(networks, name).init)(keys[name], images[name])
    source, model_name = config[f"{name}_weights"], config[name]
    if source == "imagenet" or pathlib.Path(source).exists():
      path = weights.resolve(source, model_name, f"{name}_weights")
      variables = weights.apply_state_dict(variables, weights.load_state_dict(path), model_name=model_name)
    state_dicts[name] = weights.to_state_dict(variables, model_name=model_name)
  basis = np.asarray(networks.basis.init(basis_key)["params"]["raw"])
  arrays = workload.Arrays(*draw_images(config.batch_size, config.image_size), basis)
  workload.save(folder, config, arrays, draw_transforms(config, workload.DRAWN_STEPS), **state_dicts)


def draw_images(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns cartoon faces [count, size, size, 3] and their saliency [count, size, size], both uint8."""
  faces = [draw_face(np.random.default_rng(index)) for index in range(count)]
  filter_ = Image.Resampling.BICUBIC
  images = [resize_pixels(face.image, size, filter_) for face in faces]
  return np.stack(images), np.stack([resize_pixels(face.saliency, size) for face in faces])


def draw_transforms(config: ConfigDict, steps: int) -> workload.Draws:
  """Draws what train_step draws in a run's first steps, with keys split as in compute_losses."""

  def draw(key: jax.Array) -> tuple[jax.Array, appearance.ColorJitter]:
    spatial_key, appearance_key = jax.random.split(key)
    points = warp.sample_spatial_transform(spatial_key, 1, config.spatial)
    jitter = appearance.sample_jitter(appearance_key, 1, config.appearance)
    return jax.tree.map(lambda x: x[0], (points, jitter))

  def draw_batch(step: jax.Array) -> workload.Draws:
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step), config.batch_size)
    points, jitter = jax.vmap(draw)(keys)
    return workload.Draws(points, *jitter)

  return jax.device_get(jax.jit(jax.vmap(draw_batch))(jnp.arange(steps)))


def main(arguments: list[str]) -> None:
  """Writes the workload that FOLDER/request.json asks for, and FOLDER/devices.json: what JAX runs on."""
  folder = pathlib.Path(arguments[0])
  request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
  try:
    prepare(folder, workload.load_config(**request))
  except UserError as error:
    sys.exit(f"error: {error}")
  devices = {"platform": jax.default_backend(), "devices": [device.device_kind for device in jax.devices()]}
  (folder / "devices.json").write_text(json.dumps(devices), encoding="utf-8")


if __name__ == "__main__":
  main(sys.argv[1:])
