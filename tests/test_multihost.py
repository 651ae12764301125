"""Hosts joined over loopback: killed, stopped, resumed on another number of them, and equal to one device."""

import json
import os
import pathlib
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from scops_jax import models
from scops_jax.errors import UserError
from scops_jax.runs import hosts
from scops_jax.runs.checkpoints import latest_step
from scops_jax.storage.paths import as_path, filesystem, is_remote
from tests import multihost_worker
from tests.emulator import BUCKET, emulated_store, free_port

ROOT = pathlib.Path(__file__).parent.parent
TIMEOUT = 600  # seconds a host may take on a busy machine


@contextmanager
def started(folder, *runs, signals=("", ""), devices=2):
  """Starts as many hosts as there are signals; ends those that are left. Output goes to host_*.log."""
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "HOME": str(folder / "home"),  # local copies of what lies in the bucket
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
  }
  coordinator = f"localhost:{free_port()}" if len(signals) > 1 else ""
  processes = []
  try:
    for i, signal_at in enumerate(signals):
      arguments = [coordinator, str(i), f"{BUCKET}/tfds", signal_at, *runs]
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


def codes(folder, processes):
  """Waits for all hosts; returns their exit codes, and their output for a failed test."""
  found = [process.wait(TIMEOUT) for process in processes]
  return found, "\n".join((folder / f"host_{i}.log").read_text() for i in range(len(processes)))


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
def store():
  """A store of buckets for this process and the hosts."""
  with emulated_store() as environment, pytest.MonkeyPatch.context() as patch:
    for name, value in environment.items():
      patch.setenv(name, value)
    yield


@pytest.fixture(scope="module")
def workdirs(folder, store):
  """Directories of runs: "alone" on one device; "jit" and "pmap" on two hosts of two, both interrupted.

  "jit" is in a bucket, as are the data. It gets SIGTERM on its second host, goes on on one host of one
  device, which gets it too, and ends on two hosts. "pmap" loses its second host in step 5 and starts again.
  """
  found = {"alone": folder / "alone", "jit": as_path(f"{BUCKET}/jit"), "pmap": folder / "pmap"}
  jit, pmap = (f"{name}={found[name]}" for name in ("jit", "pmap"))
  with started(folder, jit, signals=("", "SIGTERM@1")) as processes:
    train_alone(folder)
    ended, output = codes(folder, processes)
  assert ended == [143, 143], output
  first_stop = latest_step(found["jit"])
  assert 1 < first_stop < 5, output
  assert output.count(f"stopped after step {first_stop}, which is saved") == 2
  with started(folder, jit, signals=("SIGTERM@5",), devices=1) as processes:
    ended, output = codes(folder, processes)
  assert ended == [143], output
  assert latest_step(found["jit"]) == 5
  with started(folder, jit, pmap, signals=("", "SIGKILL@5")) as (first, second):
    assert second.wait(TIMEOUT) == -signal.SIGKILL, (folder / "host_1.log").read_text()
    with suppress(subprocess.TimeoutExpired):
      assert first.wait(3) != 0  # it can't go on alone: it fails, or waits for the other and is ended here
  assert not (found["pmap"] / "evaluation.json").exists()
  assert max(metrics(found["pmap"])["step"]) in (4, 5)
  with started(folder, pmap) as processes:
    ended, output = codes(folder, processes)
  assert ended == [0, 0], output
  return found


@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
def test_interrupted_runs_give_the_numbers_of_one_device(parallelism, workdirs):
  # The sums over a batch are taken in another order by another number of devices: float32 rounding, 1e-7,
  # which seven steps amplify to about 1e-6. A wrong image or seed changes the losses by 1e-2.
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


@pytest.mark.parametrize(("parallelism", "starts"), [("jit", 3), ("pmap", 2)])
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
  written = filesystem(workdir).find(str(workdir)) if is_remote(workdir) else workdir.rglob("*")
  assert not [path for path in written if "tmp" in pathlib.Path(path).name]
  assert "landmark_error_test" in (folder / "host_0.log").read_text()
  assert "landmark_error_test" not in (folder / "host_1.log").read_text()


def test_hosts_that_cannot_be_joined_are_a_users_mistake():
  with pytest.raises(UserError, match=r"--multihost can't join the hosts: .*--coordinator_address"):
    hosts.join(num_processes=2)


def test_one_host_needs_nobody():
  assert hosts.is_first()
  assert hosts.broadcast_from_first(3) == hosts.all_gather(3) == 3
  assert hosts.first_host_first(str.upper, "done") == "DONE"


def test_a_cluster_is_found_by_itself():
  """SLURM's variables, as on a node that runs one process."""
  environment = {
    "SLURM_JOB_ID": str(free_port()),  # the coordinator's port follows from it
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
  }
  code = "import jax; from scops_jax.runs import hosts; hosts.join(timeout=60); print(jax.process_count())"
  result = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
  )
  assert (result.returncode, result.stdout) == (0, "1\n"), result.stderr


def test_sigterm_ends_a_host_outside_of_training():
  code = f"""
import os, signal, sys
from scops_jax.runs import hosts
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
hosts.join(coordinator_address="localhost:{free_port()}", num_processes=1, process_id=0)
os.kill(os.getpid(), signal.SIGTERM)
print("lives")
"""
  result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert (result.returncode, result.stdout) == (143, ""), result.stderr
