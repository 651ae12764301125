"""Paths, files, copies, checkpoints and locks in buckets, on a store in memory."""

import json
import os
import pathlib
import pickle
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from scops_jax import weights
from scops_jax.errors import UserError
from scops_jax.runs.checkpoints import Checkpoints, latest_step, restore_state, restore_variables
from scops_jax.runs.workdir import owned
from scops_jax.storage import locks, paths
from scops_jax.storage.files import file_digest, local_copy, replacing
from scops_jax.storage.locks import InUseError, exclusive
from scops_jax.storage.mirror import local_path, pull, push
from scops_jax.storage.paths import as_path, filesystem, is_remote
from tests.memory_store import bucket  # noqa: F401
from tests.test_checkpoints import state, template


def test_local_paths_stay_pathlibs_and_load_nothing():
  code = """
import sys
from scops_jax.storage.files import replacing
from scops_jax.storage.paths import as_path
print(type(as_path("runs/a")).__module__, [n for n in ("fsspec", "etils") if n in sys.modules])
"""
  root = pathlib.Path(__file__).parent.parent
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
  assert result.stdout.split(" ", 1)[1].strip() == "[]"
  assert result.stdout.startswith("pathlib")


@pytest.mark.parametrize("text", ["s3://bucket/a/b.txt", "s3:/bucket/a/b.txt", "s3://bucket//a/b.txt"])
def test_a_buckets_path_is_known_even_if_pathlib_has_had_it(text, bucket):  # noqa: F811
  path = as_path(pathlib.Path(text))
  assert is_remote(path)
  assert str(path) == "s3://bucket/a/b.txt"
  assert str(path.with_name("c") / "d") == "s3://bucket/a/c/d"
  assert str(as_path(path)) == str(path)
  assert pickle.loads(pickle.dumps(path)) == path  # as the processes of predict get it


def test_another_scheme_is_a_users_mistake():
  with pytest.raises(UserError, match=r"hdfs://a/b: expected a local path, gs://BUCKET/… or s3://BUCKET/…"):
    as_path("hdfs://a/b")


def test_a_missing_package_names_the_extra(monkeypatch):
  monkeypatch.setitem(paths._PACKAGES, "gs", "no_such_package")
  with pytest.raises(UserError, match=r"gs://none needs .*pip install 'scops_jax\[cloud\]'"):
    as_path("gs://none/run")


def test_a_bucket_that_cannot_be_reached_is_a_users_mistake(bucket):  # noqa: F811
  with pytest.raises(UserError, match=r"s3://another can't be reached .*is the bucket's name right"):
    as_path("s3://another/run")


def test_a_file_appears_whole_and_an_error_leaves_the_old_one(bucket):  # noqa: F811
  path = bucket / "a.json"

  def fail():
    with replacing(path) as temporary:
      temporary.write_text("half")
      raise RuntimeError("interrupted")

  with pytest.raises(RuntimeError):
    fail()
  assert not path.exists()
  with replacing(path) as temporary:
    assert not is_remote(temporary)
    temporary.write_text("whole")
    assert not path.exists()
  assert path.read_text() == "whole"
  with pytest.raises(RuntimeError):
    fail()
  assert path.read_text() == "whole"
  with local_copy(path) as local:
    assert local.read_text() == "whole"
    assert file_digest(local) == file_digest(path)
  assert not local.exists()


def test_copies_take_over_what_is_newer(bucket):  # noqa: F811
  local = local_path(bucket)
  (local / "sub").mkdir(parents=True)
  (local / "a").write_text("1")
  (local / "sub" / "b").write_text("2")
  (local / "last").write_text("3")
  push(bucket, flat=True, last="last")
  assert sorted(path.name for path in bucket.iterdir()) == ["a", "last"]
  push(bucket)
  assert (bucket / "sub" / "b").read_text() == "2"
  (local / "a").unlink()
  (local / "sub" / "b").write_text("damaged")
  assert pull(bucket) == local
  assert (local / "a").read_text() == "1"
  assert (local / "sub" / "b").read_text() == "2"
  (local / "a").write_text("longer")
  push(bucket / "a")
  assert (bucket / "a").read_text() == "longer"
  assert not pull(bucket / "none").exists()


def test_weights_are_read_from_a_bucket(bucket):  # noqa: F811
  arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
  path = str(bucket / "weights.safetensors")
  weights.save_state_dict(path, arrays)
  assert str(weights.resolve(path, "vgg16", "reference_weights")) == path
  np.testing.assert_array_equal(weights.load_state_dict(path)["a"], arrays["a"])
  with pytest.raises(weights.WeightsError, match=r"reference_weights=s3://bucket/none\.pth: no such file"):
    weights.resolve("s3://bucket/none.pth", "vgg16", "reference_weights")


