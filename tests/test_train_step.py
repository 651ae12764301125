"""The training step: its terms, their weights, determinism, the same numbers on one device and on four."""

import functools
import os
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax import models
from scops_jax.errors import UserError
from scops_jax.geometry import resize_bilinear
from scops_jax.kernels.platforms import targeting
from scops_jax.runs.parallel import compile_steps
from scops_jax.train_step import (
  create_optimizer,
  predict_step,
  reference_features,
  segment_pair,
  stream_key,
  train_step,
  trainable_parameters,
)
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent


def run_steps(config, count=3, segmenter=None, masks=None):
  nets = tiny.networks(segmenter)
  params, batch_stats, reference = tiny.variables(nets)
  optimizer = create_optimizer(nets, params, config)
  steps = compile_steps(nets, optimizer, config)
  state, reference = steps.replicate(tiny.state(params, batch_stats, optimizer)), steps.replicate(reference)
  history = []
  for i in range(count):
    batch = tiny.batch(config.batch_size, seed=i)
    if masks is not None:
      batch["saliency"] = np.broadcast_to(masks[:, None, None], batch["saliency"].shape)
    state, metrics = steps.train(state, steps.shard_batch(batch), reference)
    history.append({name: float(value) for name, value in metrics.items()})
  return state, history


def test_the_loss_is_the_weighted_sum_of_the_terms():
  config = tiny.config()
  _, history = run_steps(config)
  for metrics in history:
    assert metrics["finite"]
    total = sum(weight * metrics[name] for name, weight in config.loss.items() if weight)
    assert metrics["loss"] == pytest.approx(total, rel=1e-5)
    assert "background" not in metrics


def test_a_term_that_is_switched_on_counts():
  config = tiny.config(**{"loss.background": 2.0, "loss.balance": 3.0, "loss.potts": 5.0})
  _, history = run_steps(config, count=1)
  total = sum(config.loss[name] * history[0][name] for name in config.loss)
  assert history[0]["background"] > 0
  assert history[0]["balance"] > 0
  assert history[0]["potts"] > 0
  assert history[0]["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("mapped", [False, True], ids=["jit", "vmap"])
@pytest.mark.parametrize("fault", ["parameters", "weight", "gradient"])
def test_an_update_that_is_not_finite_leaves_the_state_and_names_the_cause(fault, mapped):
  config = tiny.config()
  nets = tiny.networks(tiny.BatchNormSegmenter())
  params, batch_stats, reference = tiny.variables(nets)
  if fault == "parameters":
    params["basis"]["raw"] = params["basis"]["raw"].at[0, 0].set(jnp.inf)
  elif fault == "weight":
    config.loss.concentration = 1e39  # more than float32 holds
  else:
    config.loss.orthonormality = 3e38  # the loss still fits, its gradient does not
    params["basis"]["raw"] = jnp.eye(tiny.NUM_PARTS, tiny.CHANNELS) + 1e-3
  optimizer = create_optimizer(nets, params, config)
  state = tiny.state(params, batch_stats, optimizer)
  step = functools.partial(train_step, networks=nets, optimizer=optimizer, config=config)
  batch = tiny.batch(4)
  if mapped:  # devices, played by vmap
    batch = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), batch)
    step = jax.vmap(functools.partial(step, axis_name="data"), (None, 0, None), axis_name="data")
  after, metrics = jax.jit(step)(state, batch, reference)
  if mapped:
    after, metrics = jax.tree.map(lambda x: x[1], (after, metrics))
  assert not metrics["finite"]
  jax.tree.map(np.testing.assert_array_equal, after, state)
  infinite = {name for name, value in metrics.items() if not np.isfinite(value)}
  if fault == "parameters":
    assert infinite == {"loss", "gradient_norm", "semantic_consistency", "orthonormality"}
  else:
    assert "concentration" not in infinite


