"""The steps compiled for all devices of all hosts; no other module knows a mesh.

With config.parallelism "jit" the batch is sharded over a mesh and XLA inserts the sums over devices; with
"pmap" each device runs train_step on its own images and the step itself averages. Both compute the same. The
latter is jax.pmap as JAX builds it, jit of shard_map, without its axis of devices: on several hosts jax.pmap
copies the state in each step.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from ml_collections import ConfigDict

from scops_jax.errors import UserError
from scops_jax.kernels.compilation import jit
from scops_jax.runs import hosts
from scops_jax.train_step import Networks, factorized_features, predict_step, train_step

Metrics = dict[str, chex.Array]
Maps = dict[str, np.ndarray]


class CompiledSteps(NamedTuple):
  """The compiled functions of a run and how arrays go to and from the devices.

  The functions of an evaluation take replicated variables and the images of all hosts, NumPy arrays that
  are equal on every host. Each device computes its share, and every host gets all results as NumPy arrays.
  """

  # Replicated state (it is donated), sharded batch, replicated reference variables → state, metrics.
  train: Callable[[Any, Any, Any], tuple[Any, Metrics]]
  # (params, batch_stats), images [B, H, W, 3] → "labels", "likeliest_parts", "centers".
  predict: Callable[[Any, np.ndarray], Maps]
  predict_refined: Callable[[Any, np.ndarray], Maps]  # the same, and "crf_labels"
  centers: Callable[[Any, np.ndarray], Maps]  # the same arguments → "centers" alone: no maps go to the host
  features: Callable[[Any, Any], np.ndarray]  # reference variables, batch → [B, h, w, C]
  shard_batch: Callable[[Any], Any]  # host-local NumPy arrays [B / hosts, ...] → on all devices [B, ...]
  replicate: Callable[[Any], Any]  # a tree, equal on all hosts → a copy on each device
  state_sharding: Sharding  # of a replicated state, as checkpoints save and restore it


def compile_steps(
  networks: Networks, optimizer: optax.GradientTransformation, config: ConfigDict
) -> CompiledSteps:
  """Compiles train_step as config.parallelism says, and the functions of an evaluation.

  Raises:
    UserError: the devices can't share a batch evenly.
  """
  count = jax.device_count()
  for key in ("batch_size", "eval_batch_size"):
    if config[key] % count:
      raise UserError(f"{key}={config[key]} can't be shared by {count} devices: give a multiple of {count}")
  # A host's devices lie side by side, as its images do in a batch.
  replicated, sharded = shardings(sorted(jax.devices(), key=lambda device: (device.process_index, device.id)))
  bound = {"networks": networks, "config": config}
  step = functools.partial(train_step, optimizer=optimizer, **bound)
  compiled = pmap_step if config.parallelism == "pmap" else jit_step
  train = compiled(step, replicated, sharded)
  evaluated = functools.partial(_evaluated, replicated=replicated, sharded=sharded)
  return CompiledSteps(
    train=train if jax.default_backend() != "cpu" else _blocking(train),
    predict=evaluated(functools.partial(labels_and_centers, **bound)),
    predict_refined=evaluated(functools.partial(labels_and_centers, refine=True, **bound)),
    centers=evaluated(functools.partial(_centers, **bound)),
    features=evaluated(functools.partial(factorized_features, **bound)),
    shard_batch=functools.partial(jax.make_array_from_process_local_data, sharded),
    replicate=functools.partial(_replicate, replicated=replicated),
    state_sharding=replicated,
  )


def shardings(devices: Sequence[Any]) -> tuple[NamedSharding, NamedSharding]:
  """Returns how arrays lie on devices: a copy on each, and the first axis spread over all, in this order."""
  mesh = Mesh(np.asarray(devices), ("data",))
  return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


def jit_step(step: Callable, replicated: NamedSharding, sharded: NamedSharding) -> jax.stages.Wrapped:
  """Compiles a bound train_step for parallelism "jit": arguments as CompiledSteps.train."""
  return jit(
    step,
    training=True,
    in_shardings=(replicated, sharded, replicated),
    out_shardings=replicated,
    donate_argnums=0,
  )


def pmap_step(step: Callable, replicated: NamedSharding, sharded: NamedSharding) -> jax.stages.Wrapped:
  """Compiles it for parallelism "pmap": each device runs it on its own images."""
  mapped = jax.shard_map(
    functools.partial(step, axis_name="data"),
    mesh=replicated.mesh,
    in_specs=(replicated.spec, sharded.spec, replicated.spec),
    out_specs=replicated.spec,
    check_vma=False,
  )
  return jit_step(mapped, replicated, sharded)


def labels_and_centers(
  variables: tuple[Any, Any], images: chex.Array, **options: Any
) -> dict[str, chex.Array]:
  """Replaces the probabilities by "likeliest_parts" uint8 `[B, H, W]`, 1 .. K, a smaller copy to the host."""
  maps = predict_step(*variables, images, **options)
  parts = jnp.argmax(maps.pop("probs")[..., 1:], axis=-1).astype(jnp.uint8) + 1
  return {**maps, "likeliest_parts": parts}


def _centers(variables: tuple[Any, Any], images: chex.Array, **options: Any) -> dict[str, chex.Array]:
  return {"centers": predict_step(*variables, images, **options)["centers"]}


def evaluation_step(
  function: Callable, replicated: NamedSharding, sharded: NamedSharding
) -> jax.stages.Wrapped:
  """Compiles a function of variables and a batch for the shardings' devices; its results are sharded."""
  # Each device computes its own rows. XLA could not find that by itself: a CRF loops over the images.
  mapped = jax.shard_map(
    function,
    mesh=replicated.mesh,
    in_specs=(replicated.spec, sharded.spec),
    out_specs=sharded.spec,
    check_vma=False,
  )
  # The hosts gather the results: no device needs the others' maps.
  return jit(mapped, in_shardings=(replicated, sharded), out_shardings=sharded)


def _evaluated(function: Callable, *, replicated: NamedSharding, sharded: NamedSharding) -> Callable:
  """Compiles a function of variables and a batch as CompiledSteps describes those of an evaluation."""
  compiled = evaluation_step(function, replicated, sharded)

  def evaluate(variables: Any, batch: Any) -> Any:
    batch = jax.tree.map(
      lambda array: jax.make_array_from_callback(array.shape, sharded, lambda index: array[index]), batch
    )
    return jax.device_get(hosts.all_gather(compiled(variables, batch)))

  return evaluate


def _blocking(train: Callable) -> Callable:
  """Waits for the arguments and the results of a step on a CPU.

  A step whose arguments are ready is computed in the calling thread, which reuses the memory of the step
  before for its temporaries (`memory.keep_freed_memory`).
  """

  def step(state: Any, batch: Any, reference_variables: Any) -> tuple[Any, Metrics]:
    jax.block_until_ready(batch)
    return jax.block_until_ready(train(state, batch, reference_variables))

  return step


def _replicate(tree: Any, replicated: NamedSharding) -> Any:
  """Copies a tree that is equal on all hosts to every device; the hosts do not compare theirs."""
  return jax.make_array_from_process_local_data(replicated, jax.device_get(tree))