def test_checkpoints_of_a_store_that_orbax_does_not_know(bucket):  # noqa: F811
  checkpoints = Checkpoints(bucket)
  for step in (10, 20, 30):
    checkpoints.save(step, state(step / 3), position={"next_index": step})
  checkpoints.close()
  found = {path.name: (path / "commit_success.txt") for path in (bucket / "checkpoints").iterdir()}
  assert found.keys() == {"20", "30"}
  after, position, step = restore_state(bucket, template())
  assert (position, step) == ({"next_index": 30}, 30)
  for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state(10.0)), strict=True):
    np.testing.assert_array_equal(a, b)
  (largest,) = sorted(
    (path for path in filesystem(bucket).find(str(bucket / "checkpoints" / "30" / "state"))),
    key=lambda path: filesystem(bucket).size(path),
  )[-1:]
  filesystem(bucket).pipe_file(largest, bytes(filesystem(bucket).size(largest)))
  assert restore_state(bucket, template())[2] == 20
  assert (bucket / "damaged" / "30").exists()
  (found["20"]).unlink()  # as an upload that was killed leaves it
  assert latest_step(bucket) == 0
  with pytest.raises(UserError, match="no checkpoint yet"):
    restore_variables(bucket, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def test_a_living_owner_keeps_its_lock_and_gives_it_back(bucket):  # noqa: F811
  with owned(bucket):
    with pytest.raises(UserError, match=r"is being trained by process \d+ on "), owned(bucket):
      pass
    assert (bucket / "lock").exists()
  assert not (bucket / "lock").exists()


def write_lock(path, **values):
  with replacing(path) as temporary:
    temporary.write_text(json.dumps({"owner": "process 1 on far", "token": "x", "beats": 0, **values}))


@pytest.fixture
def quick(monkeypatch):
  for name, seconds in (("BEAT", 0.05), ("EXPIRY", 0.5), ("_POLL", 0.05)):
    monkeypatch.setattr(locks, name, seconds)


def test_a_lock_that_nobody_renews_is_taken(bucket, quick, capsys):  # noqa: F811
  write_lock(bucket / "lock", machine="another", process="1")
  with exclusive(bucket / "lock"):
    assert "process 1 on far" not in (bucket / "lock").read_text()
  assert "lock is that of process 1 on far: waiting up to" in capsys.readouterr().err


def test_a_lock_of_a_dead_process_of_this_machine_is_taken_at_once(bucket, capsys):  # noqa: F811
  with subprocess.Popen(["true"]) as process:
    pass
  write_lock(bucket / "lock", machine=locks._machine(), process=str(process.pid))
  with exclusive(bucket / "lock"):
    assert not capsys.readouterr().err


def test_a_process_that_has_the_number_of_a_dead_one_does_not_keep_its_lock(bucket, capsys):  # noqa: F811
  # As in a container that is started again: the command has the same number as the one that was killed.
  number = str(os.getpid())
  write_lock(bucket / "lock", machine=locks._machine(), process=number, started="1")
  with exclusive(bucket / "lock"):
    assert not capsys.readouterr().err
    with pytest.raises(InUseError, match=number), exclusive(bucket / "lock"):
      pass


def test_a_living_process_keeps_a_lock_that_does_not_say_when_it_started(bucket):  # noqa: F811
  write_lock(bucket / "lock", machine=locks._machine(), process=str(os.getpid()))
  with pytest.raises(InUseError, match="process 1 on far"), exclusive(bucket / "lock"):
    pass


def test_a_lock_that_is_renewed_is_respected(bucket, quick):  # noqa: F811
  stop = threading.Event()

  def renew():
    beats = 0
    while not stop.wait(0.1):
      beats += 1
      write_lock(bucket / "lock", machine="another", beats=beats)

  write_lock(bucket / "lock", machine="another")
  thread = threading.Thread(target=renew)
  thread.start()
  try:
    with pytest.raises(InUseError, match="process 1 on far"), exclusive(bucket / "lock"):
      pass
  finally:
    stop.set()
    thread.join()


def test_the_owner_renews_its_lock_and_notices_that_it_was_taken(bucket, quick):  # noqa: F811
  lost = threading.Event()
  lock = locks._ObjectLock(bucket / "lock", lost=lambda path: lost.set())
  before = (bucket / "lock").read_bytes()
  assert not lost.wait(0.3)
  assert (bucket / "lock").read_bytes() != before
  write_lock(bucket / "lock")
  assert lost.wait(10)
  lock.close()
  assert "process 1 on far" in (bucket / "lock").read_text()


def test_of_two_that_ask_at_once_one_gets_the_lock(bucket, monkeypatch):  # noqa: F811
  read = locks._ObjectLock._read
  # Both have seen that there is no lock.
  monkeypatch.setattr(
    locks._ObjectLock, "_read", lambda self: None if not hasattr(self, "_thread") else read(self)
  )
  with exclusive(bucket / "lock"), pytest.raises(InUseError), exclusive(bucket / "lock"):
    pass