def test_eager_equals_jit():
  config = tiny.config()
  nets = tiny.networks()
  params, batch_stats, reference = tiny.variables(nets)
  optimizer = create_optimizer(nets, params, config)
  state = tiny.state(params, batch_stats, optimizer)
  after, metrics = train_step(
    state, tiny.batch(), reference, networks=nets, optimizer=optimizer, config=config
  )
  compiled, history = run_steps(config, count=1)
  for name, value in metrics.items():
    assert float(value) == pytest.approx(history[0][name], rel=1e-4), name
  for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(compiled.params), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_seed_and_the_step_determine_the_draws():
  first, _ = run_steps(tiny.config())
  again, _ = run_steps(tiny.config())
  other, _ = run_steps(tiny.config(seed=1))
  same = [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first, again)), strict=True)]
  assert all(same)
  kernels = [s.params["segmenter"]["trunk"]["kernel"] for s in (first, other)]
  assert not np.array_equal(*kernels)


def test_streams_share_no_key():
  keys = [stream_key(3, "steps", step) for step in (0, 1, 2, 2**31 - 1)]
  keys += [stream_key(3, stream) for stream in ("segmenter", "reference", "basis", "nmf", "kmeans")]
  assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)
  other = stream_key(4, "basis")
  assert not np.array_equal(jax.random.key_data(other), jax.random.key_data(stream_key(3, "basis")))


def test_a_segmenter_with_batch_statistics_makes_a_pass_over_each_batch():
  """Its running statistics move twice, first with the images and then with the warped ones."""
  nets = tiny.networks(tiny.BatchNormSegmenter())
  params, batch_stats, _ = tiny.variables(nets)
  variables = {"params": params["segmenter"], "batch_stats": batch_stats}
  images, warped = (np.float32(tiny.batch(seed=seed)["image"]) for seed in (0, 1))
  logits, warped_logits, after = segment_pair(nets.segmenter, variables, images, warped)
  for batch, found in ((images, logits), (warped, warped_logits)):
    expected, updates = nets.segmenter.apply(variables, batch, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    variables |= updates
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after, variables["batch_stats"])


@pytest.mark.parametrize("batch_norm", [False, True])
def test_both_passes_together_give_what_they_do_one_by_one(batch_norm):
  nets = tiny.networks(tiny.BatchNormSegmenter() if batch_norm else None)
  params, batch_stats, _ = tiny.variables(nets)
  variables = {"params": params["segmenter"], "batch_stats": batch_stats}
  images, warped = (np.float32(tiny.batch(seed=seed)["image"]) for seed in (0, 1))
  one_by_one = segment_pair(nets.segmenter, variables, images, warped)
  with targeting("tpu"):
    together = segment_pair(nets.segmenter, variables, images, warped)
  chex.assert_trees_all_close(together, one_by_one, rtol=1e-4, atol=1e-4)
  assert not np.allclose(*one_by_one[:2])


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
def test_the_step_of_another_platform_gives_the_same_numbers(platform, parallelism):
  config = tiny.config(parallelism=parallelism, compute_dtype="float32", reference_dtype="float32")
  state, history = run_steps(config, segmenter=tiny.BatchNormSegmenter())
  with targeting(platform):
    other_state, other_history = run_steps(config, segmenter=tiny.BatchNormSegmenter())
  for found, expected in zip(other_history, history, strict=True):
    assert found == pytest.approx(expected, rel=1e-3)
  chex.assert_trees_all_close(other_state, state, rtol=1e-3, atol=1e-5)


