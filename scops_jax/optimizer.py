"""Learning-rate schedules and parameter groups, assembled from optax.

Parameters are {"segmenter": ..., "basis": ...}. Three groups have their own learning rate: the segmenter's
backbone, its head, and the part basis. Gradients are clipped to a norm over the whole segmenter and,
separately, over the basis.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import path_aware_map
from ml_collections import ConfigDict


def make_schedule(options: ConfigDict, *, num_steps: int, peak: float | None = None) -> optax.Schedule:
  """Returns a learning rate as a function of the step.

  Linear warm-up to the peak over `warmup_steps`, then over the remaining T steps "poly",
  peak (1 - t/T)^power, or "cosine", peak (1 + cos(πt/T)) / 2.

  Args:
    options: `config.optimizer`.
    num_steps: of the run, warm-up included.
    peak: the highest rate; None: the backbone's, `options.learning_rate`.

  Raises:
    ValueError: `options.schedule` is unknown.
  """
  peak = options.learning_rate if peak is None else peak
  warmup = options.warmup_steps
  decay_steps = max(num_steps - warmup, 1)
  if options.schedule == "poly":
    decay = optax.polynomial_schedule(peak, 0.0, options.power, decay_steps)
  elif options.schedule == "cosine":
    decay = optax.cosine_decay_schedule(peak, decay_steps)
  else:
    raise ValueError(f'optimizer.schedule must be "poly" or "cosine", got {options.schedule!r}.')
  if warmup == 0:
    return decay
  # Step 0 already learns: the rates are peak / warmup, 2 peak / warmup, ..., peak.
  return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup - 1), decay], [warmup])


def rate_on_host(schedule: optax.Schedule, step: int) -> float:
  """Returns schedule(step), computed on the host's CPU: an accelerator would finish its steps first."""
  try:
    device = jax.local_devices(backend="cpu")[0]
  except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
    device = None
  with jax.default_device(device):
    return float(schedule(step))


def make_optimizer(
  options: ConfigDict,
  params: chex.ArrayTree,
  *,
  num_steps: int,
  trainable: chex.ArrayTree | None = None,
  update_counts: chex.ArrayTree | None = None,
) -> optax.GradientTransformation:
  """Builds the optimizer of the segmenter and the part basis.

  "sgd" is PyTorch's: g = clipped + weight_decay · p; m = momentum · m + g; p -= rate · m. "adam" is AdamW
  with the same groups, clipping and schedule. The head's rate is `head_multiplier` times the backbone's; the
  basis has a rate of its own, constant under "poly" (as in the release), and following the schedule under
  "cosine".

  Args:
    options: `config.optimizer`.
    params: {"segmenter": tree, "basis": tree}, arrays or shapes; the head is every segmenter parameter inside
      a module whose name starts with "head".
    num_steps: of the run, for the schedule.
    trainable: tree of bool like params["segmenter"], or None if all are trained. The others get a zero update
      and do not count in the norm.
    update_counts: tree of int like params["segmenter"]: how often `repeated_sgd` updates each parameter in
      one step; None: once.

  Raises:
    ValueError: an unknown optimizer or schedule, or no head.
  """
  schedule = functools.partial(make_schedule, options, num_steps=num_steps)
  basis_rate = options.basis_learning_rate
  rates = {
    "backbone": schedule(),
    "head": schedule(peak=options.learning_rate * options.head_multiplier),
    "basis": basis_rate if options.schedule == "poly" else schedule(peak=basis_rate),
  }
  groups = parameter_groups(params, trainable)
  counts = jax.tree.map(lambda _: 1, groups)
  if update_counts is not None:
    counts["segmenter"] = update_counts
  frozen = {"frozen": optax.set_to_zero()}
  rules = {}
  for group, count in sorted(set(zip(jax.tree.leaves(groups), jax.tree.leaves(counts), strict=True))):
    if group != "frozen":
      rules[_label(group, count)] = _update_rule(options, rates[group], count)
  owners = jax.tree.map(lambda group: "segmenter" if group in ("backbone", "head") else group, groups)
  clips = {owner: _clip_by_norm(options.clip_norm) for owner in ("segmenter", "basis")}
  return optax.chain(
    optax.partition(clips | frozen, owners),
    optax.partition(rules | frozen, jax.tree.map(_label, groups, counts)),
  )


