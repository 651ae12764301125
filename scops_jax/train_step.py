"""One training step and one prediction step, pure functions that `runs.parallel` compiles for the devices.

Images enter as uint8 RGB `[B, H, W, 3]`, saliency maps as uint8 `[B, H, W]` (0..255 stands for [0, 1]).
The step is the paper's (section 3): the network sees each image I twice, as it is and as T_s(T_a(I)).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import path_aware_map
from ml_collections import ConfigDict

from scops_jax import appearance, dense_crf, geometry, losses, models, warp
from scops_jax.kernels.platforms import target
from scops_jax.models import nonnegative
from scops_jax.models.part_basis import PartBasis
from scops_jax.optimizer import make_optimizer, stop_frozen

Batch = Mapping[str, Any]


class Networks(NamedTuple):
  """The modules of a run; their variables live in TrainState, the frozen reference's beside it."""

  segmenter: models.Segmenter
  reference: models.Reference
  basis: PartBasis


_INITIAL_STREAMS = ("segmenter", "reference", "basis", "nmf", "kmeans")


def stream_key(seed: int, stream: str, step: chex.Numeric = 0) -> chex.PRNGKey:
  """Returns the key of one of a run's random streams; no two of them share a key.

  Args:
    seed: config.seed.
    stream: "steps" for the draws of training steps; "segmenter", "reference" or "basis" for the variables
      that these networks start from; "nmf" and "kmeans" for the starts of the factorisation and of the
      clusterings.
    step: the number of updates done, of "steps".
  """
  key = jax.random.key(seed)
  if stream == "steps":
    return jax.random.fold_in(key, step)
  # Counted down from the last uint32, which no step reaches.
  return jax.random.fold_in(key, np.uint32(2**32 - 1 - _INITIAL_STREAMS.index(stream)))


@flax.struct.dataclass
class TrainState:
  """Everything an update changes; `params` has the entries "segmenter" and "basis"."""

  step: chex.Array
  params: chex.ArrayTree
  batch_stats: chex.ArrayTree
  opt_state: optax.OptState


def create_networks(config: ConfigDict) -> Networks:
  """Returns the modules that the config names, without variables."""
  reference = models.create_reference(
    config.reference, tuple(config.reference_layers), l2_normalize=config.reference_l2_normalize
  )
  side = config.reference_image_size
  image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  features, _ = jax.eval_shape(reference.init_with_output, jax.random.key(0), image)
  channels = [f.shape[-1] for f in features]
  if reference.signed:
    code = config.signed_features
    channels = [nonnegative.num_channels(c, code.method, code.num_components) for c in channels]
  basis = PartBasis(num_parts=config.num_parts, num_channels=sum(channels))
  return Networks(models.create_segmenter(config.segmenter, config.num_parts), reference, basis)


def trainable_parameters(networks: Networks, params: chex.ArrayTree, config: ConfigDict) -> chex.ArrayTree:
  """Returns which of the segmenter's parameters, or of their shapes, a step changes: a tree of bool.

  Raises:
    ValueError: config.optimizer.frozen_modules has a beginning that fits none of its modules.
  """
  frozen = tuple(config.optimizer.frozen_modules)
  for beginning in frozen:
    if not any(name.startswith(beginning) for name in params):
      raise ValueError(
        f"optimizer.frozen_modules: no module of the segmenter begins with {beginning!r}; "
        f"it has {', '.join(sorted(params))}"
      )
  return path_aware_map(
    lambda path, _: networks.segmenter.is_trained(path) and not str(path[0]).startswith(frozen), params
  )


def create_optimizer(
  networks: Networks, params: chex.ArrayTree, config: ConfigDict
) -> optax.GradientTransformation:
  """Returns the optimizer that the config asks for.

  Args:
    networks: the modules.
    params: {"segmenter": tree, "basis": tree}, arrays or shapes.
    config: the run's.

  Raises:
    ValueError: the segmenter has no head, or as trainable_parameters.
  """
  counts = None
  if config.optimizer.repeat_updates:
    segmenter = networks.segmenter
    counts = path_aware_map(lambda path, _: segmenter.release_update_count(path), params["segmenter"])
  return make_optimizer(
    config.optimizer,
    params,
    num_steps=config.num_steps,
    trainable=trainable_parameters(networks, params["segmenter"], config),
    update_counts=counts,
  )


