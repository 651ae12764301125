"""The benchmarks' networks, written plainly in PyTorch; names as in the published weight files."""

import re
from collections.abc import Sequence

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.nn import functional

from experiments.benchmarks.workload import StateDict
from scops_jax.errors import UserError

# Mean and standard deviation of RGB 0..255 with which each network was trained.
_NORMALIZATION = {
  "deeplab": ((122.67891434, 116.66876762, 104.00698793), (1.0, 1.0, 1.0)),
  "vgg19": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
  "efficientnet_lite0": ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
}
_DEEPLAB_BLOCKS = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3)}


def normalize(name: str, images: Tensor) -> Tensor:
  """Maps RGB [B, 3, H, W] in 0..255 to what the network expects."""
  mean, deviation = _NORMALIZATION["deeplab" if name.startswith("deeplab") else name]
  mean, deviation = (images.new_tensor(values).view(3, 1, 1) for values in (mean, deviation))
  return (images - mean) / deviation


def resize(images: Tensor, height: int, width: int) -> Tensor:
  """Resizes [B, C, h, w] bilinearly with aligned corners."""
  if images.shape[2:] == (height, width):
    return images
  return functional.interpolate(images, (height, width), mode="bilinear", align_corners=True)


def create_segmenter(config: ConfigDict) -> nn.Module:
  """Returns the segmenter that the config names, with random weights.

  Raises:
    UserError: the network has no PyTorch version here.
  """
  if config.segmenter == "efficientnet_lite0":
    return EfficientNetLite0Segmenter(config.num_parts)
  depth, _, branches = config.segmenter.removeprefix("deeplab").partition("_")
  if depth not in _DEEPLAB_BLOCKS:
    raise UserError(f"segmenter={config.segmenter} has no PyTorch version here")
  return DeepLab(config.num_parts, _DEEPLAB_BLOCKS[depth], two_branch=branches == "2branch")


def create_reference(config: ConfigDict) -> nn.Module:
  """Returns the frozen reference that the config names, with random weights.

  Raises:
    UserError: the network has no PyTorch version here.
  """
  layers = tuple(config.reference_layers)
  if config.reference == "vgg19":
    reference: nn.Module = Vgg19Reference(layers)
  elif config.reference == "efficientnet_lite0":
    reference = EfficientNetLite0Reference(layers)
  else:
    raise UserError(f"reference={config.reference} has no PyTorch version here")
  return reference.eval().requires_grad_(False)


def load(network: nn.Module, state_dict: StateDict) -> nn.Module:
  """Sets every parameter and buffer; a linear layer's weight may set a 1×1 convolution's."""
  own = network.state_dict()
  filled = {name: torch.tensor(value).reshape(own[name].shape) for name, value in state_dict.items()}
  network.load_state_dict(filled)
  return network


def freeze(segmenter: nn.Module, modules: Sequence[str]) -> None:
  """Freezes modules named as this package names them (config.optimizer.frozen_modules).

  Raises:
    UserError: a name is neither "stem" nor "block3_" of EfficientNet-Lite0.
  """
  for name in modules:
    block = re.fullmatch(r"block(\d+)_", name)
    beginnings = (f"_blocks.{block[1]}.",) if block else ("_conv_stem.", "_bn0.")
    if not block and name != "stem":
      raise UserError(f"optimizer.frozen_modules={name!r} has no PyTorch version here: stem, block0_, … have")
    for key, parameter in segmenter.named_parameters():
      if key.startswith(beginnings):
        parameter.requires_grad_(False)