def _label(group: str, count: int) -> str:
  """Names those parameters of a group that are updated `count` times a step."""
  return f"{group}_x{count}" if count > 1 and group != "frozen" else group


def parameter_groups(params: chex.ArrayTree, trainable: chex.ArrayTree | None = None) -> chex.ArrayTree:
  """Returns the group of every parameter, "backbone", "head", "basis" or "frozen", as a tree like `params`.

  Args:
    params: as in `make_optimizer`.
    trainable: as in `make_optimizer`.

  Raises:
    ValueError: no module of the segmenter has a name that starts with "head".
  """

  def group(path: tuple[Any, ...], _: chex.Array) -> str:
    return "head" if any(name.startswith("head") for name in path) else "backbone"

  segmenter = path_aware_map(group, params["segmenter"])
  if "head" not in jax.tree.leaves(segmenter):
    raise ValueError('The segmenter has no module whose name starts with "head", so it has no head group.')
  if trainable is not None:
    segmenter = jax.tree.map(lambda name, trained: name if trained else "frozen", segmenter, trainable)
  return {"segmenter": segmenter, "basis": jax.tree.map(lambda _: "basis", params["basis"])}


def stop_frozen(params: chex.ArrayTree, trainable: chex.ArrayTree) -> chex.ArrayTree:
  """Stops the gradient to frozen parameters, so that nothing is computed for their gradients alone.

  Args:
    params: the segmenter's.
    trainable: tree of bool like `params`.
  """
  return jax.tree.map(lambda p, trained: p if trained else jax.lax.stop_gradient(p), params, trainable)


class RepeatedSgdState(NamedTuple):
  """State of `repeated_sgd`."""

  step: chex.Array
  momentum: optax.Updates


def repeated_sgd(
  rate: optax.ScalarOrSchedule, *, momentum: float, weight_decay: float, count: int
) -> optax.GradientTransformation:
  """Updates each parameter several times with one gradient, as the release's optimizer effectively does.

  The release lists a parameter of the backbone several times in its group, and PyTorch 0.4 updates it as
  often in one step. Each update computes g += weight_decay · p; m = momentum · m + g; p -= rate · m, where g
  is changed in place, so that the decay adds up over the updates. One update is sgd's.

  Args:
    rate: learning rate, or schedule of it.
    momentum: factor of the last m.
    weight_decay: factor of the parameter in its gradient.
    count: updates a step, at least 1.
  """

  def init(params: optax.Params) -> RepeatedSgdState:
    return RepeatedSgdState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

  def update(
    updates: optax.Updates, state: RepeatedSgdState, params: optax.Params | None = None
  ) -> tuple[optax.Updates, RepeatedSgdState]:
    current_rate = rate(state.step) if callable(rate) else rate
    change, trace = jax.tree.map(jnp.zeros_like, updates), state.momentum
    for _ in range(count):
      updates = jax.tree.map(lambda g, p, d: g + weight_decay * (p + d), updates, params, change)
      trace = jax.tree.map(lambda m, g: momentum * m + g, trace, updates)
      change = jax.tree.map(lambda d, m: d - current_rate * m, change, trace)
    return change, RepeatedSgdState(state.step + 1, trace)

  return optax.GradientTransformation(init, update)


def _update_rule(
  options: ConfigDict, rate: optax.ScalarOrSchedule, count: int
) -> optax.GradientTransformation:
  if count > 1:
    return repeated_sgd(rate, momentum=options.momentum, weight_decay=options.weight_decay, count=count)
  if options.name == "sgd":
    decay = optax.add_decayed_weights(options.weight_decay)
    return optax.chain(decay, optax.sgd(rate, momentum=options.momentum))
  if options.name == "adam":
    return optax.adamw(rate, b1=options.momentum, weight_decay=options.weight_decay)
  raise ValueError(f'optimizer.name must be "sgd" or "adam", got {options.name!r}.')


def _clip_by_norm(limit: float) -> optax.GradientTransformation:
  """Scales updates by min(1, limit / (norm + 1e-6))."""

  def clip(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
    # PyTorch's 1e-6, which optax.clip_by_global_norm does not add: the steps recorded of the release have it.
    factor = jnp.minimum(1.0, limit / (optax.tree.norm(updates) + 1e-6))
    return jax.tree.map(lambda update: update * factor, updates)

  return optax.stateless(clip)
