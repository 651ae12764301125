"""The training step written plainly in PyTorch, from the paper's equations in this project's reductions.

It has the networks, weights, images and random draws of the JAX step, so that the losses agree. The terms are
computed as the equations are written; semantic consistency at the images' resolution, as in the release.
"""

import contextlib
import math
import pathlib
from collections.abc import Sequence

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from experiments.benchmarks import workload
from experiments.benchmarks.pytorch_networks import (
  create_reference,
  create_segmenter,
  freeze,
  load,
  normalize,
  resize,
)
from experiments.benchmarks.pytorch_transforms import ThinPlateGrid, jitter_colors, warp
from scops_jax.errors import UserError

_RESNET_STAGES = ("layer1", "layer2", "layer3", "layer4")
OPTIONS = ("compile", "bfloat16", "channels_last")


def concentration_loss(probs: Tensor) -> Tensor:
  """Spatial variance of each part: summed over the parts, mean over the batch."""
  density = probs[:, 1:] + 1e-3
  density = density / density.sum((2, 3), keepdim=True)
  x, y = _coordinates(density)
  center_x, center_y = ((density * axis).sum((2, 3), keepdim=True) for axis in (x, y))
  return (density * ((x - center_x) ** 2 + (y - center_y) ** 2)).sum((1, 2, 3)).mean()


def part_centers(probs: Tensor, *, epsilon: float = 1e-3) -> Tensor:
  """Returns the parts' centres [B, K, 2], (x, y)."""
  density = probs[:, 1:] + epsilon
  mass = density.sum((2, 3))
  x, y = _coordinates(density)
  center = torch.stack([(density * x).sum((2, 3)), (density * y).sum((2, 3))], -1)
  return center / torch.where(mass > 0, mass, 1)[..., None]


def _coordinates(maps: Tensor) -> tuple[Tensor, Tensor]:
  height, width = maps.shape[2:]
  x = torch.linspace(-1, 1, width, device=maps.device)
  return x, torch.linspace(-1, 1, height, device=maps.device)[:, None]


def equivariance_loss(logits: Tensor, target_logits: Tensor) -> Tensor:
  """KL(softmax(target) ‖ softmax(logits)): summed over the classes, mean over pixels and batch."""
  target = target_logits.detach().log_softmax(1)
  divergence = functional.kl_div(logits.log_softmax(1), target, log_target=True, reduction="none")
  return divergence.sum(1).mean()


def landmark_equivariance_loss(logits: Tensor, target_logits: Tensor) -> Tensor:
  """Mean squared difference of the part centres."""
  return functional.mse_loss(part_centers(logits.softmax(1)), part_centers(target_logits.softmax(1)))


def semantic_consistency_loss(
  probs: Tensor, basis: Tensor, features: Sequence[Tensor], saliency: Tensor, *, assigned: bool = False
) -> Tensor:
  """Mean of (D·V - Σ_k R_k w_k)² over images, channels and pixels, V upsampled to the pixels.

  If assigned, Σ_k R_k ‖D·V - w_k‖² + R_0 ‖D·V‖² over Σ ‖D·V‖², both summed over images and pixels.
  """
  height, width = probs.shape[2:]
  values = torch.cat([resize(x, height, width) for x in features], 1) * saliency[:, None]
  if assigned:
    energy = values.square().sum(1)
    products = torch.einsum("bchw,kc->bkhw", values, basis)
    distances = energy[:, None] - 2 * products + basis.square().sum(1)[:, None, None]
    return ((probs[:, 1:] * distances).sum(1) + probs[:, 0] * energy).sum() / energy.sum()
  return functional.mse_loss(torch.einsum("bkhw,kc->bchw", probs[:, 1:], basis), values)


def orthonormality_loss(basis: Tensor) -> Tensor:
  """Squared distance of the normalised rows' Gram matrix to the identity."""
  rows = basis / (basis.square().sum(1, keepdim=True) + 1e-6).sqrt()
  return (rows @ rows.T - torch.eye(len(rows), device=rows.device)).square().sum()


def background_loss(logits: Tensor, saliency: Tensor) -> Tensor:
  """Cross-entropy of the background channel and 1 - saliency."""
  log_all = logits.logsumexp(1)
  log_parts = logits[:, 1:].logsumexp(1) - log_all
  return -((1 - saliency) * (logits[:, 0] - log_all) + saliency * log_parts).mean()


def balance_loss(probs: Tensor) -> Tensor:
  """KL(uniform ‖ shares of the parts in the foreground): mean over parts and batch."""
  areas = probs[:, 1:].mean((2, 3)) + 1e-3
  shares = areas / areas.sum(1, keepdim=True)
  return -(shares.shape[1] * shares).log().mean()