def test_batch_statistics_of_each_device_are_averaged():
  """Under pmap over two parts of a batch, played by vmap."""
  nets = tiny.networks(tiny.BatchNormSegmenter())
  params, batch_stats, reference = tiny.variables(nets)
  batch = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), tiny.batch(4))
  found = {}
  for shared in (True, False):
    config = tiny.config(parallelism="pmap", sync_batch_norm=shared)
    optimizer = create_optimizer(nets, params, config)
    step = functools.partial(train_step, networks=nets, optimizer=optimizer, config=config, axis_name="data")
    state = tiny.state(params, batch_stats, optimizer)
    mapped = jax.jit(jax.vmap(step, in_axes=(None, 0, None), axis_name="data"))
    after = mapped(state, batch, reference)[0].batch_stats["bn"]
    for statistics in after.values():
      np.testing.assert_allclose(statistics[0], statistics[1], rtol=1e-5)
    found[shared] = after
  # Both kinds have the mean of the parts' means, but a part's variance lacks what is between the parts.
  np.testing.assert_allclose(found[True]["mean"][0], found[False]["mean"][0], rtol=1e-2, atol=1e-3)
  assert not np.allclose(found[True]["var"][0], found[False]["var"][0], rtol=1e-3)


def test_the_reference_is_not_trained_and_the_state_counts_steps():
  state, _ = run_steps(tiny.config(), count=3)
  assert int(state.step) == 3
  assert set(state.params) == {"segmenter", "basis"}


def test_a_step_learns_on_a_repeated_batch():
  config = tiny.config(**{"num_steps": 60, "optimizer.name": "adam", "optimizer.learning_rate": 1e-2})
  nets = tiny.networks()
  params, batch_stats, reference = tiny.variables(nets)
  optimizer = create_optimizer(nets, params, config)
  steps = compile_steps(nets, optimizer, config)
  state, reference = steps.replicate(tiny.state(params, batch_stats, optimizer)), steps.replicate(reference)
  batch = steps.shard_batch(tiny.batch())
  losses = []
  for _ in range(60):
    state, metrics = steps.train(state, batch, reference)
    losses.append(float(metrics["semantic_consistency"]))
  assert np.mean(losses[-5:]) < 0.8 * losses[0]


def test_frozen_modules_stay_and_the_others_get_the_gradients_they_had():
  rates = {"optimizer.weight_decay": 0.1, "optimizer.clip_norm": 1e9, "optimizer.momentum": 0.0}
  before = tiny.variables(tiny.networks())[0]["segmenter"]
  trained, history = run_steps(tiny.config(**rates), count=1)
  partly, frozen_history = run_steps(
    tiny.config(**rates, **{"optimizer.frozen_modules": ("trunk",)}), count=1
  )
  for name in before:
    expected = before if name == "trunk" else trained.params["segmenter"]
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
      partly.params["segmenter"][name],
      expected[name],
    )
  assert not np.allclose(trained.params["segmenter"]["trunk"]["kernel"], before["trunk"]["kernel"], rtol=1e-6)
  assert frozen_history[0]["loss"] == pytest.approx(history[0]["loss"], rel=1e-6)
  assert frozen_history[0]["gradient_norm"] < history[0]["gradient_norm"]


def test_modules_are_frozen_by_the_beginnings_of_their_names():
  params = {"stem": {"kernel": 1.0}, "block1_a": {"scale": 1.0}, "block10_a": {"kernel": 1.0}}
  trainable = functools.partial(trainable_parameters, tiny.networks(), params)
  expected = {"stem": {"kernel": False}, "block1_a": {"scale": False}, "block10_a": {"kernel": True}}
  assert trainable(tiny.config(**{"optimizer.frozen_modules": ("stem", "block1_")})) == expected
  assert all(jax.tree.leaves(trainable(tiny.config())))
  with pytest.raises(ValueError, match=r"begins with 'block2'; it has block10_a, block1_a, stem"):
    trainable(tiny.config(**{"optimizer.frozen_modules": ("stem", "block2")}))


