"""Signals and steps that are not finite: what is done is saved, and nothing wrong is."""

import json
import os
import signal
import subprocess
import sys
import threading

import jax.numpy as jnp
import pytest

from scops_jax import train
from scops_jax.errors import UserError
from scops_jax.runs.checkpoints import latest_step
from scops_jax.runs.interruption import Interruption
from scops_jax.runs.step_metrics import StepMetrics
from scops_jax.train import train_and_evaluate
from tests import tiny
from tests.faults.conftest import outcome


def send_in_call(monkeypatch, owner, name, number, *, call=1):
  """Sends a signal to this process in a call of a function."""
  called, calls = getattr(owner, name), []

  def function(*args, **kwargs):
    calls.append(1)
    if len(calls) == call:
      os.kill(os.getpid(), number)
    return called(*args, **kwargs)

  monkeypatch.setattr(owner, name, function)


@pytest.mark.parametrize(
  ("number", "code", "owner", "name", "saved"),
  [
    (signal.SIGTERM, 143, train.StepMetrics, "add", 5),
    (signal.SIGINT, 130, train, "evaluate", 4),
  ],
  ids=["in a step", "in an evaluation"],
)
def test_a_signal_saves_and_the_next_start_ends_as_a_run_left_alone(
  number, code, owner, name, saved, config, workdir, finished, monkeypatch
):
  handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
  with monkeypatch.context() as patch:
    send_in_call(patch, owner, name, number)
    with pytest.raises(SystemExit) as ended:
      train_and_evaluate(config, workdir)
  assert ended.value.code == code
  assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
  # In the first case the evaluation of step 4 came first, then step 5 was finished.
  assert latest_step(workdir) == saved
  assert not list((workdir / "checkpoints").glob("*tmp*"))
  train_and_evaluate(config, workdir)
  assert outcome(workdir) == outcome(finished[1])


SECOND = """
import os, signal
from scops_jax.runs.interruption import Interruption
with Interruption(0) as interruption:
  os.kill(os.getpid(), signal.SIGINT)
  assert interruption.stops_after(1)
  print("first", flush=True)
  os.kill(os.getpid(), signal.SIGTERM)
  print("second")
"""


def test_a_second_signal_ends_the_process_at_once():
  result = subprocess.run([sys.executable, "-c", SECOND], capture_output=True, text=True)
  assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGTERM, "first\n", "")


def test_outside_the_main_thread_training_gets_no_signals():
  failed = []

  def work():
    try:
      with Interruption(0) as interruption:
        assert not interruption.stops_after(1)
    except BaseException as error:
      failed.append(error)

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert not failed


COMMAND = """
import os, signal
from scops_jax import cli
from scops_jax.storage.files import replacing
def main():
  with replacing("file") as path:
    path.write_text("half")
    os.kill(os.getpid(), signal.{name})
    raise AssertionError
cli.run(main)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_every_command_ends_with_a_code_and_one_line(name, code, tmp_path):
  environment = os.environ | {"PYTHONPATH": os.getcwd()}
  result = subprocess.run(
    [sys.executable, "-c", COMMAND.format(name=name)],
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert (result.returncode, result.stderr) == (code, f"ended by {name}\n")
  assert not list(tmp_path.iterdir())


def poison(monkeypatch, step):
  """Makes a term of one step NaN, as train_step reports a step that it has not kept."""
  compiled = train.compile_steps

  def compile_steps(*args):
    steps = compiled(*args)

    def train_step(state, *inputs):
      before = int(state.step)
      state, metrics = steps.train(state, *inputs)
      if before + 1 == step:
        metrics = {**metrics, "loss": jnp.nan, "equivariance": jnp.nan}
      return state, metrics

    return steps._replace(train=train_step)

  monkeypatch.setattr(train, "compile_steps", compile_steps)


def test_a_step_that_is_not_finite_is_not_saved_and_is_named(config, workdir, monkeypatch):
  poison(monkeypatch, 6)
  with pytest.raises(
    UserError, match=r"step 6 is not kept: equivariance is nan \(images \S+, \S+\)"
  ) as raised:
    train_and_evaluate(config, workdir)
  assert "on_nonfinite_step=skip" in str(raised.value)
  assert latest_step(workdir) == 4


def test_skipped_steps_are_counted_and_the_run_goes_on(config, workdir, finished, monkeypatch):
  poison(monkeypatch, 5)
  config.on_nonfinite_step = "skip"
  assert train_and_evaluate(config, workdir)["step"] == 6
  records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert [record["step"] for record in records] == [1, 2, 3, 4, 6]
  assert records[-1]["skipped_steps"] == 1


def metrics(value=1.0, **others):
  return {"loss": value, "gradient_norm": 1.0, **others}


def test_a_run_that_skips_every_step_stops():
  fetched = StepMetrics(tiny.config(on_nonfinite_step="skip"), image_names=lambda step: ["a.png"])
  for step in range(1, 22):
    fetched.add(step, metrics(jnp.inf))
  with pytest.raises(UserError, match=r"step 21 is not kept: loss is inf \(images a\.png\); .* in a row"):
    fetched.check()


@pytest.mark.parametrize(
  ("values", "said"),
  [
    (metrics(float("nan"), balance=float("nan")), "balance is nan"),
    ({"loss": 1.0, "gradient_norm": float("inf")}, "gradient_norm is inf"),
    (metrics(finite=False), "its gradient or new parameters are not finite"),
  ],
)
def test_the_cause_is_named_and_the_advice_fits(values, said):
  for step, advice in (
    (1, "only the weight files or the images"),
    (9, "learning_rate=0.001 or a loss weight"),
  ):
    fetched = StepMetrics(tiny.config(), image_names=lambda step: [f"{step}-{i}.png" for i in range(12)])
    fetched.add(step, values)
    with pytest.raises(UserError, match=f"step {step} is not kept: {said}") as raised:
      fetched.check()
    assert advice in str(raised.value)
    assert f"{step}-7.png and 4 more" in str(raised.value)
