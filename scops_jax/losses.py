"""The loss terms of SCOPS (arXiv 1905.01298, section 3) and three beyond the paper, as pure functions.

B images of H × W pixels, K parts, and a background at channel 0. All terms are means over the batch, or
ratios of such means, so their weights do not depend on its size. Sums are taken in float32 (or wider) for
every dtype of the inputs.

Types, dtypes and shapes are always checked. Called outside jit, grad and vmap, where values are known, all
terms also raise ValueError for NaN, for logits given as probabilities and the reverse, for saliency in 0..255
and for channels that are not last; `geometry.check_probabilities`, `check_logits` and `check_saliency` have
the rules. Compiled functions hold no trace of it.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scops_jax.geometry import (
  HIGHEST,
  accumulation_dtype,
  axis_coordinates,
  channels_first,
  check_array,
  check_logits,
  check_part_maps,
  check_probabilities,
  check_saliency,
  interpolation_matrix,
  part_marginals,
)

# Of the features' energy: what the assigned semantic term takes for foreground at least.
_LEAST_FOREGROUND = 0.01


def concentration_loss(probs: chex.Array, *, epsilon: float = 1e-3) -> jax.Array:
  """Geometric concentration: each part's spatial variance (paper, equation 2).

  Σ_k Σ_p ‖p - c_k‖² r_k(p) with r_k = (R_k + ε) / Σ_p (R_k(p) + ε) and c_k = Σ_p p r_k(p). The squared
  distance is a sum over x and y, so the marginals of r_k are enough.

  Args:
    probs: [B, H, W, K+1], softmax probabilities, background at channel 0.
    epsilon: added to every pixel, so that an empty part's gradient is finite.

  Returns:
    Scalar in squared half-image units: summed over the parts, mean over the batch.

  Raises:
    TypeError, ValueError: `probs` is not a floating-point array of four axes and K >= 1.

  Differs from the release: it divides by B twice, works on square images only, and its coordinates
  2i / N - 1 make the value smaller by ((N - 1) / N)².
  """
  variance = jnp.zeros(())
  for marginal in part_marginals(probs, epsilon=epsilon):
    position = jnp.asarray(axis_coordinates(marginal.shape[2]), marginal.dtype)
    center = jnp.sum(position * marginal, axis=2, keepdims=True)
    variance += jnp.sum((position - center) ** 2 * marginal, axis=(1, 2)).mean()
  return variance


def equivariance_loss(logits: chex.Array, target_logits: chex.Array) -> jax.Array:
  """Equivariance of the part maps: KL(softmax(stop_gradient(target)) ‖ softmax(logits)) (paper, section 3.2).

  Args:
    logits: [B, H, W, K+1], of the transformed images.
    target_logits: [B, H, W, K+1], of the original images, warped like them; no gradient flows to it.

  Returns:
    Scalar in nats: summed over the classes, mean over B, H and W.

  Raises:
    TypeError, ValueError: a dtype is not floating point, `logits` does not have four axes, the shapes
      differ, or known values can't be logits with the channels last.

  Differs from the release: it takes the mean over the classes too.
  """
  check_array("logits", logits, "[B, H, W, K+1]", (None, None, None, None))
  check_array("target_logits", target_logits, "[B, H, W, K+1] like logits", logits.shape)
  check_logits("logits", logits)
  check_logits("target_logits", target_logits)
  dtype = accumulation_dtype(logits, target_logits)
  logits = channels_first(logits.astype(dtype))
  target_logits = channels_first(jax.lax.stop_gradient(target_logits).astype(dtype))
  log_ratio = jax.nn.log_softmax(target_logits, axis=1) - jax.nn.log_softmax(logits, axis=1)
  return jnp.sum(jax.nn.softmax(target_logits, axis=1) * log_ratio, axis=1).mean()


def landmark_equivariance_loss(centers: chex.Array, target_centers: chex.Array) -> jax.Array:
  """Equivariance of the part centres: their mean squared difference (paper, section 3.2).

  Args:
    centers: [B, K, 2], of the transformed images' part maps.
    target_centers: [B, K, 2], of the warped part maps of the original images; the gradient flows to both.

  Returns:
    Scalar in squared half-image units: mean over B, K and the two coordinates.

  Raises:
    TypeError, ValueError: a dtype is not floating point, the shape is not [B, K, 2], or the shapes differ.

  Differs from the release: only through its coordinates, see `geometry.part_centers`.
  """
  check_array("centers", centers, "[B, K, 2]", (None, None, 2))
  check_array("target_centers", target_centers, "[B, K, 2] like centers", centers.shape)
  dtype = accumulation_dtype(centers, target_centers)
  return jnp.mean((centers.astype(dtype) - target_centers.astype(dtype)) ** 2)


def semantic_consistency_loss(
  probs: chex.Array,
  basis: chex.Array,
  features: Sequence[chex.Array],
  saliency: chex.Array | None = None,
  *,
  assigned: bool = False,
  axis_name: str | None = None,
) -> jax.Array:
  """Semantic consistency: the mean over pixels and channels of (D·UV - Σ_k R_k w_k)² (paper, equation 4).

  U upsamples the reference features V to the part maps' size. The square is expanded to
  Σ D²‖UV‖² - 2 ⟨Uᵀ(D·R), V Wᵀ⟩ + ⟨RᵀR, W Wᵀ⟩, which is exact and needs no array of H × W pixels with more
  than K+1 channels. The first term does not depend on the parameters.

  Args:
    probs: [B, H, W, K+1], softmax probabilities, background at channel 0.
    basis: W [K, C], the non-negative part basis.
    features: maps [B, h_i, w_i, C_i] with Σ C_i = C; V is their concatenation after upsampling (bilinear,
      align-corners). No gradient flows to them.
    saliency: D [B, H, W] in [0, 1], or None for ones. No gradient flows to it.
    assigned: beyond the paper, compare the features with each part's row instead of with the rows' mixture,
      and divide by their energy: Σ_p (Σ_k R_k ‖D·UV - w_k‖² + R_0 ‖D·UV‖²) / Σ_p ‖D·UV‖², R_0 = 1 - Σ_k R_k.
      That is linear in R, so that a pixel's best choice is one part, as in k-means, where a mixture may be
      any blend of parts; and its value does not depend on the features' scale and number. Foreground with
      less than a hundredth of the features' energy counts as that much: empty masks have bounded gradients.
    axis_name: of the pmap whose devices share the batch. `assigned` then takes the mean of their energies, so
      that the mean of their losses is the whole batch's. None: the batch is what is given.

  Returns:
    Scalar: mean over B, H, W and C; if assigned, a share of the energy. A perfect fit may come out as a
    rounding error below zero.

  Raises:
    TypeError, ValueError: a dtype is not floating point or the shapes do not fit each other.
  """
  _check_semantic_inputs(probs, basis, features, saliency)
  batch, height, width, _ = probs.shape
  dtype = accumulation_dtype(probs, basis)
  parts = channels_first(probs)[:, 1:].astype(dtype)
  basis = basis.astype(dtype)
  if saliency is None:
    saliency = jnp.ones((batch, height, width), dtype)
  saliency = jax.lax.stop_gradient(saliency).astype(dtype)
  if assigned:
    total = jnp.sum(parts.sum(axis=(0, 2, 3)) * jnp.sum(basis**2, axis=1))
  else:
    gram = jnp.einsum("bkhw,blhw->bkl", parts, parts, precision=HIGHEST).sum(axis=0)
    total = jnp.sum(gram * jnp.matmul(basis, basis.T, precision=HIGHEST))
  salient_parts = saliency[:, None] * parts
  energy = least = jnp.zeros((), dtype)
  first_channel = 0
  for feature_map in features:
    values = jax.lax.stop_gradient(feature_map).astype(dtype)
    rows = jnp.asarray(interpolation_matrix(values.shape[1], height), dtype)
    columns = jnp.asarray(interpolation_matrix(values.shape[2], width), dtype)
    # Columns first, because neighbours in a row are neighbours in memory.
    pooled = jnp.einsum("Ww,bkHW->bkHw", columns, salient_parts, precision=HIGHEST)
    pooled = jnp.einsum("Hh,bkHw->bkhw", rows, pooled, precision=HIGHEST)
    response = jnp.einsum("bkhw,bhwc->kc", pooled, values, precision=HIGHEST)
    part_basis = basis[:, first_channel : first_channel + values.shape[-1]]
    map_energy = _upsampled_energy(values, rows, columns, saliency**2)
    total += map_energy - 2.0 * jnp.sum(part_basis * response)
    energy += map_energy
    pixels_per_cell = height * width / (values.shape[1] * values.shape[2])
    least += _LEAST_FOREGROUND * pixels_per_cell * jnp.sum(values**2)
    first_channel += values.shape[-1]
  # A float: from 33 images of 256² and 1024 channels on, the count is no int32.
  count = float(batch * height * width * basis.shape[1])
  if not assigned:
    return total / count
  if axis_name is not None:
    energy, least = jax.lax.pmean((energy, least), axis_name)
  return total / (jnp.maximum(energy, least) + 1e-12 * count)


def _check_semantic_inputs(
  probs: chex.Array, basis: chex.Array, features: Sequence[chex.Array], saliency: chex.Array | None
) -> None:
  """Raises if the arguments of `semantic_consistency_loss` do not fit each other."""
  check_array("probs", probs, "[B, H, W, K+1]", (None, None, None, None))
  check_probabilities("probs", probs)
  batch, height, width, channels = probs.shape
  if not isinstance(features, list | tuple) or not features:
    error = ValueError if isinstance(features, list | tuple | jax.Array | np.ndarray) else TypeError
    raise error(f"features must be a sequence of one or more maps [B, h, w, C_i], got {type(features)}.")
  for index, feature_map in enumerate(features):
    check_array(f"features[{index}]", feature_map, "[B, h, w, C_i]", (batch, None, None, None))
  layout = "[K, C], C the features' channels in all"
  check_array("basis", basis, layout, (None, None))
  first, last = (sum(feature_map.shape[axis] for feature_map in features) for axis in (1, -1))
  if last != basis.shape[1] == first:
    raise ValueError("features must be [B, h, w, C_i], but their channels are axis 1: move them last.")
  check_array("basis", basis, layout, (channels - 1, last))
  if saliency is not None:
    check_saliency(saliency, (batch, height, width))


def _upsampled_energy(values: jax.Array, rows: jax.Array, columns: jax.Array, weight: jax.Array) -> jax.Array:
  """Returns Σ_p weight(p) ‖(UV)(p)‖², summed over the batch, without upsampling V.

  A pixel reads the cells i and i + 1 on each axis, so the quadratic form pairs a cell only with itself and
  its neighbours: Σ_n Σ_δ ⟨V_n, V_n+δ⟩ (Σ_p weight u_n u_n+δ). Each coefficient is a product of separable
  matrices, and both diagonals of four cells have the same one.

  Args:
    values: V [B, h, w, C].
    rows: [H, h], the vertical half of U.
    columns: [W, w], the horizontal half of U.
    weight: [B, H, W].
  """

  def paired(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.sum(left * right, axis=-1)

  def coefficients(row_weights: jax.Array, column_weights: jax.Array) -> jax.Array:
    return jnp.einsum("Hh,Ww,bHW->bhw", row_weights, column_weights, weight, precision=HIGHEST)

  same_row, next_row = rows**2, rows[:, :-1] * rows[:, 1:]
  same_column, next_column = columns**2, columns[:, :-1] * columns[:, 1:]
  diagonals = paired(values[:, :-1, :-1], values[:, 1:, 1:]) + paired(values[:, :-1, 1:], values[:, 1:, :-1])
  right = paired(values[:, :, :-1], values[:, :, 1:])
  below = paired(values[:, :-1], values[:, 1:])
  neighbours = (
    jnp.sum(coefficients(same_row, next_column) * right)
    + jnp.sum(coefficients(next_row, same_column) * below)
    + jnp.sum(coefficients(next_row, next_column) * diagonals)
  )
  return jnp.sum(coefficients(same_row, same_column) * paired(values, values)) + 2.0 * neighbours


def orthonormality_loss(basis: chex.Array, *, epsilon: float = 1e-6) -> jax.Array:
  """Orthonormality of the part basis: ‖Ŵ Ŵᵀ - I‖²_F, Ŵ = W with rows over sqrt(‖w‖² + ε) (paper, equation 5).

  Args:
    basis: [K, C], already non-negative.
    epsilon: inside the root, so that a zero row has a finite gradient; such a row adds 1.

  Returns:
    Scalar: a sum over the K × K entries.

  Raises:
    TypeError, ValueError: `basis` is not a floating-point array of two axes.
  """
  check_array("basis", basis, "[K, C]", (None, None))
  basis = basis.astype(accumulation_dtype(basis))
  rows = basis * jax.lax.rsqrt(jnp.sum(basis**2, axis=1, keepdims=True) + epsilon)
  gram = jnp.matmul(rows, rows.T, precision=HIGHEST)
  return jnp.sum((gram - jnp.eye(basis.shape[0], dtype=basis.dtype)) ** 2)


def background_loss(logits: chex.Array, saliency: chex.Array) -> jax.Array:
  """Cross-entropy of background and saliency map: -mean[(1 - D) log p_0 + D log(1 - p_0)].

  Not in the paper, and off in its configs. It ties the union of the parts to the saliency map; with the
  semantic term alone parts spill over thin structures.

  Args:
    logits: [B, H, W, K+1], background at channel 0.
    saliency: D [B, H, W] in [0, 1]; no gradient flows to it.

  Returns:
    Scalar in nats: mean over B, H and W.

  Raises:
    TypeError, ValueError: a dtype is not floating point, K < 1, the shapes do not fit each other, or known
      values can't be logits with the channels last or a saliency map.
  """
  check_part_maps("logits", logits)
  check_logits("logits", logits)
  check_saliency(saliency, logits.shape[:-1])
  logits = channels_first(logits.astype(accumulation_dtype(logits)))
  foreground = jax.lax.stop_gradient(saliency).astype(logits.dtype)
  log_all = jax.nn.logsumexp(logits, axis=1)
  log_background = logits[:, 0] - log_all
  log_parts = jax.nn.logsumexp(logits[:, 1:], axis=1) - log_all
  return -jnp.mean((1.0 - foreground) * log_background + foreground * log_parts)


def balance_loss(probs: chex.Array, *, epsilon: float = 1e-3) -> jax.Array:
  """Balance of the parts' areas: KL(uniform ‖ a) = -mean_k log(K a_k), a_k a part's share of the foreground.

  a_k = Σ_p (R_k(p) + ε) / Σ_j Σ_p (R_j(p) + ε), for each image. Its gradient is small while all parts are
  visible and large for a part that vanishes, which no other term brings back.

  Not in the paper, and off in its configs. It suits collections whose images show all parts.

  Args:
    probs: [B, H, W, K+1], softmax probabilities, background at channel 0.
    epsilon: added to every pixel, which limits an absent part's cost to about log(1 / ε).

  Returns:
    Scalar in nats, 0 for equal areas: mean over the parts and the batch.

  Raises:
    TypeError, ValueError: `probs` is not a floating-point array of four axes and K >= 1, or ε <= 0.
  """
  check_part_maps("probs", probs)
  check_probabilities("probs", probs)
  if epsilon <= 0:
    raise ValueError(f"epsilon must be positive, got {epsilon}.")
  parts = channels_first(probs)[:, 1:].astype(accumulation_dtype(probs))
  areas = parts.mean(axis=(2, 3)) + epsilon
  shares = areas / areas.sum(axis=1, keepdims=True)
  return -jnp.mean(jnp.log(shares.shape[1] * shares))


def potts_loss(probs: chex.Array, images: chex.Array) -> jax.Array:
  """Contrast-sensitive Potts: part boundaries cost where neighbouring pixels have like colours.

  The mean over all pairs (u, v) of horizontal and vertical neighbours of exp(-‖I_u - I_v‖² / 2σ²) ·
  (1 - Σ_k R_k(u) R_k(v)), the background being a channel too. σ² is the mean of ‖I_u - I_v‖² over the image's
  pairs (Rother et al., GrabCut, SIGGRAPH 2004), so the colours' unit does not matter. The second factor is
  the probability that the pair's labels differ: an undecided pixel costs something everywhere.

  Not in the paper, and off in its configs.

  Args:
    probs: [B, H, W, K+1], softmax probabilities, background at channel 0.
    images: [B, H, W, C], colours in any unit, or other maps; no gradient flows to them.

  Returns:
    Scalar in [0, 1]: mean over the pairs and the batch; 0 for images of one pixel.

  Raises:
    TypeError, ValueError: `probs` is not a floating-point array of four axes and K >= 1, or `images` does not
      fit it.
  """
  check_part_maps("probs", probs)
  check_probabilities("probs", probs)
  check_array("images", images, "[B, H, W, C]", (*probs.shape[:3], None))
  maps = channels_first(probs).astype(accumulation_dtype(probs))
  colors = channels_first(jax.lax.stop_gradient(images)).astype(maps.dtype)
  batch, _, height, width = maps.shape
  num_pairs = (height - 1) * width + height * (width - 1)
  pairs = [
    (jnp.sum((left - right) ** 2, axis=1), 1.0 - jnp.sum(left_map * right_map, axis=1))
    for (left, right), (left_map, right_map) in (
      ((colors[:, :, 1:], colors[:, :, :-1]), (maps[:, :, 1:], maps[:, :, :-1])),
      ((colors[..., 1:], colors[..., :-1]), (maps[..., 1:], maps[..., :-1])),
    )
  ]
  mean = sum(contrast.sum(axis=(1, 2), keepdims=True) for contrast, _ in pairs) / max(num_pairs, 1)
  # In an image of one colour every boundary costs 1: 0 / tiny instead of 0 / 0.
  twice_variance = jnp.maximum(2.0 * mean, jnp.finfo(maps.dtype).tiny)
  costs = [jnp.sum(jnp.exp(-contrast / twice_variance) * differ) for contrast, differ in pairs]
  return (costs[0] + costs[1]) / max(batch * num_pairs, 1)
