"""The transforms of a training step, written plainly in PyTorch: colour jitter, thin-plate grid, warp."""

import torch
from torch import Tensor
from torch.nn import functional

from experiments.benchmarks.workload import Draws

_LUMA = (0.299, 0.587, 0.114)
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


def jitter_colors(images: Tensor, draws: Draws, step: int) -> Tensor:
  """Changes the colours of RGB [B, 3, H, W] in 0..255 as drawn for a step."""
  jittered = []
  for image, factors, hue, order in zip(
    images / 255, draws.factors[step], draws.hue[step], draws.order[step], strict=True
  ):
    for operation in order:
      if operation == _HUE:
        image = _shift_hue(image, float(hue))
      else:
        image = _blend(image, _blend_target(image, operation), float(factors[operation]))
    jittered.append(image)
  return torch.stack(jittered) * 255


def _blend(image: Tensor, other: Tensor | float, factor: float) -> Tensor:
  return (factor * image + (1 - factor) * other).clamp(0, 1)


def _blend_target(image: Tensor, operation: int) -> Tensor | float:
  if operation == _BRIGHTNESS:
    return 0.0
  grey = (image * image.new_tensor(_LUMA).view(3, 1, 1)).sum(0, keepdim=True)
  return grey.mean() if operation == _CONTRAST else grey


def _shift_hue(image: Tensor, turns: float) -> Tensor:
  """Shifts the hue of RGB [3, H, W] in [0, 1] by a number of turns, through HSV."""
  red, green, blue = image
  value, brightest = image.max(0)
  chroma = value - image.min(0).values
  safe = torch.where(chroma > 0, chroma, 1)
  sixths = torch.stack([(green - blue) / safe, (blue - red) / safe + 2, (red - green) / safe + 4])
  hue = sixths.gather(0, brightest[None])[0] / 6 + turns
  # Over the hue, each primary is a trapezoid; the three are a third of a turn apart.
  offsets = image.new_tensor([5.0, 3.0, 1.0]).view(3, 1, 1)
  k = (offsets + hue * 6) % 6
  return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


class ThinPlateGrid:
  """Grids of thin-plate splines through a 5 × 5 lattice, for one size of images."""

  def __init__(self, height: int, width: int, device: torch.device) -> None:
    axis = torch.linspace(-1, 1, 5, dtype=torch.float64)
    lattice = torch.cartesian_prod(axis, axis)  # point 5 i + j = (axis[i], axis[j])
    system = torch.zeros(28, 28, dtype=torch.float64)
    system[:25] = _spline_basis(lattice, lattice)
    system[25:, :25] = system[:25, 25:].T
    y, x = torch.meshgrid(
      torch.linspace(-1, 1, height, dtype=torch.float64),
      torch.linspace(-1, 1, width, dtype=torch.float64),
      indexing="ij",
    )
    pixels = torch.stack([x, y], -1).view(-1, 2)
    matrix = _spline_basis(pixels, lattice) @ torch.linalg.inv(system)[:, :25]
    self.matrix = matrix.float().to(device)
    self.size = height, width

  def __call__(self, source_points: Tensor) -> Tensor:
    """Maps source points [B, 25, 2] to a grid [B, H, W, 2]."""
    return (self.matrix @ source_points).view(-1, *self.size, 2)


def _spline_basis(points: Tensor, lattice: Tensor) -> Tensor:
  squared = ((points[:, None] - lattice) ** 2).sum(-1)
  kernel = 0.5 * torch.xlogy(squared, squared)  # r² ln r
  return torch.cat([kernel, torch.ones_like(points[:, :1]), points], 1)


def warp(images: Tensor, grid: Tensor, *, padding: str = "zeros") -> Tensor:
  """Samples [B, C, H, W] at a grid's points."""
  return functional.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=True)
