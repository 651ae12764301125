"""When a step's line is written, the profile, and what is said about devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax import optimizer
from scops_jax.runs import devices
from scops_jax.runs.profiler import Profiler
from scops_jax.runs.step_log import StepLog
from scops_jax.runs.step_metrics import StepMetrics
from tests import tiny


class Recorder:
  """A MetricsLog and a progress bar that remember."""

  def __init__(self):
    self.lines = []
    self.updates = 0

  def write(self, step, scalars):
    self.lines.append((step, scalars))

  def update(self):
    self.updates += 1

  def show(self, **numbers):
    self.postfix = numbers


@pytest.fixture
def recorder():
  return Recorder()


def step_log(recorder, config):
  metrics = StepMetrics(config, image_names=lambda step: [])
  return StepLog(config, metrics=metrics, log=recorder, bar=recorder)


def test_a_line_is_written_once_the_next_step_is_started(recorder):
  config = tiny.config(**{"optimizer.schedule": "poly"})
  log = step_log(recorder, config)
  log.add(1, {"loss": jnp.float32(3.0), "finite": jnp.bool_(True)})
  log.settle(1, logs=True, wait=False)
  assert recorder.lines == []
  log.add(2, {"loss": jnp.float32(2.0), "finite": jnp.bool_(True)})
  assert [(step, scalars["loss"]) for step, scalars in recorder.lines] == [(1, 3.0)]
  log.settle(2, logs=False, wait=False)
  log.add(3, {"loss": jnp.float32(1.0), "finite": jnp.bool_(True)})
  assert len(recorder.lines) == 1
  log.settle(3, logs=True, wait=True)  # a step that is saved
  assert recorder.lines[1][0] == 3
  assert recorder.lines[1][1]["lr"] == pytest.approx(config.optimizer.learning_rate * 0.8**0.9)
  assert recorder.updates == 3


def test_metrics_come_in_one_transfer(recorder, monkeypatch):
  transfers = []
  device_get = jax.device_get
  monkeypatch.setattr(jax, "device_get", lambda tree: transfers.append(1) or device_get(tree))
  log = step_log(recorder, tiny.config())
  for step in range(1, 6):
    log.add(step, {"loss": jnp.float32(step), "finite": jnp.bool_(True)})
    log.settle(step, logs=step == 5, wait=step == 5)
  assert len(transfers) == 1
  assert recorder.lines[0][1]["loss"] == 5.0


def test_the_rate_is_computed_on_the_hosts_cpu():
  options = tiny.config().optimizer
  places = []

  def schedule(step):
    rate = optimizer.make_schedule(options, num_steps=10)(step)
    places.append(rate.devices())
    return rate

  rate = optimizer.rate_on_host(schedule, 3)
  assert rate == float(optimizer.make_schedule(options, num_steps=10)(3))
  assert places == [{jax.local_devices(backend="cpu")[0]}]


@pytest.mark.parametrize("profile", [True, False])
def test_a_profile_has_the_five_steps_after_the_first_five(profile, tmp_path, capsys):
  profiler = Profiler(tmp_path / "profile" if profile else None, start=2)
  train = jax.jit(lambda x: x @ x)
  x = np.ones((4, 4), np.float32)
  for number in range(3, 16):
    profiler.step(number, train, x)
  profiler.close()
  files = list(tmp_path.rglob("*.xplane.pb"))
  assert len(files) == profile
  assert ("xprof --logdir=" in capsys.readouterr().err) == profile
  if profile:
    steps = {name for name in (b"step_num", b"train") if name in files[0].read_bytes()}
    assert steps == {b"step_num", b"train"}


def test_a_run_that_ends_early_still_writes_its_profile(tmp_path):
  profiler = Profiler(tmp_path, start=0)
  for number in range(1, 8):
    profiler.step(number, jnp.square, jnp.float32(number))
  profiler.close()
  assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of a CPU's line")
def test_the_start_says_devices_and_precision(capsys):
  devices.announce_devices(tiny.config())
  assert capsys.readouterr().err.endswith(
    f"computing on {jax.device_count()} × cpu (jit): segmenter in float32, reference in float32, parameters "
    "and losses in float32\n"
  )


@pytest.mark.parametrize(("found", "extra"), [("gpu", "cuda13"), ("tpu", "tpu")])
def test_an_accelerator_that_jax_cannot_use_is_a_warning(found, extra, tmp_path, capsys, monkeypatch):
  driver, bus = tmp_path / "nvidia0", tmp_path / "pci"
  for number, (vendor, device) in enumerate([("0x1ae0", "0x0042"), ("0x1ae0", "0x0063")]):
    if number == 0 or found == "tpu":  # the first is Google's network card
      (bus / str(number)).mkdir(parents=True)
      (bus / str(number) / "vendor").write_text(f"{vendor}\n")
      (bus / str(number) / "device").write_text(f"{device}\n")
  if found == "gpu":
    driver.touch()
  monkeypatch.setattr(devices, "_GPU_FILES", (str(driver),))
  monkeypatch.setattr(devices, "_PCI_DEVICES", bus)
  previous = jax.config.jax_platforms
  try:
    jax.config.update("jax_platforms", None)
    devices.announce_devices(tiny.config())
    assert f"scops_jax[{extra}]" in capsys.readouterr().err
    jax.config.update("jax_platforms", "cpu")
    devices.announce_devices(tiny.config())
    assert "warning" not in capsys.readouterr().err
  finally:
    jax.config.update("jax_platforms", previous)