def potts_loss(probs: Tensor, images: Tensor) -> Tensor:
  """exp(-‖difference of colours‖² / 2σ²) · (1 - ⟨R_u, R_v⟩): mean over neighbours and batch."""
  pairs = []
  for axis in (2, 3):
    size = probs.shape[axis] - 1
    (left, right), (left_map, right_map) = (
      (maps.narrow(axis, 0, size), maps.narrow(axis, 1, size)) for maps in (images, probs)
    )
    contrast, differ = (left - right).square().sum(1), 1 - (left_map * right_map).sum(1)
    pairs.append((contrast.flatten(1), differ.flatten(1)))
  contrast, differ = (torch.cat(both, dim=1) for both in zip(*pairs, strict=True))
  twice_variance = (2 * contrast.mean(1, keepdim=True)).clamp_min(torch.finfo(contrast.dtype).tiny)
  return ((-contrast / twice_variance).exp() * differ).mean()


def learning_rate(config: ConfigDict, peak: float, step: int) -> float:
  """Returns the learning rate at a step (the first is 0) of the config's schedule."""
  optimizer = config.optimizer
  if step < optimizer.warmup_steps:
    return peak * (step + 1) / optimizer.warmup_steps
  done = (step - optimizer.warmup_steps) / (config.num_steps - optimizer.warmup_steps)
  if optimizer.schedule == "poly":
    return peak * (1 - done) ** optimizer.power
  return peak * (1 + math.cos(math.pi * done)) / 2


class Update:
  """Clipping, and SGD or AdamW with the groups backbone, head and basis."""

  def __init__(self, segmenter: nn.Module, basis: Tensor, config: ConfigDict) -> None:
    self.config, self.step = config, 0
    self.clipped = [[p for p in segmenter.parameters() if p.requires_grad], [basis]]
    groups: dict[int, dict[str, list[Tensor]]] = {1: {"basis": [basis]}}
    for name, parameter in segmenter.named_parameters():
      if parameter.requires_grad:
        count = self._visits(name)
        group = "head" if name.startswith(("head_", "layer5")) else "backbone"
        groups.setdefault(count, {}).setdefault(group, []).append(parameter)
    self.optimizers = [
      (count, self._create([{"params": params, "name": name} for name, params in members.items()]))
      for count, members in sorted(groups.items())
    ]

  def _create(self, groups: list[dict]) -> torch.optim.Optimizer:
    optimizer = self.config.optimizer
    if optimizer.name == "sgd":
      return torch.optim.SGD(groups, lr=0.0, momentum=optimizer.momentum)  # the decay is added below
    betas = (optimizer.momentum, 0.999)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, weight_decay=optimizer.weight_decay)

  def _visits(self, name: str) -> int:
    """Returns how often the release's optimizer updates a parameter within one step."""
    if not self.config.optimizer.repeat_updates or not name.startswith(_RESNET_STAGES):
      return 1
    return 4 if "downsample" in name else 3

  def _rates(self) -> dict[str, float]:
    optimizer = self.config.optimizer
    rate = learning_rate(self.config, optimizer.learning_rate, self.step)
    basis = optimizer.basis_learning_rate
    if optimizer.schedule != "poly":
      basis = learning_rate(self.config, basis, self.step)
    return {"backbone": rate, "head": rate * optimizer.head_multiplier, "basis": basis}

  def __call__(self) -> Tensor:
    """Updates the parameters; returns the norm of the segmenter's gradient before clipping."""
    config = self.config.optimizer
    norm, _ = [nn.utils.clip_grad_norm_(owned, config.clip_norm) for owned in self.clipped]
    rates = self._rates()
    for visits, optimizer in self.optimizers:
      parameters = []
      for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]
        parameters += group["params"]
      for _ in range(visits):
        if config.name == "sgd":
          # The decay is added to the gradient in place, so that it accumulates over the visits as in the
          # release.
          torch._foreach_add_([p.grad for p in parameters], parameters, alpha=config.weight_decay)
        optimizer.step()
    self.step += 1
    return norm


