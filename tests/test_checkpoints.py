"""Checkpoints: exact round trip, the newest two kept, an interrupted one ignored."""

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax.errors import UserError
from scops_jax.runs.checkpoints import Checkpoints, latest_step, restore_state, restore_variables
from scops_jax.train_step import TrainState


def state(value: float) -> TrainState:
  params = {"segmenter": {"kernel": jnp.full((3, 2), value)}, "basis": {"raw": jnp.full((2, 4), -value)}}
  return TrainState(jnp.asarray(7, jnp.int32), params, {}, (jnp.full((3,), value, jnp.float32),))


def template():
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state(0.0))


def test_round_trip_is_exact(tmp_path):
  before = state(1 / 3)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(7, before, position={"next_index": 56})
  checkpoints.close()
  after, position, step = restore_state(tmp_path, template())
  assert (position, step) == ({"next_index": 56}, 7)
  assert jax.tree.structure(after) == jax.tree.structure(before)
  for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_the_newest_two_are_kept(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  for step in (10, 20, 30):
    checkpoints.save(step, state(float(step)), position={"next_index": step})
  checkpoints.close()
  assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [20, 30]
  assert latest_step(tmp_path) == 30
  newest, _, _ = restore_state(tmp_path, template())
  np.testing.assert_array_equal(newest.opt_state[0], np.full(3, 30, np.float32))


def test_an_interrupted_checkpoint_is_ignored(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  assert latest_step(tmp_path) == 0
  checkpoints.save(10, state(1.0), position={})
  checkpoints.close()
  # What a kill in the middle of writing leaves: orbax renames only when everything is there.
  (tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp").mkdir()
  assert latest_step(tmp_path) == 10


def test_variables_are_restored_without_the_optimizer_and_nothing_is_written(tmp_path):
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  with pytest.raises(UserError, match="no checkpoint yet"):
    restore_variables(tmp_path, sharding=here)
  assert not list(tmp_path.iterdir())
  before = state(1 / 3)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(7, before, position={})
  checkpoints.close()
  unfinished = tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp"  # a training run may be writing it
  unfinished.mkdir()
  variables, step = restore_variables(tmp_path, sharding=here)
  assert step == 7
  assert variables.keys() == {"params", "batch_stats"}
  jax.tree.map(np.testing.assert_array_equal, variables["params"], before.params)
  assert all(leaf.sharding == here for leaf in jax.tree.leaves(variables))
  assert unfinished.exists()


def test_writes_that_a_failed_one_leaves_behind_are_not_shown(tmp_path, monkeypatch):
  # On a full disk orbax's other writes end after the failed one's event loop.
  shown = []
  monkeypatch.setattr(sys, "unraisablehook", shown.append)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(10, state(1.0), position={})
  late, other = (
    SimpleNamespace(exc_value=RuntimeError(text), object=None) for text in ("Event loop is closed", "another")
  )
  sys.unraisablehook(late)
  sys.unraisablehook(other)
  assert shown == [other]
  checkpoints.close()
  sys.unraisablehook(late)
  assert shown == [other, late]
