"""What a run consists of: made from its config, or found again in its work directory."""

import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from scops_jax.runs import hosts
from scops_jax import models, optimizer, weights
from scops_jax.saliency import maps
from scops_jax.runs.checkpoints import Checkpoints
from scops_jax.runs.sizes import choose_sizes
from scops_jax.kernels.compilation import jit
from scops_jax.config import check_values, config_from_json
from scops_jax.data.collection import Collection, open_collection, prepare_collection
from scops_jax.errors import UserError
from scops_jax.runs.feature_cache import CachedFeatures, cache_features
from scops_jax.runs.feature_code import with_code
from scops_jax.runs.parallel import CompiledSteps, compile_steps
from scops_jax.train_step import (
  Networks,
  TrainState,
  code_method,
  create_networks,
  network_features,
  reference_features,
  segmenter_visits,
)
from scops_jax.runs.workdir import open_workdir

# Leaves of the random key tree: what is drawn where must not depend on what else is drawn.
_SEGMENTER_KEY, _REFERENCE_KEY, _BASIS_KEY = range(3)
# In a run's directory: its DFF baseline.
DFF_FILE = "dff.npz"
# Of programs that run once: compiling them well takes longer than running them.
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Run(NamedTuple):
  """What training and evaluation share; the state is made (`initial_state`) or restored apart from it."""

  config: ConfigDict
  workdir: pathlib.Path
  collection: Collection
  networks: Networks
  transformation: optax.GradientTransformation
  steps: CompiledSteps
  reference_variables: Any
  # Of the training images, if config.data.cache_reference_features and there is a use for them.
  features: CachedFeatures | None


class Segmenter(NamedTuple):
  """The trained network of a run."""

  config: ConfigDict
  networks: Networks
  params: Any  # of the segmenter
  batch_stats: Any
  part_basis: np.ndarray  # [K, C] ≥ 0
  step: int  # of the checkpoint it comes from


def set_up(config: ConfigDict, workdir: str | pathlib.Path, *, create: bool) -> Run:
  """Builds everything of a run but its state; `create`: whether `workdir` may be new.

  Raises:
    UserError: the config, the data or the directory can't serve; no directory has been made then.
  """
  check_values(config)
  config, opened = hosts.first_then_others(
    lambda: choose_sizes(config, workdir, lambda: open_collection(config))
  )
  networks = _networks(config)
  reference_variables = _reference_variables(networks, config)
  transformation = _make_optimizer(networks, config, *_abstract_variables(networks, config))
  steps = compile_steps(networks, transformation, config)

  def open_all() -> tuple[Collection, Any, CachedFeatures | None, pathlib.Path]:
    collection = opened or open_collection(config)
    _write_maps(collection, networks, reference_variables, config)
    coded_variables = _with_code(collection, networks, reference_variables, config)
    features = None
    # An evaluation reads them for the DFF baseline alone, which is kept with the run.
    if create or not (pathlib.Path(workdir) / DFF_FILE).exists():
      features = _open_features(collection, networks, coded_variables, config)
    # Last, so that no mistake leaves a directory behind.
    return collection, coded_variables, features, open_workdir(workdir, config, create=create)

  collection, coded_variables, features, path = hosts.first_then_others(open_all)
  placed = steps.place(coded_variables)
  return Run(config, path, collection, networks, transformation, steps, placed, features)


def prepare(config: ConfigDict) -> None:
  """Writes the collection's data set and what the config wants computed from it, and says what there is.

  Raises:
    UserError: the config, the data or the folders can't serve.
  """
  check_values(config)
  preparation = prepare_collection(config)
  print(preparation)
  if config.data.saliency == "auto" or config.data.cache_reference_features:
    collection = open_collection(config, preparation)
    config, _ = choose_sizes(config, None, lambda: collection)
    networks = _networks(config)
    reference_variables = _reference_variables(networks, config)
    _write_maps(collection, networks, reference_variables, config)
    reference_variables = _with_code(collection, networks, reference_variables, config)
    _open_features(collection, networks, reference_variables, config)


def initial_state(run: Run, *, part_basis: np.ndarray) -> TrainState:
  """Returns the state before the first step.

  Args:
    run: as set_up returns it.
    part_basis: `[K, C]`, where the basis starts if config.basis.initializer asks for a factorisation.
  """
  variables = _segmenter_variables(run.networks, run.config)
  basis = run.networks.basis.init(_key(run.config, _BASIS_KEY))["params"]
  if run.config.basis.initializer != "normal":
    basis = {"raw": jnp.asarray(part_basis)}
  return _new_state(variables, basis, run.transformation)


def abstract_state(run: Run) -> TrainState:
  """Returns the state's shapes, dtypes and placement: what a checkpoint is restored into."""
  return _abstract_state(run.networks, run.config, run.steps.saved)


def load_config(workdir: str | pathlib.Path) -> ConfigDict:
  """Returns the resolved, locked config of the run in `workdir`.

  Raises:
    UserError: there is no run, or this version does not know its config.
  """
  path = pathlib.Path(workdir) / "config.json"
  try:
    saved = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"--workdir={workdir} holds no run that can be read ({path}: {error})") from error
  try:
    return config_from_json(saved)
  except (AttributeError, KeyError, TypeError) as error:
    detail = " ".join(str(error).split())
    raise UserError(f"{path} is the config of another version of scops_jax: {detail}") from error