class Step:
  """The training step on a workload; a call does the next step.

  Attributes:
    segmenter, reference, basis, update, draws: parts of the step that `pytorch_pieces` measures.
  """

  def __init__(self, folder: pathlib.Path, options: Sequence[str] = ()) -> None:
    """Reads a workload.

    Raises:
      UserError: an option is not among OPTIONS, or a network has no PyTorch version here.
    """
    for option in options:
      if option not in OPTIONS:
        raise UserError(f"pytorch:{option} is not among pytorch:{', pytorch:'.join(OPTIONS)}")
    self.config = workload.read_config(folder)
    self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    self.layout = torch.channels_last if "channels_last" in options else torch.contiguous_format
    self.arrays, self.draws = workload.read_arrays(folder)
    networks = {"segmenter": create_segmenter(self.config), "reference": create_reference(self.config)}
    self.segmenter, self.reference = (
      load(network, workload.read_state_dict(folder, name)).to(self.device, memory_format=self.layout)
      for name, network in networks.items()
    )
    freeze(self.segmenter, self.config.optimizer.frozen_modules)
    self.basis = torch.tensor(self.arrays.basis, device=self.device, requires_grad=True)
    size = self.config.image_size
    self.grid = ThinPlateGrid(size, size, self.device)
    self.update = Update(self.segmenter, self.basis, self.config)
    self._bfloat16 = "bfloat16" in options
    if "compile" in options:
      self.segmenter.compile()
      self.reference.compile()
      self.compute_terms = torch.compile(self.compute_terms)

  def precision(self) -> contextlib.AbstractContextManager:
    """Returns the context that networks run in."""
    if self._bfloat16:
      return torch.autocast(self.device.type, torch.bfloat16)
    return contextlib.nullcontext()

  def put_batch(self) -> tuple[Tensor, Tensor]:
    """Returns images [B, 3, H, W] in 0..255 and saliency [B, H, W] in [0, 1] on the device."""
    images, saliency = (
      torch.from_numpy(array).to(self.device) for array in (self.arrays.images, self.arrays.saliency)
    )
    return images.permute(0, 3, 1, 2).float().contiguous(memory_format=self.layout), saliency / 255

  def segment(self, images: Tensor) -> Tensor:
    """Maps normalised images to logits of their size, float32."""
    with self.precision():
      logits = self.segmenter(images)
    return resize(logits.float(), *images.shape[2:])

  def segment_pair(self, images: Tensor, warped: Tensor) -> tuple[Tensor, Tensor]:
    """Segments both, in one pass unless the network normalises with the batch's statistics."""
    if self.config.segmenter.startswith("deeplab"):
      return self.segment(images), self.segment(warped)
    both = torch.cat([images, warped]).contiguous(memory_format=self.layout)
    return self.segment(both).chunk(2)

  def features(self, images: Tensor) -> tuple[Tensor, ...]:
    """Returns the reference's maps, float32."""
    side = self.config.reference_image_size
    with torch.no_grad(), self.precision():
      maps = self.reference(normalize(self.config.reference, resize(images, side, side)))
    found = [x.float() for x in maps]
    if self.config.reference_l2_normalize:
      found = [x / (x.square().sum(1, keepdim=True) + 1e-6).sqrt() for x in found]
    return tuple(found)

  def compute_terms(
    self,
    logits: Tensor,
    warped_logits: Tensor,
    grid: Tensor,
    basis: Tensor,
    features: Sequence[Tensor],
    saliency: Tensor,
    images: Tensor,
  ) -> dict[str, Tensor]:
    """Returns the unweighted loss terms."""
    target_logits = warp(logits, grid)
    probs = logits.softmax(1)
    terms = {
      "concentration": concentration_loss(probs),
      "equivariance": equivariance_loss(warped_logits, target_logits),
      "landmark_equivariance": landmark_equivariance_loss(warped_logits, target_logits),
      "semantic_consistency": semantic_consistency_loss(
        probs, basis, features, saliency, assigned=self.config.semantic_assigned
      ),
      "orthonormality": orthonormality_loss(basis),
    }
    if self.config.loss.background:
      terms["background"] = background_loss(logits, saliency)
    if self.config.loss.balance:
      terms["balance"] = balance_loss(probs)
    if self.config.loss.potts:
      terms["potts"] = potts_loss(probs, images)
    return terms

  def __call__(self) -> dict[str, Tensor]:
    """Does one update; returns every loss term, their weighted sum "loss", and "gradient_norm"."""
    config, draw = self.config, self.update.step % workload.DRAWN_STEPS
    self.segmenter.train()
    images, saliency = self.put_batch()
    features = self.features(images)
    jittered = jitter_colors(images, self.draws, draw)
    grid = self.grid(torch.from_numpy(self.draws.source_points[draw]).to(self.device))
    warped = warp(normalize(config.segmenter, jittered), grid, padding=config.spatial.padding)
    logits, warped_logits = self.segment_pair(normalize(config.segmenter, images), warped)
    terms = self.compute_terms(logits, warped_logits, grid, self.basis.relu(), features, saliency, images)
    loss = sum(config.loss[name] * value for name, value in terms.items())
    for owned in self.update.clipped:
      for parameter in owned:
        parameter.grad = None
    loss.backward()
    metrics = {"loss": loss, **terms, "gradient_norm": self.update()}
    if self.device.type == "cuda":
      torch.cuda.synchronize()
    return {name: value.detach() for name, value in metrics.items()}
