"""Schedules, parameter groups and updates against recorded and hand-computed values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scops_jax import optimizer
from scops_jax.config import default_config
from tests import oracle

NUM_STEPS = 10


FROZEN_SCALE = {"backbone": {"kernel": True, "scale": False}, "head_part": {"kernel": True}}


def options_with(**changes):
  options = default_config().optimizer
  options.update(changes)
  return options


def small_params():
  """A backbone, a head and a basis of ones."""
  segmenter = {
    "backbone": {"kernel": jnp.ones(3), "scale": jnp.ones(2)},
    "head_part": {"kernel": jnp.ones(2)},
  }
  return {"segmenter": segmenter, "basis": {"basis": jnp.ones((2, 3))}}


def first_update(options, gradients, **trees):
  params = small_params()
  transformation = optimizer.make_optimizer(options, params, num_steps=NUM_STEPS, **trees)
  return transformation.update(gradients, transformation.init(params), params)[0]


def test_poly_schedule_matches_the_release():
  recorded = oracle.golden("optim")
  for case in ("poly_a", "poly_b"):
    options = options_with(
      learning_rate=float(recorded[f"{case}_base_lr"]), power=float(recorded[f"{case}_power"])
    )
    schedule = optimizer.make_schedule(options, num_steps=int(recorded[f"{case}_max_iter"]))
    rates = recorded[f"{case}_lr"]
    np.testing.assert_allclose(schedule(recorded[f"{case}_iters"]), rates, rtol=1e-6, atol=1e-6 * rates[0])


def test_cosine_schedule_with_warm_up_by_hand():
  options = options_with(schedule="cosine", warmup_steps=4, learning_rate=1.0)
  schedule = optimizer.make_schedule(options, num_steps=8)
  expected = [0.25, 0.5, 0.75, 1.0, 1.0, (1 + np.sqrt(0.5)) / 2, 0.5, (1 - np.sqrt(0.5)) / 2, 0.0]
  np.testing.assert_allclose([schedule(step) for step in range(9)], expected, atol=1e-6)
  one_step = optimizer.make_schedule(options_with(warmup_steps=1, learning_rate=1.0), num_steps=NUM_STEPS)
  np.testing.assert_allclose([one_step(0), one_step(1)], [1.0, 1.0], rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["sgd", "dup"])
def test_sgd_matches_the_release(kind):
  """With each parameter updated once a step, and as often as the release lists it."""
  recorded = {key: jnp.asarray(value, jnp.float64) for key, value in oracle.golden("optim").items()}

  def tree(stem, basis):
    trunk = {"a": recorded[f"{stem}_trunk_a"], "b": recorded[f"{stem}_trunk_b"]}
    return {"segmenter": {"trunk": trunk, "head": recorded[f"{stem}_cls"]}, "basis": recorded[basis]}

  params = tree("sgd_init", "basis_init")
  counts = jax.tree.map(int, tree("dup_visits", "basis_init")["segmenter"])
  options = options_with(learning_rate=0.01)
  transformation = optimizer.make_optimizer(
    options, params, num_steps=NUM_STEPS, update_counts=counts if kind == "dup" else None
  )
  state = transformation.init(params)
  for step in range(3):
    gradients = tree(f"sgd_s{step}_grad", f"basis_s{step}_grad")
    updates, state = transformation.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    expected = tree(f"{kind}_s{step}_param", f"basis_s{step}_param")
    jax.tree.map(lambda p, e: np.testing.assert_allclose(p, e, rtol=1e-6, atol=1e-8), params, expected)


def test_groups_by_module_name():
  assert optimizer.parameter_groups(small_params(), FROZEN_SCALE) == {
    "segmenter": {"backbone": {"kernel": "backbone", "scale": "frozen"}, "head_part": {"kernel": "head"}},
    "basis": {"basis": "basis"},
  }


def test_sgd_step_by_hand():
  options = options_with(learning_rate=0.1, basis_learning_rate=0.5, weight_decay=0.0, clip_norm=100.0)
  gradients = jax.tree.map(jnp.ones_like, small_params())
  updates = first_update(options, gradients)
  np.testing.assert_allclose(updates["segmenter"]["backbone"]["kernel"], -0.1, rtol=1e-6)
  np.testing.assert_allclose(updates["segmenter"]["head_part"]["kernel"], -1.0, rtol=1e-6)
  np.testing.assert_allclose(updates["basis"]["basis"], -0.5, rtol=1e-6)


def test_the_basis_is_clipped_on_its_own():
  options = options_with(learning_rate=1.0, head_multiplier=1.0, basis_learning_rate=1.0, weight_decay=0.0)
  gradients = jax.tree.map(lambda p: 0.1 * jnp.ones_like(p), small_params())
  gradients["basis"] = {"basis": jnp.full((2, 3), 1e3)}
  updates = first_update(options, gradients)
  np.testing.assert_allclose(updates["segmenter"]["backbone"]["kernel"], -0.1, rtol=1e-6)
  np.testing.assert_allclose(optax.tree.norm(updates["basis"]), 5.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_frozen_parameters_stay_and_do_not_count_in_the_norm(name):
  gradients = jax.tree.map(jnp.ones_like, small_params())
  gradients["segmenter"]["backbone"]["scale"] = jnp.full(2, 1e6)
  options = options_with(name=name, learning_rate=1.0, weight_decay=0.0)
  updates = first_update(options, gradients, trainable=FROZEN_SCALE)
  np.testing.assert_array_equal(updates["segmenter"]["backbone"]["scale"], 0.0)
  np.testing.assert_allclose(updates["segmenter"]["backbone"]["kernel"], -1.0, rtol=1e-5)


def test_repeated_updates_by_hand():
  """Two updates with g = 1, p = 1: m = 1.5, p = 0.85; then g = 1.5 + 0.5 · 0.85, m = 0.75 + g."""
  transformation = optimizer.repeated_sgd(0.1, momentum=0.5, weight_decay=0.5, count=2)
  updates, _ = transformation.update(jnp.ones(1), transformation.init(jnp.ones(1)), jnp.ones(1))
  np.testing.assert_allclose(updates, -0.1 * (1.5 + 0.75 + 1.5 + 0.425), rtol=1e-6)


def test_repeated_updates_leave_frozen_parameters_and_the_other_groups():
  counts = {"backbone": {"kernel": 2, "scale": 2}, "head_part": {"kernel": 1}}
  options = options_with(learning_rate=0.1, basis_learning_rate=0.5, weight_decay=0.0)
  gradients = jax.tree.map(jnp.ones_like, small_params())
  updates = first_update(options, gradients, trainable=FROZEN_SCALE, update_counts=counts)
  np.testing.assert_allclose(updates["segmenter"]["backbone"]["kernel"], -0.1 * (1 + 1.9), rtol=1e-6)
  np.testing.assert_array_equal(updates["segmenter"]["backbone"]["scale"], 0.0)
  np.testing.assert_allclose(updates["segmenter"]["head_part"]["kernel"], -1.0, rtol=1e-6)
  np.testing.assert_allclose(updates["basis"]["basis"], -0.5, rtol=1e-6)


def test_adam_scales_rates_by_group_and_schedule():
  options = options_with(
    name="adam",
    schedule="cosine",
    learning_rate=0.01,
    basis_learning_rate=0.03,
    weight_decay=0.0,
  )
  params = small_params()
  transformation = optimizer.make_optimizer(options, params, num_steps=4)
  state = transformation.init(params)
  gradients = jax.tree.map(jnp.ones_like, params)
  update = jax.jit(transformation.update)
  for step in range(3):
    updates, state = update(gradients, state, params)
    factor = (1 + np.cos(np.pi * step / 4)) / 2
    np.testing.assert_allclose(updates["segmenter"]["backbone"]["kernel"], -0.01 * factor, rtol=1e-4)
    np.testing.assert_allclose(updates["segmenter"]["head_part"]["kernel"], -0.1 * factor, rtol=1e-4)
    np.testing.assert_allclose(updates["basis"]["basis"], -0.03 * factor, rtol=1e-4)


def test_the_basis_rate_is_constant_under_poly():
  options = options_with(momentum=0.0, weight_decay=0.0, learning_rate=0.1, power=1.0)
  params = small_params()
  transformation = optimizer.make_optimizer(options, params, num_steps=2)
  state = transformation.init(params)
  gradients = jax.tree.map(jnp.ones_like, params)
  for backbone in (-0.1, -0.05):
    updates, state = transformation.update(gradients, state, params)
    np.testing.assert_allclose(updates["segmenter"]["backbone"]["kernel"], backbone, rtol=1e-5)
    np.testing.assert_allclose(updates["basis"]["basis"], -0.01, rtol=1e-5)


def test_bad_settings_are_named():
  params = small_params()

  def make(**changes):
    optimizer.make_optimizer(options_with(**changes), params, num_steps=NUM_STEPS)

  with pytest.raises(ValueError, match=r'optimizer\.name must be "sgd" or "adam", got .lion.'):
    make(name="lion")
  with pytest.raises(ValueError, match=r'schedule must be "poly" or "cosine", got .step.'):
    make(schedule="step")
  del params["segmenter"]["head_part"]
  with pytest.raises(ValueError, match="no module whose name starts with"):
    make()
