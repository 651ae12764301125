"""The parts of a run, each made from its config: networks, weights, optimizer, state, computed inputs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from scops_jax import models, train_step, weights
from scops_jax.config import check_values
from scops_jax.data.collection import Collection, open_collection, prepare_collection
from scops_jax.errors import UserError
from scops_jax.kernels.compilation import jit
from scops_jax.models import nonnegative
from scops_jax.runs.feature_cache import CachedFeatures, cache_features
from scops_jax.runs.feature_code import add_code
from scops_jax.runs.sizes import choose_sizes
from scops_jax.saliency import maps
from scops_jax.train_step import Networks, TrainState

# For programs that run once: optimizing them takes longer than running them.
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def prepare(config: ConfigDict) -> None:
  """Writes the collection's data set and what the config wants computed from it; prints what there is.

  Raises:
    UserError: the config, the data or the folders can't serve.
  """
  check_values(config)
  preparation = prepare_collection(config)
  print(preparation)
  if config.data.saliency == "auto" or config.data.cache_reference_features:
    collection = open_collection(config, preparation)
    config = choose_sizes(config, collection, workdir=None)
    networks = create_networks(config)
    reference_variables = load_reference(networks, config)
    write_saliency_maps(collection, networks, reference_variables, config)
    reference_variables = fit_feature_code(collection, networks, reference_variables, config)
    open_features(collection, networks, reference_variables, config)


def create_networks(config: ConfigDict) -> Networks:
  """Returns the modules that the config names.

  Raises:
    UserError: there is no such network or layer, or a size does not suit the network.
  """
  try:
    models.check_image_size(config.segmenter, config.image_size)
    models.check_reference_image_size(config.reference, config.reference_image_size)
    return train_step.create_networks(config)
  except ValueError as error:
    raise UserError(str(error)) from error


def load_reference(networks: Networks, config: ConfigDict) -> Any:
  """Returns the reference's variables, with the weights that the config names.

  Raises:
    UserError: the weights can't be found or read, or are those of another network.
  """
  image = jnp.zeros((1, config.reference_image_size, config.reference_image_size, 3))
  key = train_step.stream_key(config.seed, "reference")
  if config.reference_weights == "random":
    return _initialize(networks.reference, key, image)
  shapes = jax.eval_shape(networks.reference.init, key, image)  # a file has values for all of them
  return _load_weights(
    shapes, source=config.reference_weights, model_name=config.reference, key="reference_weights"
  )


def init_segmenter(networks: Networks, config: ConfigDict) -> Any:
  """Returns the variables that the segmenter starts from; raises as load_reference does."""
  image = jnp.zeros((1, config.image_size, config.image_size, 3))
  variables = _initialize(networks.segmenter, train_step.stream_key(config.seed, "segmenter"), image)
  return _load_weights(
    variables, source=config.segmenter_weights, model_name=config.segmenter, key="segmenter_weights"
  )


def create_optimizer(networks: Networks, config: ConfigDict) -> optax.GradientTransformation:
  """Returns the optimizer of {"segmenter": params, "basis": params}.

  Raises:
    UserError: config.optimizer.frozen_modules names none of the segmenter's modules.
  """
  params = _abstract_variables(networks, config)["params"]
  try:
    return train_step.create_optimizer(networks, params, config)
  except ValueError as error:
    raise UserError(str(error)) from error


def initial_state(
  networks: Networks,
  transformation: optax.GradientTransformation,
  config: ConfigDict,
  *,
  segmenter_variables: Any,
  part_basis: np.ndarray,
) -> TrainState:
  """Returns the state before the first step.

  Args:
    networks: the run's.
    transformation: the optimizer.
    config: the run's.
    segmenter_variables: as init_segmenter returns them.
    part_basis: `[K, C]`, where the basis starts if config.basis.initializer asks for a factorisation.
  """
  basis = networks.basis.init(train_step.stream_key(config.seed, "basis"))["params"]
  if config.basis.initializer != "normal":
    basis = {"raw": jnp.asarray(part_basis)}
  params = {"segmenter": segmenter_variables["params"], "basis": basis}
  batch_stats = segmenter_variables.get("batch_stats", {})
  return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, transformation.init(params))


def abstract_state(
  networks: Networks,
  transformation: optax.GradientTransformation,
  config: ConfigDict,
  *,
  sharding: jax.sharding.Sharding,
) -> TrainState:
  """Returns the state's shapes, dtypes and shardings: what a checkpoint is restored into."""
  variables = _abstract_variables(networks, config)
  step, opt_state = (
    jax.ShapeDtypeStruct((), jnp.int32),
    jax.eval_shape(transformation.init, variables["params"]),
  )
  state = TrainState(step, variables["params"], variables["batch_stats"], opt_state)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def write_saliency_maps(
  collection: Collection, networks: Networks, reference_variables: Any, config: ConfigDict
) -> None:
  """Computes the saliency maps that are missing, if the config asks for them."""
  if collection.maps is None:
    return
  grid = jit(functools.partial(maps.reference_grid, networks=networks, config=config))
  count = maps.write_missing_maps(
    collection, lambda images: jax.device_get(grid(reference_variables, images)), config
  )
  written = f"wrote {count} saliency maps to" if count else "saliency maps are in"
  print(f"{written} {collection.maps}; those that you edit are kept")


def fit_feature_code(
  collection: Collection, networks: Networks, reference_variables: Any, config: ConfigDict
) -> Any:
  """Returns the reference's variables; with the code of its features if that is fitted to the collection."""
  if not networks.reference.signed or config.signed_features.method not in nonnegative.FITTED:
    return reference_variables
  features = jit(functools.partial(train_step.network_features, networks=networks, config=config))
  return add_code(collection, features, config, variables=reference_variables)


def open_features(
  collection: Collection, networks: Networks, reference_variables: Any, config: ConfigDict
) -> CachedFeatures | None:
  """Opens the reference's features of the training images; computes them first if they are missing.

  Returns:
    The features; None unless config.data.cache_reference_features.
  """
  if not config.data.cache_reference_features:
    return None
  features = jit(functools.partial(train_step.reference_features, networks=networks, config=config))
  code = (config.signed_features.method, config.signed_features.mean_square)
  settings = code if networks.reference.signed else ()
  return cache_features(collection, features, config, variables=reference_variables, settings=settings)


def _load_weights(variables: Any, *, source: str, model_name: str, key: str) -> Any:
  """Returns the variables with published weights, or unchanged if the config asks for random ones."""
  path = weights.resolve(source, model_name, key)
  if path is None:
    return variables
  try:
    return weights.apply_state_dict(variables, weights.load_state_dict(path), model_name=model_name)
  except weights.WeightsError as error:
    raise weights.WeightsError(f"{key}={source}: {error}") from error


def _initialize(network: models.Segmenter | models.Reference, key: jax.Array, image: jax.Array) -> Any:
  """Draws a network's variables; under jit, which removes the forward pass, as nothing uses its result."""
  on_cpu = jax.default_backend() == "cpu"
  return jax.jit(network.init, compiler_options=_QUICK if on_cpu else None)(key, image)


def _abstract_variables(networks: Networks, config: ConfigDict) -> dict[str, Any]:
  """Returns the shapes of "params" and "batch_stats" of a TrainState."""
  image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
  segmenter = jax.eval_shape(networks.segmenter.init, jax.random.key(0), image)
  basis = jax.eval_shape(networks.basis.init, jax.random.key(0))
  params = {"segmenter": segmenter["params"], "basis": basis["params"]}
  return {"params": params, "batch_stats": segmenter.get("batch_stats", {})}
