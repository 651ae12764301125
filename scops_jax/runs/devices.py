"""What a run says about the devices it computes on."""

import pathlib
import sys

import jax
from ml_collections import ConfigDict

from scops_jax.progress import say
from scops_jax.train_step import resolve_dtype

# Files of NVIDIA's driver, natively, in containers and in WSL.
_GPU_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")
_PCI_DEVICES = pathlib.Path("/sys/bus/pci/devices")
_GOOGLE = "0x1ae0"  # PCI vendor; its network cards have it too
_TPUS = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")  # PCI devices, v2 to TPU7x


def announce_devices(config: ConfigDict) -> None:
  """Prints on standard error, once for all hosts, what a run computes on and how exactly.

  Warns on every host whose accelerator JAX can't use, unless JAX_PLATFORMS asks for the CPU.
  """
  chosen = jax.config.jax_platforms  # type: ignore[attr-defined]
  if jax.default_backend() == "cpu" and not chosen and (found := _accelerator()):
    kind, extra = found
    print(
      f"warning: this machine has {kind}, but JAX computes on the CPU: pip install 'scops_jax[{extra}]', or "
      "set JAX_PLATFORMS=cpu if that is intended",
      file=sys.stderr,
    )
  places = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
  say(
    f"computing on {jax.device_count()} × {jax.devices()[0].device_kind}{places} ({config.parallelism}): "
    f"segmenter in {resolve_dtype(config.compute_dtype)}, reference in "
    f"{resolve_dtype(config.reference_dtype)}, parameters and losses in float32"
  )


def _accelerator() -> tuple[str, str] | None:
  """Returns the machine's accelerator and the extra of setup.cfg that it needs; None if it has none."""
  if any(pathlib.Path(path).exists() for path in _GPU_FILES):
    return "an NVIDIA GPU", "cuda13"
  for device in _PCI_DEVICES.glob("*"):
    try:
      vendor, number = ((device / name).read_text().strip() for name in ("vendor", "device"))
    except OSError:
      continue
    if vendor == _GOOGLE and number in _TPUS:
      return "a TPU", "tpu"
  return None
