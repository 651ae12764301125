"""One training step, one prediction step, and how they are compiled for the devices there are.

Images enter as uint8 RGB `[B, H, W, 3]`, saliency maps as uint8 `[B, H, W]` (0..255 stands for [0, 1]).
The step is the paper's (section 3): the network sees each image twice, as it is and as T_s(T_a(I)).
No other module knows pmap or a mesh.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from scops_jax import appearance, geometry, losses, models, warp
from scops_jax.errors import UserError
from scops_jax.models.base import segment_pair
from scops_jax.models.part_basis import PartBasis

Batch = Mapping[str, chex.Array]


class Networks(NamedTuple):
  """The modules of a run; their variables live in TrainState, the frozen reference's beside it."""

  segmenter: models.Segmenter
  reference: models.Reference
  basis: PartBasis


@flax.struct.dataclass
class TrainState:
  """Everything an update changes; `params` has the entries "segmenter" and "basis"."""

  step: chex.Array
  params: chex.ArrayTree
  batch_stats: chex.ArrayTree
  opt_state: optax.OptState


def create_networks(config: ConfigDict) -> Networks:
  """Returns the modules that the config names; nothing is initialised."""
  reference = models.create_reference(
    config.reference, tuple(config.reference_layers), l2_normalize=config.reference_l2_normalize
  )
  side = config.reference_image_size
  image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  features, _ = jax.eval_shape(reference.init_with_output, jax.random.key(0), image)
  basis = PartBasis(num_parts=config.num_parts, num_channels=sum(f.shape[-1] for f in features))
  return Networks(models.create_segmenter(config.segmenter, config.num_parts), reference, basis)


def reference_features(
  variables: chex.ArrayTree, images: chex.Array, *, networks: Networks, config: ConfigDict
) -> tuple[chex.Array, ...]:
  """Returns the frozen network's maps V of RGB images 0..255 `[B, H, W, 3]`, at their own resolutions.

  With config.reference_mirror they are the mean of the image's maps and its mirror image's, turned back:
  features of a mirror image are then mirrored features, as the transform's mirroring asks of the parts.
  """
  side = config.reference_image_size
  enlarged = geometry.resize_bilinear(images.astype(jnp.float32), side, side)
  inputs = models.normalize(config.reference, enlarged)
  maps = networks.reference.apply(variables, inputs)
  if not config.reference_mirror:
    return maps
  mirrored = networks.reference.apply(variables, inputs[:, :, ::-1])
  return tuple((v + m[:, :, ::-1]) / 2 for v, m in zip(maps, mirrored, strict=True))


def _unit(saliency: chex.Array) -> chex.Array:
  """Returns D in [0, 1] from the bytes of a saliency map."""
  return saliency.astype(jnp.float32) / 255.0


def compute_losses(
  params: chex.ArrayTree,
  batch_stats: chex.ArrayTree,
  batch: Batch,
  *,
  keys: chex.PRNGKey,
  features: tuple[chex.Array, ...],
  networks: Networks,
  config: ConfigDict,
  axis_name: str | None = None,
) -> tuple[dict[str, chex.Array], chex.ArrayTree]:
  """Returns the unweighted loss terms by name, and the segmenter's updated batch statistics.

  `keys` holds one key an image, so that a term does not depend on how the batch lies on devices. `axis_name`
  is that of the pmap over whose devices batch statistics are taken; None: they are this device's.
  """
  images = batch["image"].astype(jnp.float32)
  saliency = _unit(batch["saliency"])
  height, width = images.shape[1:3]

  def transform(key: chex.PRNGKey, image: chex.Array) -> tuple[chex.Array, chex.Array]:
    spatial_key, appearance_key = jax.random.split(key)
    points = warp.sample_spatial_transform(spatial_key, 1, config)[0]
    return points, appearance.jitter_colors(appearance_key, image[None], config)[0]

  source_points, jittered = jax.vmap(transform)(keys, images)
  grid = warp.thin_plate_grid(source_points, height, width)
  # Warped after normalisation, so that zero padding is the mean colour.
  warped_inputs = warp.warp(
    models.normalize(config.segmenter, jittered), grid, padding=config.spatial.padding
  )

  inputs = models.normalize(config.segmenter, images)
  variables = {"params": params["segmenter"], "batch_stats": batch_stats}
  logits, warped_logits, batch_stats = segment_pair(
    networks.segmenter, variables, inputs, warped_inputs, axis_name=axis_name
  )
  target_logits = warp.warp(logits, grid, padding="zeros")
  probs = jax.nn.softmax(logits)
  basis = networks.basis.apply({"params": params["basis"]})

  terms = {
    "concentration": losses.concentration_loss(probs),
    "equivariance": losses.equivariance_loss(warped_logits, target_logits),
    "landmark_equivariance": losses.landmark_equivariance_loss(
      geometry.part_centers(jax.nn.softmax(warped_logits)),
      geometry.part_centers(jax.nn.softmax(target_logits)),
    ),
    "semantic_consistency": losses.semantic_consistency_loss(probs, basis, features, saliency=saliency),
    "orthonormality": losses.orthonormality_loss(basis),
  }
  if config.loss.background:
    terms["background"] = losses.background_loss(logits, saliency)
  if config.loss.balance:
    terms["balance"] = losses.balance_loss(probs)
  return terms, batch_stats


