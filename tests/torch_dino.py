"""DINO transformers of Hugging Face's transformers with random weights, and their patch tokens."""

import numpy as np


def create(architecture, *, seed=0):
  """Returns a model in evaluation mode; every tensor of it, biases and scales too, is random."""
  import torch
  import transformers

  net = architecture
  options = {
    "hidden_size": net.channels,
    "num_hidden_layers": net.depth,
    "num_attention_heads": net.heads,
    "patch_size": net.patch,
    "layer_norm_eps": net.epsilon,
  }
  if net.rotary:
    options |= {"intermediate_size": 4 * net.channels, "num_register_tokens": net.registers}
    model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**options))
  else:
    options |= {"image_size": net.patch * net.grid}
    if net.registers:
      options |= {"num_register_tokens": net.registers}
      config = transformers.Dinov2WithRegistersConfig(**options)
      model = transformers.Dinov2WithRegistersModel(config)
    else:
      model = transformers.Dinov2Model(transformers.Dinov2Config(**options))
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, value in model.named_parameters():
      noise = torch.randn(value.shape, generator=generator)
      scale = 0.1 if value.ndim == 1 or "embeddings" in name else 1.5 * value[0].numel() ** -0.5
      mean = 1.0 if name.endswith(("norm1.weight", "norm2.weight", "norm.weight", "lambda1")) else 0.0
      value.copy_(mean + scale * noise)
  return model.eval()


def with_published_offset(model):
  """Gives DINOv2 without registers the positions of the published model, whose scale has 0.1 added.

  Hugging Face's transformers resize to the exact size (release 5.24); the features of other sizes than the
  native one differ then.
  """
  import torch

  def interpolate(embeddings, height, width):
    positions = model.embeddings.position_embeddings
    patch = model.config.patch_size
    grid = int((positions.shape[1] - 1) ** 0.5)
    new = (height // patch, width // patch)
    if new == (grid, grid):
      return positions
    maps = positions[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    factors = tuple((n + 0.1) / grid for n in new)
    maps = torch.nn.functional.interpolate(maps, scale_factor=factors, mode="bicubic")
    assert maps.shape[-2:] == new
    return torch.cat([positions[:, :1], maps.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

  model.embeddings.interpolate_pos_encoding = interpolate
  return model


def patch_tokens(model, images, architecture):
  """Returns the patch tokens [B, h, w, C] of images [B, H, W, 3] after each block, then after the norm."""
  import torch

  with torch.no_grad():
    inputs = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
    result = model(inputs, output_hidden_states=True)
  height, width = (side // architecture.patch for side in images.shape[1:3])
  tokens = [*result.hidden_states[1:], result.last_hidden_state]
  if len(tokens) != architecture.depth + 1:
    raise ValueError(f"expected {architecture.depth} hidden states and the last, got {len(tokens)}")
  return [x[:, 1 + architecture.registers :].reshape(len(images), height, width, -1).numpy() for x in tokens]


def saved_state_dict(model):
  """Returns the arrays by the names that a file has which the model is saved to."""
  import pathlib
  import tempfile

  from safetensors.numpy import load_file

  with tempfile.TemporaryDirectory() as directory:
    model.save_pretrained(directory)
    return load_file(pathlib.Path(directory) / "model.safetensors")
