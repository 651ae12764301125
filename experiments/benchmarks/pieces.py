"""The JAX training step and its pieces, compiled with the options of the step, ready to be timed."""

import ast
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import workload
from scops_jax import appearance, geometry, losses, models, train_step, warp, weights
from scops_jax.kernels.compilation import jit
from scops_jax.kernels.memory import compute_in_calling_thread, map_large_blocks
from scops_jax.optimizer import stop_frozen
from scops_jax.runs import parallel

Piece = Callable[[], Any]


class Step:
  """The training step on a workload, compiled as in a run; a call does the next step."""

  def __init__(self, folder: pathlib.Path, options: Sequence[str] = ()) -> None:
    """Reads the workload; options "KEY=VALUE" change config keys."""
    compute_in_calling_thread()
    map_large_blocks()  # as a run does
    self.config = config = workload.read_config(folder)
    for option in options:
      key, _, value = option.partition("=")
      config.update_from_flattened_dict({key: _parse(value)})
    self.arrays, self.draws = workload.read_arrays(folder)
    self.networks = train_step.create_networks(config)
    segmenter = self._read_variables(folder, "segmenter")
    reference = self._read_variables(folder, "reference")
    params = {"segmenter": segmenter["params"], "basis": {"raw": jnp.asarray(self.arrays.basis)}}
    self.optimizer = train_step.create_optimizer(self.networks, params, config)
    config.eval_batch_size = config.batch_size  # unused here, but compile_steps checks it
    self.compiled = parallel.compile_steps(self.networks, self.optimizer, config)
    state = train_step.TrainState(
      jnp.zeros((), jnp.int32), params, segmenter.get("batch_stats", {}), self.optimizer.init(params)
    )
    self.state, self.reference = self.compiled.replicate(state), self.compiled.replicate(reference)

  def _read_variables(self, folder: pathlib.Path, name: str) -> dict[str, Any]:
    network, model_name = getattr(self.networks, name), self.config[name]
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    abstract = jax.eval_shape(network.init, jax.random.key(0), image)
    state_dict = weights.load_state_dict(folder / f"{name}.npz")
    return weights.apply_state_dict(abstract, state_dict, model_name=model_name, require_head=True)

  def __call__(self) -> dict[str, jax.Array]:
    """Does one update; returns each term, their weighted sum "loss" and "gradient_norm"."""
    batch = self.compiled.shard_batch({"image": self.arrays.images, "saliency": self.arrays.saliency})
    self.state, metrics = self.compiled.train(self.state, batch, self.reference)
    del metrics["finite"]  # no number
    return jax.block_until_ready(metrics)


def _parse(value: str) -> Any:
  try:
    return ast.literal_eval(value)
  except (SyntaxError, ValueError):
    return value


def build(step: Step) -> dict[str, Piece]:
  """Returns the pieces of a step by name; a call of a piece waits for its result."""
  return {**_network_pieces(step), **_transform_pieces(step), **_loss_pieces(step)}


_jit = functools.partial(jit, training=True)


def _compiled(function: Callable, *arguments: Any) -> Piece:
  call = functools.partial(_jit(function), *jax.device_put(arguments))
  return lambda: jax.block_until_ready(call())


def _network_pieces(step: Step) -> dict[str, Piece]:
  config, networks, state = step.config, step.networks, step.state
  params, batch_stats = state.params["segmenter"], state.batch_stats
  trainable = train_step.trainable_parameters(networks, params, config)
  images = step.arrays.images.astype(np.float32)
  normalized = models.normalize(config.segmenter, jnp.asarray(images))
  cotangents = [jnp.asarray(workload.random_logits(config, seed)) for seed in (0, 1)]

  def forward(params: Any, batch_stats: Any, images: jax.Array) -> Any:
    variables = {"params": params, "batch_stats": batch_stats}
    *both, updated = train_step.segment_pair(networks.segmenter, variables, images, images[:, ::-1])
    return *(geometry.resize_bilinear(logits, *images.shape[1:3]) for logits in both), updated

  def forward_and_backward(params: Any, batch_stats: Any, images: jax.Array, cotangents: Any) -> Any:
    def product(params: Any) -> tuple[jax.Array, Any]:
      params = stop_frozen(params, trainable)
      *both, updated = forward(params, batch_stats, images)
      return sum(jnp.vdot(a, b) for a, b in zip(both, cotangents, strict=True)), updated

    return jax.grad(product, has_aux=True)(params)

  def reference(variables: Any, images: jax.Array) -> Any:
    return train_step.reference_features(variables, images, networks=networks, config=config)

  @functools.partial(_jit, donate_argnums=(0, 1))
  def update(params: Any, opt_state: Any, gradients: Any) -> Any:
    updates, opt_state = step.optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  gradients = jax.tree.map(lambda p: jnp.full_like(p, 1e-3), state.params)
  updated = jax.tree.map(jnp.copy, (state.params, state.opt_state))

  def update_in_place() -> None:
    nonlocal updated
    updated = jax.block_until_ready(update(*updated, gradients))

  inference_images = workload.inference_images()
  return {
    "forward": _compiled(forward, params, batch_stats, normalized),
    "forward and backward": _compiled(forward_and_backward, params, batch_stats, normalized, cotangents),
    "reference": _compiled(reference, step.reference, images),
    "update": update_in_place,
    "inference": lambda: step.compiled.predict((params, batch_stats), inference_images),
  }


