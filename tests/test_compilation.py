"""Options of the compiler: taken where they exist, left out where they do not, without effect on numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scops_jax.kernels import compilation, platforms
from scops_jax.kernels.compilation import compiler_options


@pytest.mark.parametrize("training", [False, True])
def test_numbers_are_those_without_options(training):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, 9, 7, 16), np.float32)
  kernel = rng.standard_normal((3, 3, 16, 8), np.float32)

  def function(x, kernel):
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.softmax(y).sum((0, 1, 2)), y @ y[0, 0, 0]

  found = jax.jit(function, compiler_options=compiler_options(training=training))(x, kernel)
  for a, b in zip(found, jax.jit(function)(x, kernel), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices have no options")
def test_training_adds_to_the_options():
  assert compiler_options().items() < compiler_options(training=True).items()


def test_an_option_that_xla_does_not_have_is_left_out(monkeypatch):
  known = compiler_options(training=True)
  monkeypatch.setattr(compilation, "_ALWAYS", {**compilation._ALWAYS, "xla_cpu_no_such_option": "1"})
  assert compiler_options(training=True) == known


def test_what_is_traced_knows_that_it_is_for_training():
  seen = []
  for compile_ in (jax.jit, compilation.jit, functools.partial(compilation.jit, training=True)):
    # Of one function JAX would keep the first trace.
    compile_(lambda x: seen.append(compilation.is_traced_for_training()) or x)(jnp.ones(()))
  assert seen == [False, False, True]
  assert not compilation.is_traced_for_training()


def test_tpus_have_options_in_training_that_are_left_out_elsewhere():
  x = np.arange(3, dtype=np.float32)
  with platforms.targeting("tpu"):
    assert "xla_tpu_scoped_vmem_limit_kib" in compilation.wanted_options(training=True)
    assert compilation.wanted_options() == {}
    if jax.default_backend() != "tpu":
      assert compiler_options(training=True) == {}
    np.testing.assert_allclose(compilation.jit(lambda x: x + 1, training=True)(x), x + 1)


def test_gpus_have_none(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert compiler_options(training=True) == {}
  assert compilation.jit(lambda x: x + 1, training=True)(jnp.ones(())) == 2