def test_prediction_shapes_and_ranges():
  config = tiny.config()
  nets = tiny.networks()
  params, _, _ = tiny.variables(nets)
  predicted = predict_step(params["segmenter"], {}, tiny.batch(2)["image"], networks=nets, config=config)
  assert predicted["labels"].shape == (2, 16, 16)
  assert predicted["labels"].dtype == np.uint8
  assert predicted["centers"].shape == (2, tiny.NUM_PARTS, 2)
  assert int(predicted["labels"].max()) <= tiny.NUM_PARTS
  assert float(abs(predicted["centers"]).max()) <= 1.0


def test_centres_alone_are_those_of_the_prediction():
  config = tiny.config()
  nets = tiny.networks()
  params, batch_stats, _ = tiny.variables(nets)
  steps = compile_steps(nets, create_optimizer(nets, params, config), config)
  variables, images = (params["segmenter"], batch_stats), tiny.batch(4)["image"]
  found = steps.centers(variables, images)
  assert found.keys() == {"centers"}
  np.testing.assert_allclose(found["centers"], steps.predict(variables, images)["centers"], atol=1e-6)


_DEVICES_SCRIPT = """
import sys
import numpy as np, jax
from tests import tiny
from tests.test_train_step import run_steps
assert jax.device_count() == int(sys.argv[2]), jax.devices()
found = {}
for assigned, masks in ((False, None), (True, np.uint8([255, 10, 120, 0]))):
  config = tiny.config(parallelism=sys.argv[1], semantic_assigned=assigned)
  state, history = run_steps(config, count=5, segmenter=tiny.BatchNormSegmenter(), masks=masks)
  leaves = jax.tree.leaves(jax.device_get((state.params, state.batch_stats)))
  found |= {f"{assigned} {i}": leaf for i, leaf in enumerate(leaves)}
  found[f"{assigned} history"] = np.array([list(h.values()) for h in history])
np.savez(sys.argv[3], **found)
"""


def test_jit_and_pmap_on_four_devices_equal_one_device(tmp_path):
  # The second time with masks of other sizes on each device: the assigned term divides by a sum over all.
  results = {}
  for parallelism, count in (("jit", 1), ("jit", 4), ("pmap", 4)):
    path = tmp_path / f"{parallelism}{count}.npz"
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
    command = [sys.executable, "-c", _DEVICES_SCRIPT, parallelism, str(count), str(path)]
    subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=300)
    results[parallelism, count] = np.load(path)
  expected = results.pop(("jit", 1))
  for name, found in results.items():
    for key in expected.files:
      np.testing.assert_allclose(found[key], expected[key], rtol=2e-4, atol=1e-5, err_msg=f"{name} {key}")


def test_a_batch_that_devices_cannot_share_is_refused(monkeypatch):
  monkeypatch.setattr(jax, "device_count", lambda: 3)
  with pytest.raises(UserError, match="batch_size=4 can't be shared by 3 devices"):
    compile_steps(tiny.networks(), None, tiny.config())


def test_mirrored_references_commute_with_mirroring():
  nets = tiny.networks()
  *_, reference = tiny.variables(nets)
  images = tiny.batch()["image"]
  for mirrored in (False, True):
    config = tiny.config(reference_mirror=mirrored)
    (maps,) = reference_features(reference, images, networks=nets, config=config)
    (of_mirror,) = reference_features(reference, images[:, :, ::-1], networks=nets, config=config)
    same = np.allclose(of_mirror[:, :, ::-1], maps, rtol=1e-5)
    assert same == mirrored


def test_mirrored_predictions_commute_with_mirroring():
  nets = tiny.networks()
  params, *_ = tiny.variables(nets)
  images = tiny.batch()["image"]
  for mirrored in (False, True):
    segment = functools.partial(
      predict_step, params["segmenter"], {}, networks=nets, config=tiny.config(predict_mirror=mirrored)
    )
    probs, of_mirror = segment(images)["probs"], segment(images[:, :, ::-1])["probs"]
    assert np.allclose(of_mirror[:, :, ::-1], probs, rtol=1e-5) == mirrored


