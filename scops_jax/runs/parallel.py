"""The steps compiled for all devices of all hosts; no other module knows pmap or a mesh.

Both ways compute the same: "jit" shards the batch over a mesh and lets XLA insert the sums over devices,
"pmap" runs train_step on each device's images and sums in so many words.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from ml_collections import ConfigDict

from scops_jax.kernels.compilation import jit
from scops_jax.errors import UserError
from scops_jax.train_step import (
  Networks,
  TrainState,
  factorized_features,
  predict_step,
  refined_predict_step,
  train_step,
)


class CompiledSteps(NamedTuple):
  """The compiled functions of a run and how arrays go to and from the devices.

  Evaluation is the same on every host: `predict`, `predict_refined` and `features` take the images of all
  hosts, of which each uses its own piece, and return the results for all.
  """

  train: Callable[[Any, Any, Any], tuple[Any, dict[str, chex.Array]]]  # state, batch, reference variables
  predict: Callable[[Any, np.ndarray], dict[str, np.ndarray]]  # state, images
  predict_refined: Callable[[Any, np.ndarray], dict[str, np.ndarray]]  # the same, and "crf_labels"
  features: Callable[[Any, Any], np.ndarray]  # reference variables, batch
  put_batch: Callable[[Any], Any]  # this host's piece of a batch → devices
  gather: Callable[[Any], Any]  # this host's piece of a batch → that of all hosts, in memory
  place: Callable[[Any], Any]  # state or variables, alike on all hosts → every device
  fetch: Callable[[Any], Any]  # placed state → one copy of it, as it is saved
  saved: Sharding  # how that copy lies on the devices


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
    return _without_probs(predict_step(state.params["segmenter"], state.batch_stats, images, **bound))

  def predict_refined(state: TrainState, images: chex.Array) -> dict[str, chex.Array]:
    return _without_probs(refined_predict_step(state.params["segmenter"], state.batch_stats, images, **bound))

  step = functools.partial(train_step, optimizer=optimizer, **bound)
  features = functools.partial(factorized_features, **bound)
  compile_for = _compile_pmap if config.parallelism == "pmap" else _compile_jit
  replicated = NamedSharding(_mesh(), PartitionSpec())
  steps = compile_for(step, predict, predict_refined, features, replicated=replicated)
  return steps if jax.default_backend() != "cpu" else steps._replace(train=_in_turn(steps.train))


def _in_turn(train: Callable) -> Callable:
  """Waits for a step's arguments and results.

  A step that finds all it needs is computed in the calling thread, which then has the last one's memory for
  its temporaries (`memory.keep_freed_memory`).
  """

  def step(state: Any, batch: Any, reference_variables: Any) -> tuple[Any, dict[str, chex.Array]]:
    jax.block_until_ready(batch)
    return jax.block_until_ready(train(state, batch, reference_variables))

  return step


def _without_probs(maps: dict[str, chex.Array]) -> dict[str, chex.Array]:
  """Leaves out the probabilities: they stay on the devices."""
  return {name: array for name, array in maps.items() if name != "probs"}


def _mesh() -> Mesh:
  """All devices, those of a host side by side, because so are its images in a batch."""
  devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
  return Mesh(np.asarray(devices), ("data",))


def _replicate(tree: Any, replicated: Sharding) -> Any:
  """Puts what all hosts have alike on every device, without asking the other hosts whether it is so."""
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(replicated, np.asarray(x), np.shape(x)), tree
  )


def _compile_jit(
  step: Callable,
  predict: Callable,
  predict_refined: Callable,
  features: Callable,
  *,
  replicated: NamedSharding,
) -> CompiledSteps:
  sharded = NamedSharding(replicated.mesh, PartitionSpec("data"))
  compiled = functools.partial(jit, in_shardings=(replicated, sharded), out_shardings=replicated)

  def put_batch(batch: Any) -> Any:
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharded, x), batch)

  def share(batch: Any) -> Any:
    return jax.tree.map(
      lambda array: jax.make_array_from_callback(array.shape, sharded, lambda index: array[index]), batch
    )

  train = jit(
    step,
    training=True,
    in_shardings=(replicated, sharded, replicated),
    out_shardings=replicated,
    donate_argnums=0,
  )
  predict = compiled(predict)
  # Each device refines its own images: the CRF goes through them in turn, which XLA could not share out.
  predict_refined = jax.shard_map(
    predict_refined,
    mesh=replicated.mesh,
    in_specs=(replicated.spec, sharded.spec),
    out_specs=sharded.spec,
    check_vma=False,
  )
  predict_refined = compiled(predict_refined)
  features = compiled(features)
  gather = jax.jit(lambda tree: tree, in_shardings=sharded, out_shardings=replicated)
  return CompiledSteps(
    train=train,
    predict=lambda state, images: jax.device_get(predict(state, share(images))),
    predict_refined=lambda state, images: jax.device_get(predict_refined(state, share(images))),
    features=lambda variables, batch: jax.device_get(features(variables, share(batch))),
    put_batch=put_batch,
    gather=lambda tree: tree if jax.process_count() == 1 else jax.device_get(gather(put_batch(tree))),
    place=lambda tree: _replicate(tree, replicated),
    fetch=lambda tree: tree,
    saved=replicated,
  )


def _compile_pmap(
  step: Callable,
  predict: Callable,
  predict_refined: Callable,
  features: Callable,
  *,
  replicated: NamedSharding,
) -> CompiledSteps:
  count, hosts, host = jax.local_device_count(), jax.process_count(), jax.process_index()
  spread = jax.pmap(lambda tree: tree)

  def split(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.reshape(x, (count, x.shape[0] // count, *x.shape[1:])), tree)

  def mine(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.split(x, hosts)[host], tree)

  def first(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[0], tree)

  def gathering(function: Callable) -> Callable:
    """Compiles a function of rows so that every device has those of all."""
    return jax.pmap(lambda *args: jax.lax.all_gather(function(*args), "data", tiled=True), axis_name="data")

  def fetched(function: Callable, values: Any, batch: Any) -> Any:
    """The results of a gathering function for the images of all hosts."""
    return jax.device_get(first(function(values, split(mine(batch)))))

  mapped_step = jax.pmap(functools.partial(step, axis_name="data"), axis_name="data", donate_argnums=0)
  predict, predict_refined, features = map(gathering, (predict, predict_refined, features))
  gather = gathering(lambda tree: tree)

  def train(state: Any, batch: Any, reference: Any) -> tuple[Any, dict[str, chex.Array]]:
    state, metrics = mapped_step(state, batch, reference)
    return state, first(metrics)

  def place(tree: Any) -> Any:
    return spread(jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), jax.device_get(tree)))

  return CompiledSteps(
    train=train,
    predict=functools.partial(fetched, predict),
    predict_refined=functools.partial(fetched, predict_refined),
    features=functools.partial(fetched, features),
    put_batch=lambda batch: spread(split(batch)),
    gather=lambda tree: tree if hosts == 1 else jax.device_get(first(gather(split(tree)))),
    place=place,
    fetch=lambda tree: _replicate(first(tree), replicated),
    saved=replicated,
  )
