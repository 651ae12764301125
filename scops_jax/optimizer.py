"""Learning-rate schedules and parameter groups, assembled from optax.

Parameters are {"segmenter": ..., "basis": ...}. Three groups have their own learning rate: the segmenter's
backbone, its head, and the part basis. Gradients are clipped to a norm over the whole segmenter and,
separately, over the basis.
"""

from collections.abc import Sequence
from typing import NamedTuple

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
  config: ConfigDict, params: chex.ArrayTree, visits: chex.ArrayTree | None = None
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
    visits: tree of int like params["segmenter"], as its `parameter_visits` returns, or None for ones. A
      parameter with 0 is frozen: it gets a zero update and does not count in the norm. More than 1 counts
      under `repeat_updates` only: so often sgd updates it within one step (`repeated_sgd`).

  Raises:
    ValueError: an unknown optimizer or schedule, no head, or `repeat_updates` without visits.
  """
  optimizer = config.optimizer
  if optimizer.repeat_updates and visits is None:
    raise ValueError("config.optimizer.repeat_updates needs the visits of the segmenter's parameters.")
  basis_rate: optax.ScalarOrSchedule = optimizer.basis_learning_rate
  if optimizer.schedule != "poly":
    basis_rate = _schedule(config, optimizer.basis_learning_rate)
  rates = {
    "backbone": make_schedule(config),
    "head": _schedule(config, optimizer.learning_rate * optimizer.head_multiplier),
    "basis": basis_rate,
  }
  groups = parameter_groups(params, visits)
  counts = jax.tree.map(lambda _: 1, groups)
  if optimizer.repeat_updates:
    counts["segmenter"] = visits
  labels = jax.tree.map(_label, groups, counts)
  pairs = sorted(set(zip(jax.tree.leaves(groups), jax.tree.leaves(counts), strict=True)))
  rules = {_label(*pair): _update_rule(config, rates[pair[0]], pair[1]) for pair in pairs if pair[0] in rates}
  owners = jax.tree.map(lambda group: "segmenter" if group in ("backbone", "head") else group, groups)
  clips = {owner: _clip_by_norm(optimizer.clip_norm) for owner in ("segmenter", "basis")}
  frozen = {"frozen": optax.set_to_zero()}
  return optax.chain(optax.partition(clips | frozen, owners), optax.partition(rules | frozen, labels))


def _label(group: str, count: int) -> str:
  """Names the parameters of a group that are updated so often in one step."""
  return f"{group}_x{count}" if count > 1 else group


def parameter_groups(params: chex.ArrayTree, visits: chex.ArrayTree | None = None) -> chex.ArrayTree:
  """Returns the group of every parameter, "backbone", "head", "basis" or "frozen", as a tree like `params`.

  Args:
    params: as in `make_optimizer`.
    visits: as in `make_optimizer`.

  Raises:
    ValueError: no module of the segmenter has a name that starts with "head".
  """

  def group(path: tuple[jax.tree_util.KeyEntry, ...], _: chex.Array) -> str:
    names = [str(getattr(entry, "key", "")) for entry in path]
    return "head" if any(name.startswith("head") for name in names) else "backbone"

  segmenter = jax.tree_util.tree_map_with_path(group, params["segmenter"])
  if "head" not in jax.tree.leaves(segmenter):
    raise ValueError('The segmenter has no module whose name starts with "head", so it has no head group.')
  if visits is not None:
    segmenter = jax.tree.map(lambda name, count: name if count else "frozen", segmenter, visits)
  return {"segmenter": segmenter, "basis": jax.tree.map(lambda _: "basis", params["basis"])}


def freeze_modules(visits: chex.ArrayTree, modules: Sequence[str]) -> chex.ArrayTree:
  """Freezes modules of the segmenter: 0 in place of their parameters' visits.

  Args:
    visits: tree of int like params["segmenter"], as its `parameter_visits` returns.
    modules: beginnings of names of top-level modules: "block1" is "block1_expand", "block10_expand" too, and
      "block1_" the first alone.

  Raises:
    ValueError: a beginning fits no module.
  """
  for beginning in modules:
    if not any(name.startswith(beginning) for name in visits):
      raise ValueError(
        f"optimizer.frozen_modules: no module of the segmenter begins with {beginning!r}; "
        f"it has {', '.join(sorted(visits))}"
      )
  frozen = tuple(modules)
  return {
    name: jax.tree.map(lambda _: 0, counts) if name.startswith(frozen) else counts
    for name, counts in visits.items()
  }


def stop_frozen(params: chex.ArrayTree, visits: chex.ArrayTree) -> chex.ArrayTree:
  """Stops the gradient to parameters without visits, so that what leads to them alone is not computed.

  Args:
    params: the segmenter's.
    visits: tree of int like `params`.
  """
  return jax.tree.map(lambda p, count: p if count else jax.lax.stop_gradient(p), params, visits)


class RepeatedSgdState(NamedTuple):
  """State of `repeated_sgd`."""

  step: chex.Array
  momentum: optax.Updates


def repeated_sgd(
  rate: optax.ScalarOrSchedule, *, momentum: float, weight_decay: float, visits: int
) -> optax.GradientTransformation:
  """Updates each parameter several times with one gradient, as the release's optimizer effectively does.

  The release lists a parameter of the backbone several times in its group, and PyTorch 0.4 then visits it as
  often in one step. Each visit computes g += weight_decay · p; m = momentum · m + g; p -= rate · m, where g
  is changed in place, so that the decay adds up over the visits. With one visit this is sgd.

  Args:
    rate: learning rate, or schedule of it.
    momentum: factor of the last m.
    weight_decay: factor of the parameter in its gradient.
    visits: updates a step, at least 1.
  """

  def init(params: optax.Params) -> RepeatedSgdState:
    return RepeatedSgdState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

  def update(
    updates: optax.Updates, state: RepeatedSgdState, params: optax.Params | None = None
  ) -> tuple[optax.Updates, RepeatedSgdState]:
    current_rate = rate(state.step) if callable(rate) else rate
    change, trace = jax.tree.map(jnp.zeros_like, updates), state.momentum
    for _ in range(visits):
      updates = jax.tree.map(lambda g, p, d: g + weight_decay * (p + d), updates, params, change)
      trace = jax.tree.map(lambda m, g: momentum * m + g, trace, updates)
      change = jax.tree.map(lambda d, m: d - current_rate * m, change, trace)
    return change, RepeatedSgdState(state.step + 1, trace)

  return optax.GradientTransformation(init, update)


def _update_rule(
  config: ConfigDict, rate: optax.ScalarOrSchedule, visits: int
) -> optax.GradientTransformation:
  optimizer = config.optimizer
  if visits > 1:
    options = {"momentum": optimizer.momentum, "weight_decay": optimizer.weight_decay}
    return repeated_sgd(rate, visits=visits, **options)
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