def load_segmenter(workdir: str | pathlib.Path) -> Segmenter:
  """Restores the network of the newest checkpoint in `workdir`, without the collection or the reference.

  Raises:
    UserError: no run, or no checkpoint yet.
  """
  config = load_config(workdir)
  networks = _networks(config)
  checkpoints = Checkpoints(workdir)
  step = newest_step(checkpoints, workdir)
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  state, _ = checkpoints.restore(step, _abstract_state(networks, config, here))
  checkpoints.close()
  basis = np.asarray(networks.basis.apply({"params": state.params["basis"]}))
  return Segmenter(config, networks, state.params["segmenter"], state.batch_stats, basis, step)


def newest_step(checkpoints: Checkpoints, workdir: str | pathlib.Path) -> int:
  """Returns the step of the newest checkpoint.

  Raises:
    UserError: there is none.
  """
  step = checkpoints.latest_step()
  if step is None:
    raise UserError(f"--workdir={workdir} holds no checkpoint yet: train there first")
  return step


def _open_features(
  collection: Collection, networks: Networks, reference_variables: Any, config: ConfigDict
) -> CachedFeatures | None:
  """Opens the reference's features if the config asks for them, computed first where they are missing."""
  if not config.data.cache_reference_features:
    return None
  features = jit(functools.partial(reference_features, networks=networks, config=config))
  method = code_method(networks.reference, config)
  settings = [] if method == "none" else [method, config.signed_features.mean_square]
  return cache_features(collection, features, config, variables=reference_variables, settings=settings)


def _with_code(
  collection: Collection, networks: Networks, reference_variables: Any, config: ConfigDict
) -> Any:
  """Returns the reference's variables with the code of its signed features, if that is fitted."""
  features = jit(functools.partial(network_features, networks=networks, config=config))
  method = code_method(networks.reference, config)
  return with_code(collection, features, config, variables=reference_variables, method=method)


def _write_maps(
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


def _networks(config: ConfigDict) -> Networks:
  try:
    models.check_image_size(config.segmenter, config.image_size)
    models.check_reference_image_size(config.reference, config.reference_image_size)
    return create_networks(config)
  except ValueError as error:
    raise UserError(str(error)) from error


def _key(config: ConfigDict, leaf: int) -> jax.Array:
  return jax.random.fold_in(jax.random.key(config.seed), leaf)


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
  """Draws a network's variables; compiled, since the forward pass, which nobody reads, is then not done."""
  on_cpu = jax.default_backend() == "cpu"
  return jax.jit(network.init, compiler_options=_QUICK if on_cpu else None)(key, image)


def _reference_variables(networks: Networks, config: ConfigDict) -> Any:
  image = jnp.zeros((1, config.reference_image_size, config.reference_image_size, 3))
  key = _key(config, _REFERENCE_KEY)
  if config.reference_weights == "random":
    variables = _initialize(networks.reference, key, image)
  else:  # the file has all of them
    variables = jax.eval_shape(networks.reference.init, key, image)
  return _load_weights(
    variables, source=config.reference_weights, model_name=config.reference, key="reference_weights"
  )


def _segmenter_variables(networks: Networks, config: ConfigDict) -> Any:
  image = jnp.zeros((1, config.image_size, config.image_size, 3))
  variables = _initialize(networks.segmenter, _key(config, _SEGMENTER_KEY), image)
  return _load_weights(
    variables, source=config.segmenter_weights, model_name=config.segmenter, key="segmenter_weights"
  )


def _new_state(variables: Any, basis: Any, transformation: optax.GradientTransformation) -> TrainState:
  params = {"segmenter": variables["params"], "basis": basis}
  opt_state = transformation.init(params)
  return TrainState(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), opt_state)


def _abstract_variables(networks: Networks, config: ConfigDict) -> tuple[Any, Any]:
  """Returns the shapes of the segmenter's variables and of the basis's parameters."""
  image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
  segmenter = jax.eval_shape(lambda x: networks.segmenter.init(jax.random.key(0), x, train=False), image)
  basis = jax.eval_shape(lambda: networks.basis.init(jax.random.key(0)))
  return segmenter, basis["params"]


def _make_optimizer(
  networks: Networks, config: ConfigDict, variables: Any, basis: Any
) -> optax.GradientTransformation:
  """Returns the optimizer of the segmenter's variables and the basis's parameters; shapes do."""
  params = {"segmenter": variables["params"], "basis": basis}
  try:
    visits = segmenter_visits(networks, variables["params"], config)
  except ValueError as error:
    raise UserError(str(error)) from error
  return optimizer.make_optimizer(config, params, visits)


def _abstract_state(networks: Networks, config: ConfigDict, sharding: jax.sharding.Sharding) -> TrainState:
  variables, basis = _abstract_variables(networks, config)
  transformation = _make_optimizer(networks, config, variables, basis)
  state = jax.eval_shape(lambda v, b: _new_state(v, b, transformation), variables, basis)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)
