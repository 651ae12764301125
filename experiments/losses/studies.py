"""The studies: which losses act on which free variables, and their optimisation with optax."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.losses.scene import NUM_PARTS, Scene
from scops_jax import geometry, losses, warp

# Weights λ of all losses together.
WEIGHTS = {
  "concentration": 1.0,
  "equivariance": 1.0,
  "landmark_equivariance": 1.0,
  "semantic_consistency": 10.0,
  "orthonormality": 0.1,
}
BEYOND_THE_PAPER = ("background", "balance", "potts")
_LEARNING_RATE = 0.1  # of the logits
_BASIS_RATE = 0.05  # of the basis, over the logits'


class Variables(NamedTuple):
  """What is optimised: no network, every logit is free."""

  logits: jax.Array  # [2, S, S, K+1], of both images
  warped_logits: jax.Array  # [1, S, S, K+1], of the first image after the transform
  basis: jax.Array  # [K, C], before relu


class Course(NamedTuple):
  """What an optimisation went through."""

  variables: Variables  # of every kept step, stacked in front
  terms: dict[str, jax.Array]  # unweighted, of every step, [steps]
  gradients: Variables  # of the objective at the start


def initial_variables(key: jax.Array, scene: Scene) -> Variables:
  """Draws smooth noise for the logits, from 9 × 9 cells; the basis starts from the scene's."""
  size = scene.saliency.shape[1]
  cells = jax.random.normal(key, (3, 9, 9, NUM_PARTS + 1))
  noise = geometry.resize_bilinear(cells, size, size)
  return Variables(noise[:2], noise[2:], scene.basis)


def start_of(study: str, key: jax.Array, scene: Scene) -> Variables:
  """Returns where a study of one loss starts: noise, unless that shows nothing.

  Equivariance: the first image has sensible parts, its transformed version noise. Landmark equivariance: both
  have the same sensible parts, as if the network had not noticed the transform. Balance: one part is rare.
  """
  noise = initial_variables(key, scene)
  sensible = jnp.concatenate([scene.example_logits, noise.logits[1:]])
  if study == "equivariance":
    return noise._replace(logits=sensible)
  if study == "landmark_equivariance":
    return noise._replace(logits=sensible, warped_logits=scene.example_logits)
  if study == "balance":
    return noise._replace(logits=noise.logits.at[..., 1].add(-3.0))
  return noise


def loss_terms(variables: Variables, scene: Scene) -> dict[str, jax.Array]:
  """Returns every loss of SCOPS, unweighted; only the two equivariance losses see the transformed image."""
  basis = jax.nn.relu(variables.basis)
  probs = geometry.part_probabilities(variables.logits)
  target = warp.warp(variables.logits[:1], scene.grid)
  return {
    "concentration": losses.concentration_loss(probs),
    "equivariance": losses.equivariance_loss(variables.warped_logits, target),
    "landmark_equivariance": losses.landmark_equivariance_loss(
      geometry.part_centers(geometry.part_probabilities(variables.warped_logits)),
      geometry.part_centers(geometry.part_probabilities(target)),
    ),
    "semantic_consistency": losses.semantic_consistency_loss(probs, basis, [scene.features], scene.saliency),
    "orthonormality": losses.orthonormality_loss(basis),
    "background": losses.background_loss(variables.logits, scene.saliency),
    "balance": losses.balance_loss(probs),
    "potts": losses.potts_loss(probs, scene.colors),
  }


def optimise(
  start: Variables, scene: Scene, weights: Mapping[str, float], *, steps: int, keep_every: int
) -> Course:
  """Runs Adam on Σ λ · loss; keeps the variables before every `keep_every`-th step, and the last."""
  weights = {name: jnp.float32(weights.get(name, 0.0)) for name in (*WEIGHTS, *BEYOND_THE_PAPER)}
  return _optimise(start, scene, weights, steps=steps, keep_every=keep_every)


@functools.partial(jax.jit, static_argnames=("steps", "keep_every"))
def _optimise(
  start: Variables, scene: Scene, weights: dict[str, jax.Array], *, steps: int, keep_every: int
) -> Course:
  optimizer = optax.adam(_LEARNING_RATE)

  def objective(variables: Variables) -> tuple[jax.Array, dict[str, jax.Array]]:
    terms = loss_terms(variables, scene)
    return sum(weights[name] * term for name, term in terms.items()), terms

  def step(carry: Any, _: None) -> tuple[Any, dict[str, jax.Array]]:
    variables, state = carry
    gradients, terms = jax.grad(objective, has_aux=True)(variables)
    updates, state = optimizer.update(gradients, state)
    updates = updates._replace(basis=_BASIS_RATE * updates.basis)
    return (optax.apply_updates(variables, updates), state), terms

  def stretch(carry: Any, _: None) -> tuple[Any, Any]:
    after, terms = jax.lax.scan(step, carry, length=keep_every)
    return after, (carry[0], terms)

  gradients, _ = jax.grad(objective, has_aux=True)(start)
  (last, _), (kept, terms) = jax.lax.scan(stretch, (start, optimizer.init(start)), length=steps // keep_every)
  kept = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), kept, last)
  return Course(kept, {name: values.reshape(-1) for name, values in terms.items()}, gradients)