def test_predictions_are_means_over_scales():
  nets = tiny.networks()
  params, *_ = tiny.variables(nets)
  images = np.tile(tiny.batch()["image"], (1, 2, 2, 1))
  height, width = images.shape[1:3]

  def logits(scale):
    inputs = models.normalize("efficientnet_lite0", jnp.asarray(images, jnp.float32))
    scaled = resize_bilinear(inputs, int(scale * height), int(scale * width))
    return resize_bilinear(nets.segmenter.apply({"params": params["segmenter"]}, scaled), height, width)

  def segment(images, *scales, **changes):
    config = tiny.config(predict_scales=scales, **changes)
    return predict_step(params["segmenter"], {}, images, networks=nets, config=config)["probs"]

  for scales in ((1.0,), (2.0,), (1.0, 1.5), (1.0, 1.5, 2.0)):
    expected = jax.nn.softmax(np.mean([logits(scale) for scale in scales], axis=0))
    np.testing.assert_allclose(segment(images, *scales), expected, rtol=1e-5, atol=1e-6)
  mirrored = segment(images[:, :, ::-1], 1.0, 1.5, predict_mirror=True)
  np.testing.assert_allclose(
    mirrored[:, :, ::-1], segment(images, 1.0, 1.5, predict_mirror=True), rtol=1e-5, atol=1e-6
  )
  # Rounded to what the network takes: 32 pixels times 1.2 are 38.4, and sides are multiples of 16.
  np.testing.assert_array_equal(segment(images, 1.2), segment(images, 1.0))


def dtypes_of_convolutions(function, *arguments):
  """The dtypes of the results of all convolutions and matrix products in a function."""
  found = set()

  def visit(jaxpr):
    for equation in jaxpr.eqns:
      if equation.primitive.name == "conv_general_dilated":
        found.update(str(out.aval.dtype) for out in equation.outvars)
      for value in equation.params.values():
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
          visit(inner)

  visit(jax.make_jaxpr(function)(*arguments).jaxpr)
  return found


@pytest.mark.parametrize("name", ["efficientnet_lite0", "deeplab50"])
def test_segmenters_compute_in_the_dtype_of_their_input(name):
  segmenter = models.create_segmenter(name, 3)
  images = jnp.zeros((2, 32, 32, 3), jnp.bfloat16)
  variables = jax.eval_shape(segmenter.init, jax.random.key(0), images)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  apply = functools.partial(segmenter.apply, train=True, mutable=["batch_stats"])
  logits, updates = jax.eval_shape(apply, variables, images)
  assert logits.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(updates)} <= {jnp.dtype("float32")}
  assert dtypes_of_convolutions(apply, variables, images) == {"bfloat16"}


@pytest.mark.parametrize("name", ["efficientnet_lite0", "vgg19", "resnet50"])
def test_references_compute_in_the_dtype_of_their_input(name):
  layers = {"efficientnet_lite0": ("block10_depthwise",), "vgg19": ("relu5_4",), "resnet50": ("layer4",)}[
    name
  ]
  reference = models.create_reference(name, layers, l2_normalize=True)
  images = jnp.zeros((2, 33, 33, 3), jnp.bfloat16)
  variables = jax.eval_shape(reference.init, jax.random.key(0), images)
  (maps,) = jax.eval_shape(reference.apply, variables, images)
  assert maps.dtype == jnp.bfloat16
  assert dtypes_of_convolutions(reference.apply, variables, images) == {"bfloat16"}


def test_losses_and_parameters_stay_in_float32_when_the_networks_compute_in_bfloat16():
  full, half = tiny.config(), tiny.config(compute_dtype="bfloat16", reference_dtype="bfloat16")
  _, expected = run_steps(full)
  state, history = run_steps(half)
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
  for found, wanted in zip(history, expected, strict=True):
    assert found["loss"] == pytest.approx(wanted["loss"], rel=0.03)
    assert found["loss"] != wanted["loss"]