def _transform_pieces(step: Step) -> dict[str, Piece]:
  images, draws = step.arrays.images.astype(np.float32), step.draws
  logits, cotangent = (workload.random_logits(step.config, seed) for seed in (0, 1))

  def transform(images: jax.Array, logits: jax.Array, cotangent: jax.Array, points: jax.Array) -> Any:
    grid = warp.thin_plate_grid(points, *images.shape[1:3])
    warped, pull_back = jax.vjp(lambda logits: warp.warp(logits, grid), logits)
    return warp.warp(images, grid, padding=step.config.spatial.padding), warped, pull_back(cotangent)

  jitter = appearance.ColorJitter(draws.factors[0], draws.hue[0], draws.order[0])
  return {
    "colour jitter": _compiled(appearance.apply_jitter, images, jitter),
    "warp": _compiled(transform, images, logits, cotangent, draws.source_points[0]),
  }


def _loss_pieces(step: Step) -> dict[str, Piece]:
  """Value and gradient of each term, as functions of the logits and the raw basis (W = relu of it)."""
  config = step.config
  logits, target = (workload.random_logits(config, seed) for seed in (0, 1))
  saliency = step.arrays.saliency.astype(np.float32) / 255
  images = jnp.asarray(step.arrays.images, jnp.float32)
  bound = {"networks": step.networks, "config": config}
  features = _jit(functools.partial(train_step.reference_features, **bound))(step.reference, images)

  def centers(logits: jax.Array) -> jax.Array:
    return geometry.part_centers(geometry.part_probabilities(logits))

  def landmarks(logits: jax.Array, target: jax.Array) -> jax.Array:
    return losses.landmark_equivariance_loss(centers(logits), centers(target))

  def semantic(logits: jax.Array, raw: jax.Array, features: Any, saliency: jax.Array) -> jax.Array:
    probs, basis = geometry.part_probabilities(logits), jax.nn.relu(raw)
    assigned = config.semantic_assigned
    return losses.semantic_consistency_loss(probs, basis, features, saliency, assigned=assigned)

  def gradient(function: Callable, count: int, *arguments: Any) -> Piece:
    """Returns the value and the gradients with respect to the first `count` arguments."""
    return _compiled(jax.value_and_grad(function, tuple(range(count))), *arguments)

  basis = step.arrays.basis
  pieces = {
    "concentration": gradient(lambda x: losses.concentration_loss(geometry.part_probabilities(x)), 1, logits),
    "equivariance": gradient(losses.equivariance_loss, 1, logits, target),
    "landmark equivariance": gradient(landmarks, 2, logits, target),
    "semantic consistency": gradient(semantic, 2, logits, basis, features, saliency),
    "orthonormality": gradient(lambda x: losses.orthonormality_loss(jax.nn.relu(x)), 1, basis),
  }
  if config.loss.background:
    pieces["background"] = gradient(losses.background_loss, 1, logits, saliency)
  if config.loss.balance:
    pieces["balance"] = gradient(lambda x: losses.balance_loss(geometry.part_probabilities(x)), 1, logits)
  if config.loss.potts:
    pieces["potts"] = gradient(
      lambda x, images: losses.potts_loss(geometry.part_probabilities(x), images), 1, logits, images
    )
  return pieces


def device_memory() -> int | None:
  """Returns the peak bytes of device memory; None on a CPU."""
  statistics = jax.devices()[0].memory_stats()
  return statistics["peak_bytes_in_use"] if statistics and jax.default_backend() != "cpu" else None