def train_step(
  state: TrainState,
  batch: Batch,
  reference_variables: chex.ArrayTree,
  *,
  networks: Networks,
  optimizer: optax.GradientTransformation,
  config: ConfigDict,
  axis_name: str | None = None,
) -> tuple[TrainState, dict[str, chex.Array]]:
  """One update.

  Args:
    state: the state before the update; its step and config.seed alone determine the random draws.
    batch: "image" uint8 `[B, H, W, 3]` and "saliency" uint8 `[B, H, W]`; B is the batch of this device under
      pmap, else the global batch.
    reference_variables: of the frozen reference.
    networks: the modules.
    optimizer: as optimizer.make_optimizer builds it.
    config: the run's.
    axis_name: of the pmap this runs under, over which gradients, terms and batch statistics are averaged.

  Returns:
    The state after the update, and scalars: each unweighted term, "loss" (their weighted sum) and
    "gradient_norm" (of the segmenter, before clipping), means over the global batch.
  """
  keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), state.step), config.batch_size)
  if axis_name is not None:
    local = batch["image"].shape[0]
    keys = jax.lax.dynamic_slice_in_dim(keys, jax.lax.axis_index(axis_name) * local, local)
  options = {
    "keys": keys,
    "features": reference_features(reference_variables, batch["image"], networks=networks, config=config),
    "networks": networks,
    "config": config,
    "axis_name": axis_name if config.sync_batch_norm else None,
  }

  def objective(params: chex.ArrayTree) -> tuple[chex.Array, Any]:
    terms, batch_stats = compute_losses(params, state.batch_stats, batch, **options)
    total = sum(config.loss[name] * value for name, value in terms.items())
    return total, (terms, batch_stats)

  (total, (terms, batch_stats)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
  metrics = {"loss": total, **terms}
  if axis_name is not None:
    gradients, metrics, batch_stats = jax.lax.pmean((gradients, metrics, batch_stats), axis_name)
  metrics["gradient_norm"] = optax.tree.norm(gradients["segmenter"])
  updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  return TrainState(state.step + 1, params, batch_stats, opt_state), metrics


def predict_step(
  params: chex.ArrayTree,
  batch_stats: chex.ArrayTree,
  images: chex.Array,
  *,
  networks: Networks,
  config: ConfigDict,
) -> dict[str, chex.Array]:
  """Evaluation-mode prediction.

  Args:
    params: the segmenter's.
    batch_stats: the segmenter's running statistics.
    images: `[B, H, W, 3]` RGB 0..255.
    networks: the modules.
    config: the run's.

  Returns:
    "labels" uint8 `[B, H, W]`, the likeliest channel (0 = background), "probs" float32 `[B, H, W, K+1]`, and
    "centers" float32 `[B, K, 2]`, part centres (x, y) in [-1, 1] without epsilon, as the release evaluates
    them.
  """
  inputs = models.normalize(config.segmenter, images.astype(jnp.float32))
  variables = {"params": params, "batch_stats": batch_stats}
  logits: Any = networks.segmenter.apply(variables, inputs, train=False)
  height, width = images.shape[1:3]
  probs = jax.nn.softmax(geometry.resize_bilinear(logits.astype(jnp.float32), height, width))
  labels = jnp.argmax(probs, axis=-1).astype(jnp.uint8)
  return {"labels": labels, "probs": probs, "centers": geometry.part_centers(probs, epsilon=0.0)}


def factorized_features(
  variables: chex.ArrayTree,
  images: chex.Array,
  saliency: chex.Array,
  *,
  networks: Networks,
  config: ConfigDict,
) -> chex.Array:
  """Returns D·V `[B, h, w, C]` at the first map's resolution, float32: what the DFF baseline factorises."""
  maps = reference_features(variables, images, networks=networks, config=config)
  height, width = maps[0].shape[1:3]
  weight = geometry.resize_bilinear(_unit(saliency)[..., None], height, width)
  resized = [geometry.resize_bilinear(v.astype(jnp.float32), height, width) for v in maps]
  return weight * jnp.concatenate(resized, axis=-1)


class CompiledSteps(NamedTuple):
  """The compiled functions of a run and how arrays go to and from the devices."""

  train: Callable[[Any, Any, Any], tuple[Any, dict[str, chex.Array]]]  # state, batch, reference variables
  predict: Callable[[Any, np.ndarray], dict[str, np.ndarray]]  # state, images
  features: Callable[[Any, np.ndarray, np.ndarray], np.ndarray]  # reference variables, images, saliency
  put_batch: Callable[[Any], Any]  # this host's part of a batch → devices
  place: Callable[[Any], Any]  # state or variables → every device
  fetch: Callable[[Any], Any]  # placed state → one copy of it


def compile_steps(
  networks: Networks, optimizer: optax.GradientTransformation, config: ConfigDict
) -> CompiledSteps:
  """Compiles for all devices, as config.parallelism says: one train_step serves both ways.

  Raises:
    UserError: if a batch can't be shared evenly by the devices.
  """
  count = jax.device_count()
  for key in ("batch_size", "eval_batch_size"):
    if config[key] % count:
      raise UserError(f"{key}={config[key]} can't be shared by {count} devices: give a multiple of {count}")
  bound = {"networks": networks, "config": config}

  def predict(state: TrainState, images: chex.Array) -> dict[str, chex.Array]:
    maps = predict_step(state.params["segmenter"], state.batch_stats, images, **bound)
    return {name: maps[name] for name in ("labels", "centers")}  # the probabilities stay on the devices

  step = functools.partial(train_step, optimizer=optimizer, **bound)
  features = functools.partial(factorized_features, **bound)
  compile_for = _compile_pmap if config.parallelism == "pmap" else _compile_jit
  return compile_for(step, predict, features)


def _compile_jit(step: Callable, predict: Callable, features: Callable) -> CompiledSteps:
  mesh = Mesh(np.asarray(jax.devices()), ("data",))
  replicated = NamedSharding(mesh, PartitionSpec())
  sharded = NamedSharding(mesh, PartitionSpec("data"))

  def put_batch(batch: Any) -> Any:
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharded, x), batch)

  train = jax.jit(
    step, in_shardings=(replicated, sharded, replicated), out_shardings=replicated, donate_argnums=0
  )
  predict = jax.jit(predict, in_shardings=(replicated, sharded), out_shardings=sharded)
  features = jax.jit(features, in_shardings=(replicated, sharded, sharded), out_shardings=sharded)
  return CompiledSteps(
    train=train,
    predict=lambda state, *arrays: jax.device_get(predict(state, *put_batch(arrays))),
    features=lambda variables, *arrays: jax.device_get(features(variables, *put_batch(arrays))),
    put_batch=put_batch,
    place=lambda tree: jax.device_put(tree, replicated),
    fetch=lambda tree: tree,
  )


def _compile_pmap(step: Callable, predict: Callable, features: Callable) -> CompiledSteps:
  count = jax.local_device_count()

  def split(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.reshape(x, (count, x.shape[0] // count, *x.shape[1:])), tree)

  def merge(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.reshape(x, (-1, *x.shape[2:])), jax.device_get(tree))

  def first(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[0], tree)

  mapped_step = jax.pmap(functools.partial(step, axis_name="data"), axis_name="data", donate_argnums=0)
  predict, features = jax.pmap(predict), jax.pmap(features)

  def train(state: Any, batch: Any, reference: Any) -> tuple[Any, dict[str, chex.Array]]:
    state, metrics = mapped_step(state, batch, reference)
    return state, first(metrics)

  return CompiledSteps(
    train=train,
    predict=lambda state, *arrays: merge(predict(state, *split(arrays))),
    features=lambda variables, *arrays: merge(features(variables, *split(arrays))),
    put_batch=split,
    place=lambda tree: jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), tree),
    fetch=first,
  )
