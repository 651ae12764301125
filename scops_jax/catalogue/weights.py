"""The published weight files of the networks."""

from scops_jax.catalogue.wanted import WantedFile

_TORCHVISION = "torchvision's, download.pytorch.org/models"
_CAFFE = "OpenMMLab's copy of the Caffe model, or a segmenter of the authors, model_*.pth"
_BSD = "BSD-3-Clause"
_META = "Meta's DINOv3 licence, to be accepted first"
_SIZES = {"s": "small", "b": "base", "l": "large"}
# In float32, MB.
_DINOV2_MB = {"s": 88, "b": 346, "l": 1217}
_DINOV3_MB = {"s": 86, "b": 343, "l": 1213}


def _caffe(depth: int, file: str, size: str) -> WantedFile:
  # torchvision's ResNets have their strides elsewhere.
  return WantedFile((file, f"resnet{depth}-caffe.pth"), _CAFFE, size, "MIT")


def _dinov2(size: str, *, registers: bool) -> WantedFile:
  file = f"dinov2_vit{size}14_{'reg4_' if registers else ''}pretrain.pth"
  hub = f"facebook/dinov2-{'with-registers-' if registers else ''}{_SIZES[size]}"
  source = (
    f"the authors', dl.fbaipublicfiles.com/dinov2/dinov2_vit{size}14, or model.safetensors of "
    f"huggingface.co/{hub}"
  )
  return WantedFile((file,), source, f"{_DINOV2_MB[size]} MB", "Apache-2.0")


def _dinov3(size: str) -> WantedFile:
  name = f"dinov3-vit{size}16-pretrain-lvd1689m"
  source = f"model.safetensors of huggingface.co/facebook/{name}, or the authors' file, ai.meta.com/dinov3"
  return WantedFile((name,), source, f"{_DINOV3_MB[size]} MB", _META)


WEIGHTS: dict[str, WantedFile] = {
  "deeplab50": _caffe(50, "resnet50_caffe-788b5fa3.pth", "about 100 MB"),
  "deeplab101": _caffe(101, "resnet101_caffe-3ad79236.pth", "about 180 MB"),
  "vgg16": WantedFile(("vgg16-397923af.pth",), _TORCHVISION, "553 MB", _BSD),
  "vgg19": WantedFile(("vgg19-dcbb9e9d.pth",), _TORCHVISION, "575 MB", _BSD),
  "resnet50": WantedFile(("resnet50-0676ba61.pth",), _TORCHVISION, "103 MB", _BSD),
  "resnet101": WantedFile(("resnet101-63fe2227.pth",), _TORCHVISION, "179 MB", _BSD),
  **{f"dinov2_vit{size}14": _dinov2(size, registers=False) for size in _SIZES},
  **{f"dinov2_vit{size}14_reg": _dinov2(size, registers=True) for size in _SIZES},
  **{f"dinov3_vit{size}16": _dinov3(size) for size in _SIZES},
}


def weight_file(model_name: str) -> WantedFile | None:
  """Returns the published file of a network; None if an installed package has it, or it is unknown."""
  return WEIGHTS.get(model_name.removesuffix("_2branch"))