def reference_features(
  variables: chex.ArrayTree, images: chex.Array, *, networks: Networks, config: ConfigDict
) -> tuple[chex.Array, ...]:
  """Returns the maps V ≥ 0 of RGB images 0..255 `[B, H, W, 3]`, at their own resolutions.

  They are the frozen network's maps or, if those are signed, their code by config.signed_features, with
  `variables["code"]` where the code is fitted.
  """
  maps = network_features(variables, images, networks=networks, config=config)
  if not networks.reference.signed:
    return maps
  code = config.signed_features
  return nonnegative.encode(maps, code.method, variables.get("code"), mean_square=code.mean_square)


def network_features(
  variables: chex.ArrayTree, images: chex.Array, *, networks: Networks, config: ConfigDict
) -> tuple[chex.Array, ...]:
  """Returns the frozen network's maps of RGB images 0..255 `[B, H, W, 3]`, signed if the network's are.

  With config.reference_mirror they are averaged with the mirrored maps of the mirror image. The features of a
  mirror image are then the mirrored features, as the parts must be where the transform mirrors.
  """
  side = config.reference_image_size
  enlarged = geometry.resize_bilinear(images.astype(jnp.float32), side, side)
  inputs = models.normalize(config.reference, enlarged).astype(resolve_dtype(config.reference_dtype))
  variables = {name: collection for name, collection in variables.items() if name != "code"}
  maps = networks.reference.apply(variables, inputs)
  if not config.reference_mirror:
    return maps
  mirrored = networks.reference.apply(variables, inputs[:, :, ::-1])
  return tuple((v + m[:, :, ::-1]) / 2 for v, m in zip(maps, mirrored, strict=True))


def _batch_features(
  variables: chex.ArrayTree, batch: Batch, *, networks: Networks, config: ConfigDict
) -> tuple[chex.Array, ...]:
  """Returns V: the batch's "features" if they are cached, else computed."""
  if "features" in batch:
    return batch["features"]
  return reference_features(variables, batch["image"], networks=networks, config=config)


def resolve_dtype(name: str) -> str:
  """Returns the dtype that a config key asks for: "auto" is float32 on a CPU and bfloat16 elsewhere."""
  if name == "auto":
    return "float32" if target() == "cpu" else "bfloat16"
  return name


def _segmenter_inputs(images: chex.Array, config: ConfigDict) -> chex.Array:
  """Returns the segmenter's input of RGB 0..255, in the dtype it computes in."""
  inputs = models.normalize(config.segmenter, images.astype(jnp.float32))
  return inputs.astype(resolve_dtype(config.compute_dtype))


def _unit(saliency: chex.Array) -> chex.Array:
  """Returns a saliency map's bytes as D in [0, 1]."""
  return saliency.astype(jnp.float32) / 255.0


