"""The pieces of the PyTorch step; each computes the same as its namesake in `pieces`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.benchmarks import workload
from experiments.benchmarks.pytorch_networks import normalize
from experiments.benchmarks.pytorch_step import (
  Step,
  background_loss,
  balance_loss,
  concentration_loss,
  equivariance_loss,
  landmark_equivariance_loss,
  orthonormality_loss,
  part_centers,
  potts_loss,
  semantic_consistency_loss,
)
from experiments.benchmarks.pytorch_transforms import jitter_colors, warp

Piece = Callable[[], Any]


def build(step: Step) -> dict[str, Piece]:
  """Returns the pieces of a step by name; a call of a piece waits for its result."""
  pieces = {**_network_pieces(step), **_transform_pieces(step), **_loss_pieces(step)}
  return {name: _waiting(piece, step.device) for name, piece in pieces.items()}


def _waiting(piece: Piece, device: torch.device) -> Piece:
  def call() -> None:
    piece()
    if device.type == "cuda":
      torch.cuda.synchronize()

  return call


def _logits(step: Step, seed: int) -> Tensor:
  logits = workload.random_logits(step.config, seed)
  return torch.from_numpy(logits).to(step.device).permute(0, 3, 1, 2).contiguous()


def _network_pieces(step: Step) -> dict[str, Piece]:
  images, _ = step.put_batch()
  normalized = normalize(step.config.segmenter, images)
  flipped = normalized.flip(2)
  cotangents = [_logits(step, seed) for seed in (0, 1)]
  params = [p for p in step.segmenter.parameters() if p.requires_grad]

  @torch.no_grad()
  def forward() -> Any:
    step.segmenter.train()
    return step.segment_pair(normalized, flipped)

  def forward_and_backward() -> Any:
    step.segmenter.train()
    return torch.autograd.grad(step.segment_pair(normalized, flipped), params, cotangents)

  def update() -> None:
    for owned in step.update.clipped:
      for parameter in owned:
        if parameter.grad is None:
          parameter.grad = torch.full_like(parameter, 1e-3)
    step.update()

  inference_images = workload.inference_images()

  @torch.inference_mode()
  def inference() -> tuple[np.ndarray, np.ndarray]:
    step.segmenter.eval()
    batch = torch.from_numpy(inference_images).to(step.device).permute(0, 3, 1, 2).float()
    batch = normalize(step.config.segmenter, batch).contiguous(memory_format=step.layout)
    probs = step.segment(batch).softmax(1)
    labels, centers = probs.argmax(1).to(torch.uint8), part_centers(probs, epsilon=0.0)
    return labels.cpu().numpy(), centers.cpu().numpy()

  return {
    "forward": forward,
    "forward and backward": forward_and_backward,
    "reference": lambda: step.features(images),
    "update": update,
    "inference": inference,
  }


def _transform_pieces(step: Step) -> dict[str, Piece]:
  images, _ = step.put_batch()
  logits, cotangent = _logits(step, 0).requires_grad_(), _logits(step, 1)
  points = torch.from_numpy(step.draws.source_points[0]).to(step.device)

  def transform() -> Any:
    grid = step.grid(points)
    warped_images = warp(images, grid, padding=step.config.spatial.padding)
    warped = warp(logits, grid)
    return warped_images, warped, torch.autograd.grad(warped, logits, cotangent)

  return {"colour jitter": lambda: jitter_colors(images, step.draws, 0), "warp": transform}


def _loss_pieces(step: Step) -> dict[str, Piece]:
  """Value and gradient of each term, as functions of the logits and the raw basis (W = relu of it)."""
  logits, target = (_logits(step, seed).requires_grad_() for seed in (0, 1))
  images, saliency = step.put_batch()
  features, raw = step.features(images), step.basis.detach().clone().requires_grad_()

  def semantic(logits: Tensor, raw: Tensor) -> Tensor:
    assigned = step.config.semantic_assigned
    return semantic_consistency_loss(logits.softmax(1), raw.relu(), features, saliency, assigned=assigned)

  def gradient(function: Callable[..., Tensor], *inputs: Tensor) -> Piece:
    return lambda: torch.autograd.grad(function(*inputs), inputs)

  pieces = {
    "concentration": gradient(lambda x: concentration_loss(x.softmax(1)), logits),
    "equivariance": gradient(lambda x: equivariance_loss(x, target), logits),
    "landmark equivariance": gradient(landmark_equivariance_loss, logits, target),
    "semantic consistency": gradient(semantic, logits, raw),
    "orthonormality": gradient(lambda x: orthonormality_loss(x.relu()), raw),
  }
  if step.config.loss.background:
    pieces["background"] = gradient(lambda x: background_loss(x, saliency), logits)
  if step.config.loss.balance:
    pieces["balance"] = gradient(lambda x: balance_loss(x.softmax(1)), logits)
  if step.config.loss.potts:
    pieces["potts"] = gradient(lambda x: potts_loss(x.softmax(1), images), logits)
  return pieces


def device_memory() -> int | None:
  """Returns the peak bytes of device memory; None on a CPU."""
  return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
