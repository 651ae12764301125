"""Spatial transforms, thin-plate grids and warping against recorded and reference values."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from scops_jax import geometry, warp
from scops_jax.config import default_config
from scops_jax.kernels.platforms import targeting
from tests import oracle

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((2, 5, 7, 3)).astype(np.float32)
GRID = RNG.uniform(-1.4, 1.4, (2, 4, 6, 2)).astype(np.float32)


def spatial_with(**options):
  spatial = default_config().spatial
  spatial.update(options)
  return spatial


def draw(spatial, count):
  """Returns `count` drawn transforms."""
  return jax.jit(lambda key: warp.sample_spatial_transform(key, count, spatial))(jax.random.key(0))


def test_control_lattice_runs_down_the_columns():
  lattice = warp.control_lattice()
  assert lattice.shape == (25, 2)
  np.testing.assert_array_equal(lattice, oracle.golden("tps")["target_control_points"])
  np.testing.assert_array_equal(lattice[5 * 1 + 3], [-0.5, 0.5])


@pytest.mark.parametrize("mirror", ["", "_mirror"])
@pytest.mark.parametrize("mode", ["affine", "projective", "tpsonly"])
@pytest.mark.parametrize("shape", ["sq", "rect"])
@pytest.mark.usefixtures("x64")
def test_transforms_and_grids_match_the_release(shape, mode, mirror):
  prefix = f"{shape}_{mode}{mirror if mode != 'tpsonly' else ''}_"
  recorded = {
    key.removeprefix(prefix): np.asarray(value, np.float64)
    for key, value in oracle.golden("tps").items()
    if key.startswith(prefix)
  }
  angles = {key: np.deg2rad(value) for key, value in recorded.items() if key.startswith("angle")}
  points = warp.control_lattice() + recorded["perturb"]
  if mode == "affine":
    shift = np.stack([recorded["shift_x"], recorded["shift_y"]], axis=-1)
    points = warp.similarity_transform(
      points, angle=angles["angle_deg"], scale=recorded["scale"], shift=shift
    )
  elif mode == "projective":
    tilt = np.stack([angles["angle_x_deg"], angles["angle_y_deg"]], axis=-1)
    angle = angles["angle_z_deg"]
    points = warp.projective_transform(points, angle=angle, tilt=tilt, scale=recorded["scale"])
  points = warp.mirror_points(points, np.full(2, recorded["mirror_flag"] > 0))
  np.testing.assert_allclose(points, recorded["source_control_points"], rtol=1e-6, atol=1e-7)
  grid = warp.thin_plate_grid(recorded["source_control_points"], *recorded["grid"].shape[1:3])
  np.testing.assert_allclose(grid, recorded["grid"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", ["sq", "rect"])
def test_grid_through_given_points_matches_the_release_in_float32(shape):
  recorded = oracle.golden("tps")
  points, grid = recorded[f"{shape}_given_source_control_points"], recorded[f"{shape}_given_grid"]
  computed = warp.thin_plate_grid(points, *grid.shape[1:3])
  assert computed.dtype == jnp.float32
  np.testing.assert_allclose(computed, grid, atol=2e-6)


def test_grid_matches_the_reference_and_passes_through_the_points():
  points = np.asarray(warp.control_lattice()) + RNG.uniform(-0.3, 0.3, (2, 25, 2)).astype(np.float32)
  grid = jax.jit(warp.thin_plate_grid, static_argnums=(1, 2))(points, 4, 7)
  expected = np.stack([oracle.thin_plate(source, 4, 7) for source in points])
  np.testing.assert_allclose(grid, expected, atol=2e-6)
  on_lattice = warp.thin_plate_grid(points, 5, 5)  # its pixel (row j, column i) is lattice point 5i + j
  np.testing.assert_allclose(np.swapaxes(on_lattice, 1, 2).reshape(2, 25, 2), points, atol=2e-6)


def test_grid_of_an_affine_map_is_that_map():
  matrix, shift = np.array([[0.8, -0.3], [0.2, 1.1]], np.float32), np.array([0.1, -0.2], np.float32)
  grid = warp.thin_plate_grid((np.asarray(warp.control_lattice()) @ matrix.T + shift)[None], 6, 9)
  expected = np.asarray(geometry.coordinate_grid(6, 9)) @ matrix.T + shift
  np.testing.assert_allclose(grid[0], expected, atol=2e-6)


def test_similarity_by_hand():
  # A quarter turn takes (1, 0) to (0, 1); doubled, then shifted.
  point = jnp.array([[[1.0, 0.0]]])
  moved = warp.similarity_transform(
    point, angle=jnp.array([np.pi / 2]), scale=jnp.array([2.0]), shift=jnp.array([[0.1, 0.2]])
  )
  np.testing.assert_allclose(moved, [[[0.1, 2.2]]], atol=1e-6)


@pytest.fixture(params=["cpu", "tpu"])
def platform(request):
  with targeting(request.param):
    yield


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("kind", ["image", "logits"])
@pytest.mark.parametrize("shape", ["sq", "rect"])
@pytest.mark.usefixtures("x64")
@pytest.mark.usefixtures("platform")
def test_warp_and_its_gradient_match_the_release(shape, kind, padding):
  recorded = oracle.golden("grid_sample")
  grid = jnp.asarray(recorded[f"{shape}_grid"], jnp.float64)
  images, cotangent, output, gradient = (
    jnp.asarray(oracle.nhwc(recorded[f"{shape}_{kind}{end}"]), jnp.float64)
    for end in ("", "_cot", f"_{padding}", f"_{padding}_grad")
  )
  warped, pullback = jax.vjp(jax.jit(lambda x: warp.warp(x, grid, padding=padding)), images)
  np.testing.assert_allclose(warped, output, atol=2e-7 * abs(output).max())
  np.testing.assert_allclose(pullback(cotangent)[0], gradient, atol=2e-7 * abs(gradient).max())


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.usefixtures("platform")
def test_warp_matches_the_reference_eager_compiled_and_mapped(padding):
  expected = oracle.warp(IMAGES, GRID, padding)

  def warp_all(images, grid):
    return warp.warp(images, grid, padding=padding)

  np.testing.assert_allclose(warp_all(IMAGES, GRID), expected, atol=1e-5)
  np.testing.assert_allclose(jax.jit(warp_all)(IMAGES, GRID), expected, atol=1e-5)
  mapped = jax.jit(jax.vmap(warp_all))(IMAGES[:, None], GRID[:, None])
  np.testing.assert_allclose(mapped[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.usefixtures("x64")
@pytest.mark.usefixtures("platform")
def test_warp_gradients_by_finite_differences(padding):
  # Away from pixel centres, where the interpolation has kinks in the grid's coordinates.
  pixels = RNG.integers(-2, 8, (2, 3, 3, 2)) + RNG.uniform(0.2, 0.8, (2, 3, 3, 2))
  grid = jnp.asarray(pixels / ((7 - 1) / 2, (5 - 1) / 2) - 1)
  images = jnp.asarray(IMAGES, jnp.float64)
  warp_all = jax.jit(lambda images, grid: warp.warp(images, grid, padding=padding))
  check_grads(warp_all, (images, grid), order=1, modes=["rev"])


@pytest.mark.usefixtures("platform")
def test_identity_and_mirror_grids():
  identity = jnp.broadcast_to(geometry.coordinate_grid(5, 7), (2, 5, 7, 2))
  np.testing.assert_allclose(warp.warp(IMAGES, identity), IMAGES, atol=1e-5)
  np.testing.assert_allclose(warp.warp(IMAGES, identity * jnp.array([-1, 1])), IMAGES[:, :, ::-1], atol=1e-5)


@pytest.mark.parametrize("far", [1.5, 1e6, np.inf])
@pytest.mark.usefixtures("platform")
def test_far_points_meet_the_padding(far):
  grid = jnp.array([[far, far], [-far, -far]], jnp.float32).reshape(1, 1, 2, 2)
  np.testing.assert_array_equal(warp.warp(IMAGES[:1], grid), np.zeros((1, 1, 2, 3)))
  corners = IMAGES[:1, [-1, 0], [-1, 0]][:, None]
  np.testing.assert_allclose(warp.warp(IMAGES[:1], grid, padding="border"), corners, rtol=1e-6)


@pytest.mark.usefixtures("platform")
def test_zeros_padding_fades_over_one_pixel():
  # Half a pixel outside a row of ones, and half a pixel inside it.
  grid = jnp.array([[-1.5, 0.0], [-0.5, 0.0]]).reshape(1, 1, 2, 2)
  np.testing.assert_allclose(warp.warp(jnp.ones((1, 1, 3, 1)), grid).ravel(), [0.5, 1.0], atol=1e-6)


def test_warping_enlarged_maps_equals_enlarging_them_first():
  maps, cotangent = RNG.standard_normal((2, 3, 4, 5)), RNG.standard_normal((2, 5, 7, 5))
  grid = 1.2 * RNG.uniform(-1, 1, (2, 5, 7, 2))

  def sample(maps):
    return warp.warp_enlarged(maps, jnp.asarray(grid, jnp.float32), height=9, width=11)

  results = {}
  for name in ("cpu", "tpu"):
    with targeting(name):
      warped, pullback = jax.vjp(sample, jnp.asarray(maps, jnp.float32))
      results[name] = warped, pullback(jnp.asarray(cotangent, jnp.float32))[0]
  chex.assert_trees_all_close(results["tpu"], results["cpu"], atol=1e-5)


@pytest.mark.usefixtures("platform")
def test_bfloat16_images_keep_their_dtype():
  images = jnp.asarray(IMAGES, jnp.bfloat16)
  warped = warp.warp(images, GRID)
  assert warped.dtype == jnp.bfloat16
  np.testing.assert_allclose(warped.astype(jnp.float32), oracle.warp(images, GRID), atol=0.02)


def test_drawn_projective_transforms_are_finite_differ_and_repeat():
  spatial = spatial_with(mode="projective", mirror_probability=0.5)
  key, other_key = jax.random.split(jax.random.key(0))
  compiled = jax.jit(lambda key: warp.sample_spatial_transform(key, 4, spatial))
  points = compiled(key)
  assert points.shape == (4, 25, 2)
  assert points.dtype == jnp.float32
  assert np.isfinite(points).all()
  assert len(np.unique(points[:, 0, 0])) == 4
  assert (compiled(other_key) != points).any()
  np.testing.assert_allclose(warp.sample_spatial_transform(key, 4, spatial), points, atol=1e-5)


def test_drawn_similarities_keep_their_ranges():
  spatial = spatial_with(control_jitter=0.0)
  points = np.asarray(draw(spatial, 2000), np.float64)
  shift = points[:, 12]  # where the lattice's middle goes
  direction = (points[:, 22] - shift) @ (1, 1j)  # where (1, 0) goes, as a complex number
  angle, scale = np.rad2deg(np.angle(direction)), np.abs(direction)
  for values, low, high in ((shift, -0.1, 0.1), (angle, -60.0, 60.0), (scale, 1 / 2.0, 1 / 0.7)):
    margin = 0.02 * (high - low)
    assert low - 1e-4 <= values.min() <= low + margin
    assert high - margin <= values.max() <= high + 1e-4


def test_control_jitter_keeps_its_range():
  spatial = spatial_with(mode="thin_plate", control_jitter=0.05)
  offsets = np.asarray(draw(spatial, 500)) - np.asarray(warp.control_lattice())
  assert 0.049 < abs(offsets).max() <= 0.05 + 1e-6


def test_mirror_is_drawn_for_each_image():
  spatial = spatial_with(mode="thin_plate", mirror_probability=0.25)
  points = draw(spatial, 2000)
  mirrored = np.asarray(points[:, 0, 0]) > 0  # the first lattice point is at x = -1
  assert 0.2 < mirrored.mean() < 0.3


def test_bad_input_is_named():
  with pytest.raises(ValueError, match=r"source_points must be \[B, 25, 2\].*\(2, 24, 2\)"):
    warp.thin_plate_grid(np.zeros((2, 24, 2), np.float32), 4, 4)
  with pytest.raises(ValueError, match="at least 1, got 4 and 0"):
    warp.thin_plate_grid(np.zeros((2, 25, 2), np.float32), 4, 0)
  with pytest.raises(ValueError, match="grid must be"):
    warp.warp(IMAGES, GRID[:1])
  with pytest.raises(TypeError, match=r"images must be .* uint8"):
    warp.warp(IMAGES.astype(np.uint8), GRID)
  with pytest.raises(ValueError, match=r'"zeros" or "border", got .reflect.'):
    warp.warp(IMAGES, GRID, padding="reflect")
  with pytest.raises(ValueError, match=r"spatial\.mode must be .* got .affine."):
    warp.sample_spatial_transform(jax.random.key(0), 2, spatial_with(mode="affine"))
  with pytest.raises(ValueError, match=r"points must be \[B, N, 2\]"):
    warp.mirror_points(np.zeros((25, 2), np.float32), np.zeros(25, bool))
