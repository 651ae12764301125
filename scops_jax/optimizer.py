"""Learning-rate schedules and parameter groups, assembled from optax.

Parameters are {"segmenter": ..., "basis": ...}. Three groups have their own learning rate: the segmenter's
backbone, its head, and the part basis. Gradients are clipped to a norm over the whole segmenter and,
separately, over the basis.
"""

import chex
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def make_schedule(config: ConfigDict) -> optax.Schedule:
  """Returns the backbone's learning rate as a function of the step.

  Linear warm-up to the peak over `warmup_steps`, then over the remaining T steps "poly",
  peak (1 - t/T)^power, or "cosine", peak (1 + cos(πt/T)) / 2.

  Args:
    config: the run's configuration; `config.optimizer` and `config.num_steps` are read.

  Raises:
    ValueError: `config.optimizer.schedule` is unknown.
  """
  return _schedule(config, config.optimizer.learning_rate)


def _schedule(config: ConfigDict, peak: float) -> optax.Schedule:
  optimizer = config.optimizer
  warmup = optimizer.warmup_steps
  decay_steps = max(config.num_steps - warmup, 1)
  if optimizer.schedule == "poly":
    decay = optax.polynomial_schedule(peak, 0.0, optimizer.power, decay_steps)
  elif optimizer.schedule == "cosine":
    decay = optax.cosine_decay_schedule(peak, decay_steps)
  else:
    raise ValueError(f'config.optimizer.schedule must be "poly" or "cosine", got {optimizer.schedule!r}.')
  if warmup == 0:
    return decay
  # Step 0 already learns: the rates are peak / warmup, 2 peak / warmup, ..., peak.
  return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1), decay], [warmup])


def make_optimizer(
  config: ConfigDict, params: chex.ArrayTree, trainable: chex.ArrayTree | None = None
) -> optax.GradientTransformation:
  """Builds the optimizer of the segmenter and the part basis.

  "sgd" is PyTorch's: g = clipped + weight_decay · p; m = momentum · m + g; p -= rate · m. "adam" is AdamW
  with the same groups, clipping and schedule. The head's rate is `head_multiplier` times the backbone's; the
  basis has a rate of its own, constant under "poly" (as in the release), and following the schedule under
  "cosine".

  Args:
    config: the run's configuration; `config.optimizer` and `config.num_steps` are read.
    params: {"segmenter": tree, "basis": tree}; the head is every segmenter parameter inside a module whose
      name starts with "head".
    trainable: tree of bool like params["segmenter"], or None for all; a parameter that is not trained gets a
      zero update and does not count in the norm.

  Raises:
    ValueError: an unknown optimizer or schedule, or a segmenter without a head.

  Differs from the release: each parameter is updated once a step, where the release lists many of the
  backbone's up to four times in its group.
  """
  optimizer = config.optimizer
  basis_rate: optax.ScalarOrSchedule = optimizer.basis_learning_rate
  if optimizer.schedule != "poly":
    basis_rate = _schedule(config, optimizer.basis_learning_rate)
  rates = {
    "backbone": make_schedule(config),
    "head": _schedule(config, optimizer.learning_rate * optimizer.head_multiplier),
    "basis": basis_rate,
  }
  rules = {group: _update_rule(config, rate) for group, rate in rates.items()}
  groups = parameter_groups(params, trainable)
  owners = jax.tree.map(lambda group: "segmenter" if group in ("backbone", "head") else group, groups)
  clips = {owner: _clip_by_norm(optimizer.clip_norm) for owner in ("segmenter", "basis")}
  frozen = {"frozen": optax.set_to_zero()}
  return optax.chain(optax.partition(clips | frozen, owners), optax.partition(rules | frozen, groups))


def parameter_groups(params: chex.ArrayTree, trainable: chex.ArrayTree | None = None) -> chex.ArrayTree:
  """Returns the group of every parameter, "backbone", "head", "basis" or "frozen", as a tree like `params`.

  Args:
    params: as in `make_optimizer`.
    trainable: as in `make_optimizer`.

  Raises:
    ValueError: no module of the segmenter has a name that starts with "head".
  """

  def group(path: tuple[jax.tree_util.KeyEntry, ...], _: chex.Array) -> str:
    names = [str(getattr(entry, "key", "")) for entry in path]
    return "head" if any(name.startswith("head") for name in names) else "backbone"

  segmenter = jax.tree_util.tree_map_with_path(group, params["segmenter"])
  if "head" not in jax.tree.leaves(segmenter):
    raise ValueError('The segmenter has no module whose name starts with "head", so it has no head group.')
  if trainable is not None:
    segmenter = jax.tree.map(lambda name, trained: name if trained else "frozen", segmenter, trainable)
  return {"segmenter": segmenter, "basis": jax.tree.map(lambda _: "basis", params["basis"])}


def _update_rule(config: ConfigDict, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
  optimizer = config.optimizer
  if optimizer.name == "sgd":
    decay = optax.add_decayed_weights(optimizer.weight_decay)
    return optax.chain(decay, optax.sgd(rate, momentum=optimizer.momentum))
  if optimizer.name == "adam":
    return optax.adamw(rate, b1=optimizer.momentum, weight_decay=optimizer.weight_decay)
  raise ValueError(f'config.optimizer.name must be "sgd" or "adam", got {optimizer.name!r}.')


def _clip_by_norm(limit: float) -> optax.GradientTransformation:
  """Scales updates by min(1, limit / (norm + 1e-6)), as PyTorch does; optax's own has no 1e-6."""

  def clip(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
    factor = jnp.minimum(1.0, limit / (optax.tree.norm(updates) + 1e-6))
    return jax.tree.map(lambda update: update * factor, updates)

  return optax.stateless(clip)
