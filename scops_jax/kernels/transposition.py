"""Linear functions whose transpose is written out, for gradients that are faster than those JAX derives.

A jax.custom_jvp function whose tangents come from `linear_call` has such a gradient and also works in forward
mode (jax.jvp, jax.jacfwd); a jax.custom_vjp function does not. jax.custom_derivatives.linear_call is the same
without support for jax.vmap, which jax.jacfwd needs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

Arrays = tuple[jax.Array, ...]
Function = Callable[[Arrays, Arrays], Arrays]  # residuals and what the result is linear in → the result


def linear_call(function: Function, transposed: Function, residuals: Arrays, arguments: Arrays) -> Arrays:
  """Returns function(residuals, arguments), a linear function of the arguments.

  Args:
    function: uses no traced values but those that it is given.
    transposed: its transpose: (residuals, cotangents of the results) → cotangents of the arguments.
    residuals: arrays that both functions read.
    arguments: arrays.
  """
  jaxpr = jax.make_jaxpr(function)(residuals, arguments)
  options = {"jaxpr": jaxpr, "function": function, "transposed": transposed, "count": len(residuals)}
  return tuple(_linear.bind(*residuals, *arguments, **options))


def _evaluate(*arrays: jax.Array, jaxpr: ClosedJaxpr, **_: Any) -> list[jax.Array]:
  return jaxpr_as_fun(jaxpr)(*arrays)


def _jvp(
  primals: Sequence[Any],
  tangents: Sequence[Any],
  *,
  function: Function,
  transposed: Function,
  count: int,
  **_: Any,
) -> tuple[Arrays, Arrays]:
  residuals, arguments = tuple(primals[:count]), tuple(primals[count:])
  results = linear_call(function, transposed, residuals, arguments)
  filled = tuple(map(ad.instantiate_zeros, tangents))
  result_tangents = linear_call(function, transposed, residuals, filled[count:])
  if not all(isinstance(tangent, ad.Zero) for tangent in tangents[:count]):  # second derivatives
    _, others = jax.jvp(lambda r: function(r, arguments), (residuals,), (filled[:count],))
    result_tangents = tuple(a + b for a, b in zip(result_tangents, others, strict=True))
  return results, result_tangents


def _transpose(
  cotangents: Sequence[Any], *arrays: Any, function: Function, transposed: Function, count: int, **_: Any
) -> list[Any]:
  residuals, arguments = arrays[:count], arrays[count:]
  cotangents = tuple(map(ad.instantiate_zeros, cotangents))
  found = linear_call(transposed, function, residuals, cotangents)
  wanted = [ct if ad.is_undefined_primal(x) else None for ct, x in zip(found, arguments, strict=True)]
  return [None] * count + wanted


def _batch(
  arrays: Sequence[Any],
  axes: Sequence[Any],
  *,
  function: Function,
  transposed: Function,
  count: int,
  **_: Any,
) -> tuple[Arrays, list[int]]:
  size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
  arguments = tuple(
    batching.bdim_at_front(x, axis, size) for x, axis in zip(arrays[count:], axes[count:], strict=True)
  )
  in_axes = (tuple(axes[:count]), 0) if count else (None, 0)
  function, transposed = (jax.vmap(f, in_axes, axis_size=size) for f in (function, transposed))
  results = linear_call(function, transposed, tuple(arrays[:count]), arguments)
  return results, [0] * len(results)


_linear = Primitive("linear_call")
_linear.multiple_results = True
_linear.def_impl(_evaluate)
_linear.def_abstract_eval(lambda *_, jaxpr, **__: jaxpr.out_avals)
mlir.register_lowering(_linear, mlir.lower_fun(_evaluate, multiple_results=True))
ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _batch
