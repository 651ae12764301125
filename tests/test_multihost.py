"""Two hosts of two devices each, joined over loopback: killed, resumed, and equal to one device."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from scops_jax import models
from scops_jax.errors import UserError
from scops_jax.runs import hosts
from tests import multihost_worker

ROOT = pathlib.Path(__file__).parent.parent
TIMEOUT = 600  # seconds a host may take on a busy machine


def free_port():
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    return listener.getsockname()[1]


@contextmanager
def two_hosts(folder, *runs, dies_at=("never", "never")):
  """Starts both hosts, whose output goes to host_0.log and host_1.log, and ends those that are left."""
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2",
  }
  coordinator = f"localhost:{free_port()}"
  processes = []
  try:
    for i in range(2):
      arguments = [coordinator, str(i), str(folder / "tfds"), dies_at[i], *runs]
      command = [sys.executable, "-m", "tests.multihost_worker", *arguments]
      with (folder / f"host_{i}.log").open("w") as log:
        processes.append(
          subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        )
    yield processes
  finally:
    for process in processes:
      process.kill()
      process.wait()


def metrics(workdir):
  """The columns of metrics.jsonl without the timing."""
  records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {name: [r[name] for r in records] for name in records[0] if name != "images_per_second"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("multihost")


def train_alone(folder):
  """A run on one device, in this process."""
  segmenters, references = multihost_worker.networks()
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(models._SEGMENTERS, "tiny", segmenters["tiny"])
    patch.setitem(models._REFERENCES, "tiny", references["tiny"])
    multihost_worker.train_run(folder / "alone", parallelism="jit", cache=folder / "tfds")


@pytest.fixture(scope="module")
def workdirs(folder):
  """Directories of runs: "alone", and on two hosts "jit", killed in step 5 and resumed, and "pmap"."""
  found = {name: folder / name for name in ("alone", "jit", "pmap")}
  with two_hosts(folder, f"jit={found['jit']}", dies_at=("never", "5")) as (first, second):
    train_alone(folder)
    assert second.wait(TIMEOUT) == -signal.SIGKILL, (folder / "host_1.log").read_text()
    with suppress(subprocess.TimeoutExpired):
      assert first.wait(3) != 0  # it can't go on alone: it fails, or waits for the other and is ended here
  assert not (found["jit"] / "evaluation.json").exists()
  assert max(metrics(found["jit"])["step"]) in (4, 5)
  with two_hosts(folder, *(f"{name}={found[name]}" for name in ("jit", "pmap"))) as processes:
    for i, process in enumerate(processes):
      assert process.wait(TIMEOUT) == 0, (folder / f"host_{i}.log").read_text()
  return found


@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
def test_two_hosts_give_the_numbers_of_one_device(parallelism, workdirs):
  found, expected = metrics(workdirs[parallelism]), metrics(workdirs["alone"])
  assert found["step"] == list(range(1, 8))
  assert found.keys() == expected.keys()
  for name, values in expected.items():
    np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
  results, single = (
    json.loads((workdirs[name] / "evaluation.json").read_text()) for name in (parallelism, "alone")
  )
  assert (results["num_train"], results["num_test"]) == (16, 6)
  for name, value in single.items():
    np.testing.assert_allclose(results[name], value, rtol=2e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("parallelism", "starts"), [("jit", 2), ("pmap", 1)])
def test_the_first_host_alone_writes(parallelism, starts, workdirs, folder):
  workdir = workdirs[parallelism]
  assert len(list(workdir.glob("events.out.tfevents.*"))) == starts
  assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["6", "7"]
  for name in (
    "config.json",
    "dff.npz",
    "figures/losses.png",
    "figures/parts_000007.png",
    "report/index.html",
  ):
    assert (workdir / name).exists(), name
  assert not list(workdir.rglob("*tmp*"))
  assert "landmark_error_test" in (folder / "host_0.log").read_text()
  assert "landmark_error_test" not in (folder / "host_1.log").read_text()


def test_hosts_that_cannot_be_joined_are_a_users_mistake():
  with pytest.raises(UserError, match=r"--multihost can't join the hosts: .*--coordinator_address"):
    hosts.join(num_processes=2)


def test_one_host_needs_nobody():
  assert hosts.is_first()
  assert hosts.broadcast_from_first(3) == hosts.all_gather(3) == 3
  assert hosts.first_host_first(str.upper, "done") == "DONE"