class Bottleneck(nn.Module):
  """Caffe's bottleneck block: the first 1×1 convolution has the stride."""

  def __init__(self, in_channels: int, channels: int, *, stride: int, dilation: int, projects: bool) -> None:
    super().__init__()
    self.conv1 = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
    self.bn1 = nn.BatchNorm2d(channels)
    self.conv2 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
    self.bn2 = nn.BatchNorm2d(channels)
    self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
    self.bn3 = nn.BatchNorm2d(4 * channels)
    self.relu = nn.ReLU(inplace=True)
    self.downsample = None
    if projects:
      shortcut = nn.Conv2d(in_channels, 4 * channels, 1, stride, bias=False)
      self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * channels))

  def forward(self, x: Tensor) -> Tensor:
    y = self.relu(self.bn1(self.conv1(x)))
    y = self.relu(self.bn2(self.conv2(y)))
    y = self.bn3(self.conv3(y))
    return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class DeepLab(nn.Module):
  """ResNet trunk with dilated stages 3 and 4, and the sum of four dilated convolutions."""

  def __init__(self, num_parts: int, block_counts: Sequence[int], *, two_branch: bool) -> None:
    super().__init__()
    self.two_branch = two_branch
    self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    self.bn1 = nn.BatchNorm2d(64)
    self.relu = nn.ReLU(inplace=True)
    self.maxpool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
    in_channels = 64
    for stage, (stride, dilation) in enumerate(((1, 1), (2, 1), (1, 2), (1, 4))):
      channels, blocks = 64 * 2**stage, []
      for block in range(block_counts[stage]):
        first = block == 0
        blocks.append(
          Bottleneck(in_channels, channels, stride=stride if first else 1, dilation=dilation, projects=first)
        )
        in_channels = 4 * channels
      setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
    self.layer5 = nn.Module()
    inputs = in_channels // 2 if two_branch else in_channels
    self.layer5.conv2d_list = nn.ModuleList(
      nn.Conv2d(inputs, num_parts + 1, 3, padding=d, dilation=d) for d in (6, 12, 18, 24)
    )
    for name, module in self.named_modules():
      if isinstance(module, nn.BatchNorm2d):
        module.requires_grad_(two_branch and "downsample" in name)

  def forward(self, x: Tensor) -> Tensor:
    x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
    x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
    if self.two_branch:
      x = x[:, x.shape[1] // 2 :]
    return sum(conv(x) for conv in self.layer5.conv2d_list)


class Vgg19Reference(nn.Module):
  """Returns the maps after the relu of the given convolutions."""

  def __init__(self, layers: Sequence[str]) -> None:
    super().__init__()
    self.layers = layers
    modules: list[nn.Module] = []
    self.places: dict[int, str] = {}
    in_channels = 3
    for block, (count, channels) in enumerate(zip((2, 2, 4, 4, 4), (64, 128, 256, 512, 512), strict=True), 1):
      for i in range(1, count + 1):
        modules += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
        in_channels = channels
        self.places[len(modules) - 1] = f"relu{block}_{i}"
      modules.append(nn.MaxPool2d(2, 2))
    last = max(place for place, name in self.places.items() if name in layers)
    self.features = nn.Sequential(*modules[: last + 1])

  def forward(self, x: Tensor) -> tuple[Tensor, ...]:
    maps = {}
    for place, module in enumerate(self.features):
      x = module(x)
      maps[self.places.get(place)] = x
    return tuple(maps[layer] for layer in self.layers)


# Kernel size, stride, expansion and channels of EfficientNet-Lite0's blocks 0 to 10.
_LITE0_BLOCKS = (
  (3, 1, 1, 16),
  (3, 2, 6, 24),
  (3, 1, 6, 24),
  (5, 2, 6, 40),
  (5, 1, 6, 40),
  (3, 2, 6, 80),
  (3, 1, 6, 80),
  (3, 1, 6, 80),
  (5, 1, 6, 112),
  (5, 1, 6, 112),
  (5, 1, 6, 112),
)
_LITE0_STRIDE = 16


class InvertedResidual(nn.Module):
  """1×1 expansion, depthwise convolution, and 1×1 projection to `channels` (None: no projection)."""

  def __init__(
    self, in_channels: int, channels: int | None, *, kernel_size: int, stride: int, expansion: int
  ) -> None:
    super().__init__()
    width = in_channels * expansion
    self.expands, self.projects = expansion > 1, channels is not None
    self.residual = stride == 1 and in_channels == channels
    if self.expands:
      self._expand_conv = nn.Conv2d(in_channels, width, 1, bias=False)
      self._bn0 = nn.BatchNorm2d(width, eps=1e-3)
    # Sides are stride · m + 1, where TensorFlow's SAME padding is symmetric.
    self._depthwise_conv = nn.Conv2d(
      width, width, kernel_size, stride, kernel_size // 2, groups=width, bias=False
    )
    self._bn1 = nn.BatchNorm2d(width, eps=1e-3)
    if self.projects:
      self._project_conv = nn.Conv2d(width, channels, 1, bias=False)
      self._bn2 = nn.BatchNorm2d(channels, eps=1e-3)

  def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the depthwise map and the result."""
    y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
    y = depthwise = functional.relu6(self._bn1(self._depthwise_conv(y)))
    if self.projects:
      y = self._bn2(self._project_conv(depthwise))
    return depthwise, x + y if self.residual else y


class EfficientNetLite0Trunk(nn.Module):
  """The stem and the first blocks; BatchNorm uses its running statistics in training too."""

  def __init__(self, num_blocks: int, *, projects_last: bool = True) -> None:
    super().__init__()
    self._conv_stem = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
    self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
    self.stride, in_channels = 2, 32
    self._blocks = nn.ModuleList()
    for kernel_size, stride, expansion, channels in _LITE0_BLOCKS[:num_blocks]:
      options = {"kernel_size": kernel_size, "stride": stride, "expansion": expansion}
      projects = projects_last or len(self._blocks) < num_blocks - 1
      self._blocks.append(InvertedResidual(in_channels, channels if projects else None, **options))
      in_channels = channels
      self.stride *= stride

  def train(self, mode: bool = True) -> nn.Module:
    """Stays in evaluation mode, because the statistics are frozen."""
    del mode
    return super().train(False)

  def compute_maps(self, x: Tensor) -> dict[str, Tensor]:
    """Returns "block{i}_depthwise" and "block{i}" of all blocks."""
    x = resize(x, *(-(-(n - 1) // self.stride) * self.stride + 1 for n in x.shape[2:]))
    x = functional.relu6(self._bn0(self._conv_stem(x)))
    maps = {}
    for i, block in enumerate(self._blocks):
      maps[f"block{i}_depthwise"], x = block(x)
      maps[f"block{i}"] = x
    return maps


class EfficientNetLite0Reference(EfficientNetLite0Trunk):
  """Returns the maps after the depthwise convolutions of the given blocks."""

  def __init__(self, layers: Sequence[str]) -> None:
    blocks = [int(layer.removeprefix("block").removesuffix("_depthwise")) for layer in layers]
    super().__init__(max(blocks) + 1, projects_last=False)
    self.layers = layers

  def forward(self, x: Tensor) -> tuple[Tensor, ...]:
    maps = self.compute_maps(x)
    return tuple(maps[layer] for layer in self.layers)


class EfficientNetLite0Segmenter(EfficientNetLite0Trunk):
  """Blocks 0 to 10 and a top-down decoder from stride 16 to stride 4."""

  def __init__(self, num_parts: int, channels: int = 64) -> None:
    super().__init__(len(_LITE0_BLOCKS))
    self.head_lateral10 = nn.Conv2d(112, channels, 1)
    self.head_lateral4 = nn.Conv2d(40, channels, 1)
    self.head_smooth4 = Smooth(channels)
    self.head_lateral2 = nn.Conv2d(24, channels, 1)
    self.head_smooth2 = Smooth(channels)
    self.head_logits = nn.Conv2d(channels, num_parts + 1, 1)

  def forward(self, x: Tensor) -> Tensor:
    maps = self.compute_maps(x)
    x = self.head_lateral10(maps["block10"])
    for lateral, smooth, name in (
      (self.head_lateral4, self.head_smooth4, "block4"),
      (self.head_lateral2, self.head_smooth2, "block2"),
    ):
      y = lateral(maps[name])
      x = smooth(functional.relu(y + resize(x, *y.shape[2:])))
    return self.head_logits(x)


class Smooth(nn.Conv2d):
  """Depthwise 5×5, 1×1 and relu."""

  def __init__(self, channels: int) -> None:
    super().__init__(channels, channels, 5, padding=2, groups=channels, bias=False)
    self.pointwise = nn.Conv2d(channels, channels, 1)

  def forward(self, x: Tensor) -> Tensor:
    return functional.relu(self.pointwise(super().forward(x)))
