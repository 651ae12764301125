"""The benchmarks: both sides compute the same, contestants take turns, tables say what was measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import prepare, semantic_consistency, workload
from experiments.benchmarks.contest import Timing, calls_per_turn, in_turn
from experiments.benchmarks.tables import check_losses, losses_table, memory_table, speed_table
from scops_jax import appearance, geometry, losses, models, train_step, warp
from scops_jax.errors import UserError
from tests import tiny


def test_the_draws_are_those_of_the_training_step():
  config, networks, batch, step = tiny.config(), tiny.networks(), tiny.batch(), 1
  params, batch_stats, _ = tiny.variables(networks)
  draws = prepare.draw_transforms(config, step + 1)
  jitter = appearance.ColorJitter(draws.factors[step], draws.hue[step], draws.order[step])
  features = (jnp.ones((4, 2, 2, tiny.CHANNELS)),)

  def logits(images):
    result = networks.segmenter.apply({"params": params["segmenter"]}, images)
    return geometry.resize_bilinear(result, 16, 16)

  @jax.jit
  def both():
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step), config.batch_size)
    options = {"keys": keys, "features": features, "networks": networks, "config": config}
    terms, _ = train_step.compute_losses(params, batch_stats, batch, **options)
    images = jnp.asarray(batch["image"], jnp.float32)
    jittered = models.normalize(config.segmenter, appearance.apply_jitter(images, jitter))
    grid = warp.thin_plate_grid(draws.source_points[step], 16, 16)
    target = warp.warp(logits(models.normalize(config.segmenter, images)), grid)
    return terms["equivariance"], losses.equivariance_loss(logits(warp.warp(jittered, grid)), target)

  in_the_step, expected = both()
  np.testing.assert_allclose(in_the_step, expected, rtol=1e-5)


def test_sizes_other_than_the_configs():
  config = workload.load_config("toy_faces", batch_size=2, image_size=64)
  assert (config.batch_size, config.image_size, config.reference_image_size) == (2, 64, 2 * 64 + 1)
  config = workload.load_config("celeba", image_size=128)
  assert (config.batch_size, config.image_size, config.reference_image_size) == (6, 128, 128)
  with pytest.raises(UserError, match=r"there is no configs/toys\.py"):
    workload.load_config("toys")


def test_a_workload_survives_the_folder(tmp_path):
  config = workload.load_config("toy_faces", batch_size=2, image_size=16)
  arrays = workload.Arrays(*prepare.draw_images(2, 16), np.ones((8, 5), np.float32))
  assert (arrays.images.shape, arrays.images.dtype) == ((2, 16, 16, 3), np.uint8)
  assert (arrays.saliency.shape, arrays.saliency.dtype) == ((2, 16, 16), np.uint8)
  draws = prepare.draw_transforms(config, 3)
  assert [x.shape for x in draws] == [(3, 2, 25, 2), (3, 2, 3), (3, 2), (3, 2, 4)]
  state_dicts = {name: {"a.weight": np.arange(3.0)} for name in workload.STATE_DICTS}
  workload.save(tmp_path, config, arrays, draws, **state_dicts)
  assert workload.read_config(tmp_path) == config
  for saved, original in zip(workload.read_arrays(tmp_path), (arrays, draws), strict=True):
    jax.tree.map(np.testing.assert_array_equal, saved, original)
  assert workload.read_state_dict(tmp_path, "segmenter")["a.weight"].tolist() == [0, 1, 2]


def test_contestants_take_turns_after_warming_up():
  asked = []

  def turn(name, seconds):
    def call(calls):
      asked.append((name, calls))
      return seconds

    return call

  timings = in_turn({"a": turn("a", 0.2), "b": turn("b", 2.0)}, 2)
  assert asked == [("a", 1), ("a", 1), ("b", 1), ("b", 1), ("a", 3), ("b", 1), ("a", 3), ("b", 1)]
  assert timings == {"a": Timing((0.2, 0.2)), "b": Timing((2.0, 2.0))}
  assert [calls_per_turn(seconds) for seconds in (0.0, 1e-4, 0.1, 7.0)] == [200, 200, 5, 1]


def test_timings_are_compared_round_by_round():
  slow, fast = Timing((3.0, 8.0, 6.0)), Timing((1.0, 4.0, 2.0))
  assert (slow.median, fast.median) == (6.0, 2.0)
  assert fast.speedup(slow) == 3.0  # of 3, 2 and 3
  assert slow.minus(fast) == Timing((2.0, 4.0, 4.0))
  assert str(slow) == "6000 (3000–8000)"


def test_the_speed_table():
  steps = {"jax": Timing((0.5, 0.5, 1.0)), "pytorch": Timing((1.0, 1.5, 1.0))}
  assert speed_table({"step": steps}, {"step": 8}).splitlines() == [
    "| piece | jax, ms | images/s | pytorch, ms | images/s | jax over pytorch |",
    "| --- | ---: | ---: | ---: | ---: | ---: |",
    "| step | 500 (500–1000) | 16 | 1000 (1000–1500) | 8 | 2.00 × |",
  ]
  assert "over" not in speed_table({"step": {"jax": steps["jax"]}}, {"step": 8})


def test_memory_and_losses_tables():
  peaks = {
    "steps alone": {"jax": 2_000_000_000, "pytorch": 4_100_000_000},
    "of the device": {"jax": None, "pytorch": None},
  }
  assert memory_table(peaks).splitlines() == [
    "| peak memory, GB | jax | pytorch |",
    "| --- | ---: | ---: |",
    "| steps alone | 2.00 | 4.10 |",
  ]
  metrics = {"jax": [{"loss": 2.00002}, {"loss": 9.0}], "pytorch": [{"loss": 2.0}, {"loss": 1.0}]}
  assert losses_table(metrics).splitlines()[2:] == ["| loss | 2.00002 | 2 | 1.0e-05 |"]
  check_losses(metrics)


@pytest.mark.parametrize(
  ("metric", "value"), [("loss", 1.0002), ("loss", float("nan")), ("gradient_norm", 1.02)]
)
def test_other_losses_are_an_error(metric, value):
  metrics = {"jax": [{metric: value}], "pytorch": [{metric: 1.0}], "pytorch:bfloat16": [{metric: 1.1}]}
  with pytest.raises(UserError, match=f"jax does not compute the same as pytorch: {metric}"):
    check_losses(metrics)


def test_both_forms_of_semantic_consistency_agree():
  inputs = semantic_consistency.draw_inputs(0, batch_size=1, image_size=32, num_parts=2, channels=7)
  forms = {
    name: semantic_consistency.compile_form(form, inputs) for name, form in semantic_consistency.FORMS.items()
  }
  results = {name: form(*inputs) for name, form in forms.items()}
  assert semantic_consistency.largest_difference(results["here"], results["as written"]) < 1e-5
  timings = {"as written": Timing((2.0,)), "here": Timing((0.5,))}
  lines = semantic_consistency.table(timings, {"as written": 30_000_000, "here": 1_500_000}).splitlines()
  assert lines[-1] == "| ratio | 4.0 × | 20.0 × |"


@pytest.mark.parametrize(("name", "image_size", "rtol"), [("toy_faces", 32, 1e-4), ("celeba", 64, 5e-2)])
def test_both_frameworks_compute_the_same_steps(name, image_size, rtol, tmp_path):
  pytest.importorskip("torch")
  from experiments.benchmarks import pieces, pytorch_pieces, pytorch_step

  prepare.prepare(tmp_path, workload.load_config(name, batch_size=2, image_size=image_size))
  steps = {"jax": pieces.Step(tmp_path), "pytorch": pytorch_step.Step(tmp_path)}
  metrics = {
    name: [{term: float(value) for term, value in step().items()} for _ in range(workload.DRAWN_STEPS)]
    for name, step in steps.items()
  }
  check_losses(metrics)
  # Later ones show that the updates are the same too; batch statistics make celeba's sensitive to rounding.
  for ours, theirs in zip(metrics["jax"], metrics["pytorch"], strict=True):
    assert ours == pytest.approx(theirs, rel=rtol)
  theirs = pytorch_pieces.build(steps["pytorch"])
  assert pieces.build(steps["jax"]).keys() == theirs.keys()
