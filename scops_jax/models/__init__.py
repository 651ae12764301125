"""Networks by name."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax

from scops_jax.models import deeplab, dino, efficientnet_lite, resnet, vgg, vit
from scops_jax.models.base import Reference, Segmenter
from scops_jax.models.part_basis import PartBasis

__all__ = [
  "PartBasis",
  "Reference",
  "Segmenter",
  "check_image_size",
  "check_reference_image_size",
  "create_reference",
  "create_segmenter",
  "default_layers",
  "normalize",
  "reference_multiple",
  "segmenter_multiple",
]

_Normalizer = Callable[[jax.Array], jax.Array]


class _SegmenterEntry(NamedTuple):
  create: Callable[..., Segmenter]  # takes num_parts
  image_multiple: int  # image sides are multiples of it, pixels
  normalize: _Normalizer


class _ReferenceEntry(NamedTuple):
  create: Callable[..., Reference]  # takes layers and l2_normalize
  layers: tuple[str, ...]
  normalize: _Normalizer
  default_layers: tuple[str, ...]
  image_multiple: int = 1  # image sides are multiples of it, pixels


def _deeplab(depth: str, *, two_branch: bool) -> _SegmenterEntry:
  create = functools.partial(deeplab.DeepLab, block_counts=resnet.BLOCK_COUNTS[depth], two_branch=two_branch)
  return _SegmenterEntry(create, deeplab.STRIDE, deeplab.normalize)


def _resnet(depth: str) -> _ReferenceEntry:
  create = functools.partial(resnet.ResNetReference, block_counts=resnet.BLOCK_COUNTS[depth])
  return _ReferenceEntry(create, resnet.REFERENCE_LAYERS, vgg.normalize, ("layer4",))


def _vgg(convolutions: tuple[int, ...]) -> _ReferenceEntry:
  create = functools.partial(vgg.VggReference, convolutions=convolutions)
  layers = vgg.reference_layers(convolutions)
  return _ReferenceEntry(create, layers, vgg.normalize, ("relu5_2", layers[-1]))


def _dino_segmenter(architecture: vit.Architecture) -> _SegmenterEntry:
  create = functools.partial(dino.DinoSegmenter, architecture=architecture)
  return _SegmenterEntry(create, architecture.patch, vgg.normalize)


def _dino_reference(architecture: vit.Architecture) -> _ReferenceEntry:
  create = functools.partial(dino.DinoReference, architecture=architecture)
  return _ReferenceEntry(create, architecture.layers, vgg.normalize, ("norm",), architecture.patch)


_SEGMENTERS = {
  "efficientnet_lite0": _SegmenterEntry(
    efficientnet_lite.EfficientNetLite0Segmenter, 16, efficientnet_lite.normalize
  ),
  # The whole trunk on images twice as large: sees what an object's parts are, also of a kind not trained on.
  "efficientnet_lite0_x2": _SegmenterEntry(
    functools.partial(efficientnet_lite.EfficientNetLite0Segmenter, blocks=(15, 10, 4, 2), enlargement=2),
    16,
    efficientnet_lite.normalize,
  ),
  "deeplab50": _deeplab("50", two_branch=False),
  "deeplab50_2branch": _deeplab("50", two_branch=True),
  "deeplab101": _deeplab("101", two_branch=False),
  "deeplab101_2branch": _deeplab("101", two_branch=True),
  **{name: _dino_segmenter(architecture) for name, architecture in dino.ARCHITECTURES.items()},
}
_REFERENCES = {
  "efficientnet_lite0": _ReferenceEntry(
    efficientnet_lite.EfficientNetLite0Reference,
    efficientnet_lite.REFERENCE_LAYERS,
    efficientnet_lite.normalize,
    ("block13_depthwise", "block15_depthwise"),
  ),
  "vgg16": _vgg(vgg.VGG16),
  "vgg19": _vgg(vgg.VGG19),
  "resnet50": _resnet("50"),
  "resnet101": _resnet("101"),
  **{name: _dino_reference(architecture) for name, architecture in dino.ARCHITECTURES.items()},
}


def create_segmenter(name: str, num_parts: int) -> Segmenter:
  """Creates the trained network by name.

  Args:
    name: of the network.
    num_parts: K ≥ 1, without the background.

  Returns:
    A module: `.init(key, images, train=False)` and `.apply(variables, images, train=False)` → logits
    `[B, h, w, K+1]` at the network's own resolution, channel 0 the background, cells on the align-corners
    lattice of the normalised images `[B, H, W, 3]` (deeplab's within a pixel of it). Modules named "head_..."
    hold the new parameters; the others can come from a published file (`weights.apply_state_dict`). Training
    is `.apply(variables, images, train=True, mutable=["batch_stats"])`. Forward mode (jax.jvp, jax.jacfwd)
    works too, except in programs of `compilation.jit(training=True)`.

  Raises:
    ValueError: an unknown name, or K < 1.
  """
  _check(name, _SEGMENTERS, "segmenter")
  if num_parts < 1:
    raise ValueError(f"expected num_parts >= 1, got {num_parts}")
  return _SEGMENTERS[name].create(num_parts=num_parts)


def create_reference(name: str, layers: Sequence[str], *, l2_normalize: bool = False) -> Reference:
  """Creates the frozen feature network by name.

  Args:
    name: of the network.
    layers: names of the maps to return; layers after the last of them are not computed.
    l2_normalize: whether each position's features are divided by their norm. The next layer of vgg then reads
      the normalised map, as in the release.

  Returns:
    A module: `.init(key, images)` and `.apply(variables, images)` → tuple of maps `[B, h, w, C]`, one per
    layer in the order given; non-negative unless the module's `signed` is True (dino…; `nonnegative.encode`
    makes a non-negative code of them). Their cells are taken to lie on the align-corners lattice of the
    normalised images `[B, H, W, 3]`. For efficientnet_lite0 and dino… they do; the modules of the others say
    how far off they are.

  Raises:
    ValueError: an unknown network or layer, or no layer.
  """
  _check(name, _REFERENCES, "reference")
  entry = _REFERENCES[name]
  if not layers:
    raise ValueError(f"expected at least one layer of {name}, one of: {', '.join(entry.layers)}")
  for layer in layers:
    _check(layer, entry.layers, f"layer of {name}")
  return entry.create(layers=tuple(layers), l2_normalize=l2_normalize)


def normalize(name: str, images: jax.Array) -> jax.Array:
  """Maps RGB images `[..., 3]` in 0..255 to what the network of this name expects.

  Raises:
    ValueError: an unknown name.
  """
  entries: dict[str, _SegmenterEntry | _ReferenceEntry] = {**_SEGMENTERS, **_REFERENCES}
  _check(name, entries, "network")
  return entries[name].normalize(images)


def default_layers(name: str) -> tuple[str, ...]:
  """Returns the layers that a reference is used with if the config names none.

  Raises:
    ValueError: an unknown name.
  """
  _check(name, _REFERENCES, "reference")
  return _REFERENCES[name].default_layers


def segmenter_multiple(name: str) -> int:
  """Returns the number of pixels that the sides of the segmenter's images are multiples of.

  Raises:
    ValueError: an unknown name.
  """
  _check(name, _SEGMENTERS, "segmenter")
  return _SEGMENTERS[name].image_multiple


def reference_multiple(name: str) -> int:
  """Returns the number of pixels that the sides of the reference's images are multiples of; 1 = any size.

  Raises:
    ValueError: an unknown name.
  """
  _check(name, _REFERENCES, "reference")
  return _REFERENCES[name].image_multiple


def check_image_size(name: str, size: int) -> None:
  """Raises ValueError unless `size`, pixels per side, is a multiple of the segmenter's stride or patch."""
  _check_size("image_size", size, segmenter_multiple(name), name)


def check_reference_image_size(name: str, size: int) -> None:
  """Raises ValueError unless `size`, pixels per side, is a multiple of the reference's patch, if any."""
  _check_size("reference_image_size", size, reference_multiple(name), name)


def _check_size(key: str, size: int, stride: int, name: str) -> None:
  if size % stride:
    lower = size // stride * stride
    nearest = f"{lower} or {lower + stride}" if lower else f"{stride}"
    raise ValueError(f"{key}={size} is not divisible by {stride}, the stride of {name}: take {nearest}")


def _check(name: str, valid: Iterable[str], what: str) -> None:
  if name not in valid:
    raise ValueError(f"unknown {what} '{name}'; valid: {', '.join(valid)}")