def segment_pair(
  segmenter: models.Segmenter,
  variables: Mapping[str, chex.ArrayTree],
  images: jax.Array,
  warped_images: jax.Array,
  *,
  axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array, chex.ArrayTree]:
  """Segments a batch and its warped version in training mode.

  As in the release each of the two has batch statistics of its own, and the running ones are updated twice.
  GPUs and TPUs compute both together; a CPU makes two passes, because its caches hold more of a smaller one.

  Args:
    segmenter: the network.
    variables: its "params" and "batch_stats" (empty if it has none).
    images: `[B, H, W, 3]`, normalised.
    warped_images: the same shape.
    axis_name: of the pmap over whose devices batch statistics are taken; None: each device has its own.

  Returns:
    Logits of both `[B, h, w, K+1]`, float32; the batch statistics after both.
  """
  options: Any = {"axis_name": axis_name} if segmenter.uses_batch_statistics else {}

  def segment(variables: Mapping[str, chex.ArrayTree], images: jax.Array) -> tuple[jax.Array, Any]:
    logits, updates = segmenter.apply(variables, images, train=True, mutable=["batch_stats"], **options)
    return logits.astype(jnp.float32), {**variables, **updates}

  if target() == "cpu":
    logits, variables = segment(variables, images)
    warped_logits, variables = segment(variables, warped_images)
    return logits, warped_logits, variables["batch_stats"]
  if segmenter.uses_batch_statistics:
    options["passes"] = 2
  # An image and its warped version are neighbours, so that a batch sharded over devices stays where it is.
  both = jnp.stack([images, warped_images], axis=1).reshape(-1, *images.shape[1:])
  logits, variables = segment(variables, both)
  pairs = logits.reshape(-1, 2, *logits.shape[1:])
  return pairs[:, 0], pairs[:, 1], variables["batch_stats"]


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

  Args:
    params: {"segmenter": tree, "basis": tree}.
    batch_stats: the segmenter's running statistics.
    batch: as in `train_step`.
    keys: a PRNG key for each image, so that its draws do not depend on the device that it lies on.
    features: the reference's maps V `[B, h, w, C]`.
    networks: the modules.
    config: the run's.
    axis_name: of the pmap whose devices share the batch; the mean of their terms is the whole batch's. Batch
      statistics are taken over them if config.sync_batch_norm is set.
  """
  images = batch["image"].astype(jnp.float32)
  saliency = _unit(batch["saliency"])
  height, width = images.shape[1:3]

  def transform(key: chex.PRNGKey, image: chex.Array) -> tuple[chex.Array, chex.Array]:
    spatial_key, appearance_key = jax.random.split(key)
    points = warp.sample_spatial_transform(spatial_key, 1, config.spatial)[0]
    return points, appearance.jitter_colors(appearance_key, image[None], config.appearance)[0]

  source_points, jittered = jax.vmap(transform)(keys, images)
  grid = warp.thin_plate_grid(source_points, height, width)
  # Warped after normalisation, so that zero padding is the mean colour.
  warped_inputs = warp.warp(_segmenter_inputs(jittered, config), grid, padding=config.spatial.padding)
  inputs = _segmenter_inputs(images, config)
  variables = {"params": params["segmenter"], "batch_stats": batch_stats}
  *small_logits, batch_stats = segment_pair(
    networks.segmenter,
    variables,
    inputs,
    warped_inputs,
    axis_name=axis_name if config.sync_batch_norm else None,
  )
  logits, warped_logits = (geometry.resize_bilinear(maps, height, width) for maps in small_logits)
  if target() == "cpu":
    target_logits = warp.warp(logits, grid, padding="zeros")
  else:
    target_logits = warp.warp_enlarged(small_logits[0], grid, height=height, width=width)
  # Written to memory, or each of the losses would sample it again.
  target_logits = jax.lax.optimization_barrier(target_logits)
  probs = geometry.part_probabilities(logits)
  basis = networks.basis.apply({"params": params["basis"]})

  terms = {
    "concentration": losses.concentration_loss(probs),
    "equivariance": losses.equivariance_loss(warped_logits, target_logits),
    "landmark_equivariance": losses.landmark_equivariance_loss(
      geometry.part_centers(geometry.part_probabilities(warped_logits)),
      geometry.part_centers(geometry.part_probabilities(target_logits)),
    ),
    "semantic_consistency": losses.semantic_consistency_loss(
      probs, basis, features, saliency=saliency, assigned=config.semantic_assigned, axis_name=axis_name
    ),
    "orthonormality": losses.orthonormality_loss(basis),
  }
  if config.loss.background:
    terms["background"] = losses.background_loss(logits, saliency)
  if config.loss.balance:
    terms["balance"] = losses.balance_loss(probs)
  if config.loss.potts:
    terms["potts"] = losses.potts_loss(probs, images)
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
  """Does one update: equation 7 of the paper on a batch, its gradient, and the optimizer's update.

  An update that is not finite is not kept: if the loss, a gradient, a new parameter or a new running
  statistic is infinite or NaN, the state stays as it was, bit for bit, and its step does not advance. So a
  state never holds such a number, and the host need not look at a step's metrics before it starts the next
  one. The next batch is tried with the same draws.

  Args:
    state: the state before the update; its step and config.seed alone determine the random draws.
    batch: "image" uint8 `[B, H, W, 3]`, "saliency" uint8 `[B, H, W]` and, if they are cached, "features",
      the reference's maps `[B, h, w, C]`; B is the batch of this device under pmap, else the global batch.
    reference_variables: of the frozen reference.
    networks: the modules.
    optimizer: as create_optimizer builds it.
    config: the run's.
    axis_name: of the pmap this runs under, over which gradients, terms and batch statistics are averaged.

  Returns:
    The state after the update, and scalars: each unweighted term, "loss" (their weighted sum) and
    "gradient_norm" (of the segmenter's trained parameters, before clipping), means over the global batch, and
    "finite", bool, whether the update was kept. Where it was not, the terms that are not finite name the
    cause; if all are finite, the gradient or the new parameters were not.
  """
  keys = jax.random.split(stream_key(config.seed, "steps", state.step), config.batch_size)
  if axis_name is not None:
    local = batch["image"].shape[0]
    keys = jax.lax.dynamic_slice_in_dim(keys, jax.lax.axis_index(axis_name) * local, local)
  options = {
    "keys": keys,
    "features": _batch_features(reference_variables, batch, networks=networks, config=config),
    "networks": networks,
    "config": config,
    "axis_name": axis_name,
  }

  trainable = trainable_parameters(networks, state.params["segmenter"], config)

  def objective(params: chex.ArrayTree) -> tuple[chex.Array, Any]:
    trained = {**params, "segmenter": stop_frozen(params["segmenter"], trainable)}
    terms, batch_stats = compute_losses(trained, state.batch_stats, batch, **options)
    total = sum(config.loss[name] * value for name, value in terms.items())
    return total, (terms, batch_stats)

  (total, (terms, batch_stats)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
  metrics = {"loss": total, **terms}
  if axis_name is not None:
    gradients, metrics, batch_stats = jax.lax.pmean((gradients, metrics, batch_stats), axis_name)
  metrics["gradient_norm"] = optax.tree.norm(gradients["segmenter"])
  updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  new_state = TrainState(state.step + 1, params, batch_stats, opt_state)
  checked = (
    metrics["loss"],
    metrics["gradient_norm"],
    optax.tree.norm(gradients["basis"]),
    params,
    batch_stats,
  )
  metrics["finite"] = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(checked)]).all()
  kept = jax.tree.map(lambda new, old: jnp.where(metrics["finite"], new, old), new_state, state)
  return kept, metrics


def predict_step(
  params: chex.ArrayTree,
  batch_stats: chex.ArrayTree,
  images: chex.Array,
  *,
  networks: Networks,
  config: ConfigDict,
  refine: bool = False,
) -> dict[str, chex.Array]:
  """Segments images in evaluation mode.

  With config.predict_mirror the logits are averaged with the mirrored logits of the mirror image, which has
  the same parts where the transform mirrors; so the mirror image's parts are the mirrored parts. They are
  also averaged over the image at the multiples of its size in config.predict_scales, each rounded to a size
  that the network takes.

  Args:
    params: the segmenter's.
    batch_stats: the segmenter's running statistics.
    images: `[B, H, W, 3]` RGB 0..255.
    networks: the modules.
    config: the run's.
    refine: whether the CRF of config.crf refines the labels.

  Returns:
    "labels" uint8 `[B, H, W]`, the likeliest channel (0 = background), "probs" float32 `[B, H, W, K+1]`, and
    "centers" float32 `[B, K, 2]`, part centres (x, y) in [-1, 1] without epsilon, as the release evaluates
    them. If `refine` is set, "crf_labels" too, like "labels".
  """
  inputs = _segmenter_inputs(images, config)
  variables = {"params": params, "batch_stats": batch_stats}

  def segment(inputs: chex.Array) -> jax.Array:
    logits: Any = networks.segmenter.apply(variables, inputs, train=False)
    return logits.astype(jnp.float32)

  height, width = images.shape[1:3]
  multiple = models.segmenter_multiple(config.segmenter)

  def at_scale(scale: float) -> jax.Array:
    size = tuple(max(round(side * scale / multiple), 1) * multiple for side in (height, width))
    scaled = inputs if scale == 1 else geometry.resize_bilinear(inputs, *size)
    logits = segment(scaled)
    if config.predict_mirror:
      logits = (logits + segment(scaled[:, :, ::-1])[:, :, ::-1]) / 2
    return geometry.resize_bilinear(logits, height, width)

  probs = jax.nn.softmax(sum(map(at_scale, config.predict_scales)) / len(config.predict_scales))
  maps = {"labels": _likeliest(probs), "probs": probs, "centers": geometry.part_centers(probs, epsilon=0.0)}
  if refine:
    maps["crf_labels"] = _likeliest(dense_crf.dense_crf(probs, images, **config.crf))
  return maps


def _likeliest(probs: chex.Array) -> chex.Array:
  return jnp.argmax(probs, axis=-1).astype(jnp.uint8)


def factorized_features(
  variables: chex.ArrayTree, batch: Batch, *, networks: Networks, config: ConfigDict
) -> chex.Array:
  """Returns D·V `[B, h, w, C]`, float32, at the first map's resolution: what the DFF baseline factorises."""
  maps = _batch_features(variables, batch, networks=networks, config=config)
  height, width = maps[0].shape[1:3]
  weight = geometry.resize_bilinear(_unit(batch["saliency"])[..., None], height, width)
  resized = [geometry.resize_bilinear(v.astype(jnp.float32), height, width) for v in maps]
  return weight * jnp.concatenate(resized, axis=-1)
