"""Noise schedules against the original's numbers, their own derivative and extended precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sedd_jax.diffusion import Geometric, LogLinear

NOISES = [LogLinear(), LogLinear(0.1), Geometric(), Geometric(1e-3, 1.0)]
TIMES = np.concatenate(
  [np.linspace(0.0, 1.0, 101), np.logspace(-6, -2, 9), 1 - np.logspace(-6, -2)]
)


def golden_schedules(arrays):
  """(noise, total, rate) of every schedule in noise.npz, its parameters read from the file."""
  for name in sorted(k.removesuffix("_total") for k in arrays if k.endswith("_total")):
    if name.startswith("loglinear"):
      noise = LogLinear(float(arrays[name + "_eps"]))
    else:
      noise = Geometric(float(arrays[name + "_sigma_min"]), float(arrays[name + "_sigma_max"]))
    yield noise, arrays[name + "_total"], arrays[name + "_rate"]


def extended_total(noise, t):
  """The definition in extended precision."""
  t = np.asarray(t, np.longdouble)
  if isinstance(noise, LogLinear):
    return -np.log1p(-(1 - np.longdouble(noise.eps)) * t)
  return np.longdouble(noise.sigma_min) ** (1 - t) * np.longdouble(noise.sigma_max) ** t


def test_schedules_match_the_original_in_float64(golden, x64):
  arrays = golden("noise.npz")
  schedules = list(golden_schedules(arrays))
  assert {type(noise) for noise, _, _ in schedules} == {LogLinear, Geometric}
  for noise, total, rate in schedules:
    np.testing.assert_allclose(noise.total(arrays["t"]), total, rtol=1e-9)
    np.testing.assert_allclose(noise.rate(arrays["t"]), rate, rtol=1e-9)


def test_schedules_match_the_original_in_float32(golden):
  arrays = golden("noise.npz")
  for noise, total, rate in golden_schedules(arrays):
    ours = noise.total(arrays["t"].astype(np.float32))
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, total, rtol=2e-6)
    np.testing.assert_allclose(noise.rate(arrays["t"].astype(np.float32)), rate, rtol=2e-6)


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_rate_is_the_derivative_of_total(noise, x64):
  derivative = jax.vmap(jax.grad(noise.total))(TIMES)
  np.testing.assert_allclose(noise.rate(TIMES), derivative, rtol=1e-10)


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_time_inverts_total(noise, x64):
  np.testing.assert_allclose(noise.time(noise.total(TIMES)), TIMES, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_time_inverts_total_in_float32(noise):
  t = TIMES.astype(np.float32)
  np.testing.assert_allclose(noise.time(noise.total(t)), t, atol=2e-7)


def test_log_linear_masks_a_share_linear_in_time(x64):
  noise = LogLinear(1e-3)
  np.testing.assert_allclose(-np.expm1(-noise.total(TIMES)), 0.999 * TIMES, rtol=1e-12)
  np.testing.assert_allclose(np.exp(-noise.total(1.0)), 1e-3, rtol=1e-12)


def test_geometric_runs_from_sigma_min_to_sigma_max(x64):
  noise = Geometric(1e-4, 20.0)
  np.testing.assert_allclose(noise.total(jnp.array([0.0, 0.5, 1.0])), [1e-4, 2e-3**0.5, 20.0])


@pytest.mark.parametrize("noise", [*NOISES, LogLinear(1e-5)], ids=str)
def test_float32_is_accurate_at_both_ends(noise):
  # Where 1 - (1 - eps) t is formed from a rounded product, float32 loses four digits near t = 1.
  near = np.float32(2.0) ** -np.arange(1, 25, dtype=np.float32)
  t = np.concatenate([near, 1 - near, [np.float32(1.0)]])
  assert t.dtype == np.float32
  np.testing.assert_allclose(noise.total(t), extended_total(noise, t).astype(np.float64), rtol=2e-6)
  if isinstance(noise, LogLinear):
    eps, exact = np.longdouble(noise.eps), t.astype(np.longdouble)
    rate = (1 - eps) / (1 - (1 - eps) * exact)
    np.testing.assert_allclose(noise.rate(t), rate.astype(np.float64), rtol=2e-6)


@pytest.mark.parametrize("eps", [0.0, 1.0, -1e-3, 2.0, float("nan")])
def test_log_linear_refuses_bad_eps(eps):
  with pytest.raises(ValueError, match=r"eps="):
    LogLinear(eps)


@pytest.mark.parametrize(
  ("sigma_min", "sigma_max"),
  [(0.0, 20.0), (-1.0, 20.0), (20.0, 1e-4), (1.0, 1.0), (1e-4, float("inf")), (float("nan"), 1.0)],
)
def test_geometric_refuses_bad_sigmas(sigma_min, sigma_max):
  with pytest.raises(ValueError, match=r"sigma_min=.*sigma_max="):
    Geometric(sigma_min, sigma_max)


@pytest.mark.parametrize("noise", [LogLinear(), Geometric()], ids=str)
@pytest.mark.parametrize("method", ["total", "rate", "time"])
def test_bfloat16_input_gives_float32(noise, method):
  assert getattr(noise, method)(jnp.full((3,), 0.5, jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("noise", [LogLinear(), Geometric()], ids=str)
def test_plain_numbers_and_any_shape_are_welcome(noise):
  assert noise.total(0.5).shape == ()
  assert noise.rate(np.full((2, 3), 0.5)).shape == (2, 3)
  assert noise.time(1).dtype == jnp.float32
