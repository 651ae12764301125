"""Damaged checkpoints are never trusted: the intact one before them serves, and nothing is lost."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax.errors import UserError
from scops_jax.runs.checkpoints import Checkpoints, is_intact, restore_state, restore_variables
from scops_jax.train_step import TrainState

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
OLDER, NEWER = 20, 25


def state(value):
  rng = np.random.default_rng(value)
  kernel = jnp.asarray(rng.normal(size=(9, 40)), jnp.float32)
  params = {"segmenter": {"kernel": kernel}, "basis": {"raw": kernel[:3]}}
  return TrainState(jnp.asarray(value, jnp.int32), params, {"bn": {"mean": kernel[0]}}, (kernel * 2,))


def template():
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=HERE), state(0))


def position(step):
  return {"next_index": 8 * step}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("saved")
  checkpoints = Checkpoints(workdir)
  for step in (OLDER, NEWER):
    checkpoints.save(step, state(step), position=position(step))
  checkpoints.close()
  return workdir


@pytest.fixture
def workdir(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / "run")


def newest(workdir):
  return workdir / "checkpoints" / str(NEWER)


def damage(path, how):
  content = bytearray(path.read_bytes())
  if how == "flip":
    content[len(content) // 2] ^= 16
  elif how == "cut":
    content = content[: len(content) // 2]
  path.write_bytes(content)


def same(found, expected):
  return all(
    np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
  )


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_a_file_that_is_damaged_gives_the_right_state_or_the_one_before(how, saved, tmp_path):
  files = sorted(path.relative_to(saved) for path in newest(saved).rglob("*") if path.is_file())
  assert len(files) > 8
  fell_back = []
  for number, name in enumerate(files):
    workdir = shutil.copytree(saved, tmp_path / str(number))
    damage(workdir / name, how)
    variables, step = restore_variables(workdir, sharding=HERE)
    assert same(variables["params"], state(step).params), name
    found, where, step = restore_state(workdir, template())
    assert (same(found, state(step)), where) == (True, position(step)), name
    fell_back += [str(name)] * (step == OLDER)
  # The arrays are in d/, the digests and the position in files of their own.
  for part in ("ocdbt.process_0/d", "digests/metadata", "position/metadata"):
    assert any(part in name for name in fell_back), part


def set_position(path):
  (path / "position" / "metadata").write_text(json.dumps(position(3)))


def remove_state(path):
  shutil.rmtree(path / "state")


def empty_directory(path):
  shutil.rmtree(path)
  path.mkdir()


def another_step(path):
  shutil.rmtree(path)
  shutil.copytree(path.with_name(str(OLDER)), path)


@pytest.mark.parametrize(
  ("break_it", "named"),
  [
    (set_position, "position"),
    (remove_state, "state"),
    (empty_directory, "digests"),
    (another_step, "position"),
    (lambda path: (path / "state" / "_METADATA").unlink(), "_METADATA"),
    (lambda path: shutil.rmtree(path / "digests"), "digests"),
  ],
  ids=["position", "no state", "emptied", "another step's", "no metadata", "no digests"],
)
def test_the_damage_is_one_line_and_training_goes_on_from_the_one_before(break_it, named, workdir, capsys):
  break_it(newest(workdir))
  assert not is_intact(workdir, NEWER) or named == "position"
  found, where, step = restore_state(workdir, template())
  assert (step, where, same(found, state(OLDER))) == (OLDER, position(OLDER), True)
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("checkpoint 25 is damaged (")
  assert named in line
  assert line.endswith("): going on from 20")
  # Its step can be saved again, and until then the intact one stays.
  assert [path.name for path in (workdir / "checkpoints").iterdir()] == [str(OLDER)]
  assert (workdir / "damaged" / str(NEWER)).is_dir()
  checkpoints = Checkpoints(workdir)
  checkpoints.save(NEWER, state(NEWER), position=position(NEWER))
  checkpoints.close()
  assert restore_state(workdir, template())[2] == NEWER


def test_without_an_intact_one_files_and_cure_are_named_and_nothing_is_moved(workdir):
  for step in (OLDER, NEWER):
    shutil.rmtree(workdir / "checkpoints" / str(step) / "state")
  with pytest.raises(UserError, match=r"no intact checkpoint: 25 \(.*state.*20 \(.*from a copy") as raised:
    restore_state(workdir, template())
  assert "\n" not in str(raised.value)
  assert newest(workdir).is_dir()


def test_a_reader_changes_nothing(workdir):
  unfinished = workdir / "checkpoints" / "30.orbax-checkpoint-tmp"  # a trainer is writing it
  unfinished.mkdir()
  remove_state(newest(workdir))
  before = sorted(path for path in workdir.rglob("*"))
  _, step = restore_variables(workdir, sharding=HERE)
  assert step == OLDER
  assert sorted(path for path in workdir.rglob("*")) == before


def test_numbers_that_are_not_finite_are_not_saved(workdir):
  checkpoints = Checkpoints(workdir)
  bad = state(30)
  bad.params["segmenter"]["kernel"] = bad.params["segmenter"]["kernel"].at[0, 0].set(jnp.nan)
  with pytest.raises(UserError, match=r"params/segmenter/kernel holds numbers that are not finite"):
    checkpoints.save(30, bad, position=position(30))
  checkpoints.close()
  assert restore_state(workdir, template())[2] == NEWER
