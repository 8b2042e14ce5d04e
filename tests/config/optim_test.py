"""Optimisers against their papers' arithmetic, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax.config import optim
from xpo_jax.config.optim import Optimizer

AXES = {"kernel": ("layers", "embed", "mlp"), "bias": ("layers", "mlp")}


def _params():
  rng = np.random.default_rng(0)
  shapes = {"kernel": (2, 3, 4), "bias": (2, 4)}
  lm = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
  return {"lm": lm, "value": {"kernel_D": rng.normal(size=3).astype(np.float32)}}


def _updates(config: Optimizer, grads: list, params):
  chain = optim.transform(config, AXES)
  held, out = chain.init(params), []
  for grad in grads:
    update, held = chain.update(grad, held, params)
    out.append(update)
  return out


def _scaled(tree, factor):
  return jax.tree.map(lambda x: factor * x, tree)


def test_adamw_equals_the_paper():
  params = _params()
  grads = [_scaled(params, f) for f in (1.0, -0.5, 3.0)]
  config = Optimizer(b1=0.8, b2=0.9, eps=1e-3, clip=None)
  got = _updates(config, grads, params)[-1]["lm"]["kernel"]
  m = v = 0.0
  for g in (grad["lm"]["kernel"] for grad in grads):
    m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
  want = (m / (1 - 0.8**3)) / (np.sqrt(v / (1 - 0.9**3)) + 1e-3)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_rmsprop_adds_eps_outside_the_root():
  params = _params()
  grads = [_scaled(params, f) for f in (1.0, -0.5)]
  config = Optimizer(kind="rmsprop", b2=0.9, eps=1e-2, clip=None)
  got = _updates(config, grads, params)[-1]["lm"]["bias"]
  v = 0.0
  for g in (grad["lm"]["bias"] for grad in grads):
    v = 0.9 * v + 0.1 * g**2
  np.testing.assert_allclose(got, g / (np.sqrt(v) + 1e-2), rtol=1e-5)


def test_adafactor_steps_are_relative_to_the_parameter():
  params = _params()
  config = Optimizer(kind="adafactor", clip=None)
  (got,) = _updates(config, [params], params)
  (ten,) = _updates(config, [params], _scaled(params, 10.0))
  np.testing.assert_allclose(ten["lm"]["kernel"], 10 * got["lm"]["kernel"], rtol=1e-5)


def test_lion_equals_the_paper():
  params = _params()
  grads = [_scaled(params, f) for f in (1.0, -3.0)]
  config = Optimizer(kind="lion", b1=0.9, b2=0.5, clip=None)
  got = [update["lm"]["kernel"] for update in _updates(config, grads, params)]
  m = 0.0
  for update, g in zip(got, (grad["lm"]["kernel"] for grad in grads), strict=True):
    np.testing.assert_array_equal(update, np.sign(0.9 * m + 0.1 * g))
    m = 0.5 * m + 0.5 * g


def test_rounding_to_bfloat16_keeps_the_mean_and_moves_one_unit_at_most():
  # 1 + 1/128 is the next bfloat16 after 1; a quarter of the way is up in a quarter.
  x = jnp.float32(1 + 0.25 / 128)
  many = jnp.full(40_000, x)
  got = optim.rounded(jax.random.key(0), many, many.astype(jnp.bfloat16))
  assert got.dtype == jnp.bfloat16
  got = np.asarray(got, np.float32)
  assert set(got.tolist()) == {1.0, 1 + 1 / 128}
  error = 4 * np.sqrt(0.25 * 0.75 / many.size) / 128  # four standard deviations
  assert abs(got.mean() - float(x)) < error


@pytest.mark.nonfinite
def test_rounding_leaves_what_needs_none():
  exact = jnp.array([0.0, -1.5, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
  like = {"a": exact.astype(jnp.bfloat16), "b": exact}
  got = optim.rounded(jax.random.key(1), {"a": exact, "b": exact}, like)
  for x in (np.asarray(got["a"], np.float32), got["b"]):
    np.testing.assert_array_equal(x, exact)


def test_moments_in_bfloat16_follow_those_in_float32():
  params, rng = _params(), np.random.default_rng(1)
  config = Optimizer(b1=0.9, b2=0.999, clip=None)
  wide, narrow = (optim.transform(config, AXES, m) for m in ("float32", "bfloat16"))
  a, b = wide.init(params), narrow.init(params)
  update = jax.jit(lambda g, s, key: narrow.update(g, s, params, key=key))
  exact = jax.jit(lambda g, s: wide.update(g, s, params))
  for n in range(300):
    grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), params)
    _, a = exact(grads, a)
    _, b = update(grads, b, jax.random.key(n))
  (a,), (b,) = a, b
  assert {x.dtype for x in jax.tree.leaves((b.mu, b.nu))} == {jnp.dtype("bfloat16")}
  # To the nearest they would stop where a step's change is half a unit, 1 / 512.
  for x, y in zip(*map(jax.tree.leaves, (a.nu, b.nu)), strict=True):
    np.testing.assert_allclose(np.asarray(y, np.float32).mean(), x.mean(), rtol=0.05)


def test_weight_decay_touches_matrices_only():
  params = _params()
  still = _scaled(params, 0.0)
  (got,) = _updates(Optimizer(weight_decay=0.5, clip=None), [still], params)
  np.testing.assert_allclose(got["lm"]["kernel"], 0.5 * params["lm"]["kernel"])
  assert not got["lm"]["bias"].any() and not got["value"]["kernel_D"].any()


def test_weight_decay_without_axes_is_refused():
  with pytest.raises(ValueError, match=r"weight_decay is 0\.5.*no logical axes"):
    optim.transform(Optimizer(weight_decay=0.5))


def test_gradient_longer_than_clip_is_cut_to_it():
  params = _params()
  config = Optimizer(kind="rmsprop", b2=0.0, eps=1e6, clip=0.1)
  (got,) = _updates(config, [params], params)
  # With a huge eps, RMSprop divides by eps, and the clipped norm shows.
  flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(got)])
  np.testing.assert_allclose(1e6 * np.linalg.norm(flat), 0.1, rtol=1e-3)


@pytest.mark.parametrize(
  ("kind", "step", "share"),
  [
    ("constant", 0, 1 / 4),  # warm-up of 3: 1/4, 2/4, 3/4, then the peak
    ("constant", 2, 3 / 4),
    ("constant", 9, 1.0),
    ("linear", 3, 1.0),
    ("linear", 6, 0.1 + 0.9 / 2),
    ("linear", 9, 0.1),
    ("cosine", 3, 1.0),
    ("cosine", 6, 0.1 + 0.9 / 2),
    ("cosine", 5, 0.1 + 0.9 * (1 + np.cos(np.pi / 3)) / 2),
    ("cosine", 9, 0.1),
  ],
)
def test_schedule_climbs_then_decays_to_the_floor(kind, step, share):
  config = Optimizer(schedule=kind, warmup_steps=3, floor=0.1)
  got = optim.schedule(config, 10, jnp.int32(step))
  np.testing.assert_allclose(got, share, rtol=1e-6)


def test_schedule_of_a_single_step_is_the_peak():
  assert float(optim.schedule(Optimizer(schedule="linear"), 1, jnp.int32(0))) == 1.0


@pytest.mark.parametrize(
  ("field", "value", "says"),
  [
    ("kind", "adamm", "did you mean 'adamw'"),
    ("schedule", "cosin", "did you mean 'cosine'"),
    ("learning_rate", 0.0, "must be > 0"),
    ("warmup_steps", -1, "must be >= 0"),
    ("clip", -1.0, "None for no clipping"),
    ("ema", 1.0, r"in \(0, 1\)"),
  ],
)
def test_bad_value_is_refused_by_field(field, value, says):
  with pytest.raises(ValueError, match=f"Optimizer.{field}.*{says}"):
    Optimizer(**{field: value})
