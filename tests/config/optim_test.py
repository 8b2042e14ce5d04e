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


def _newton_schulz(x):
  """Five steps of Jordan's quintic on a matrix's singular values, divided by its norm;
  its limits are about 0.7 and 1.2."""
  U, s, V = np.linalg.svd(x.astype(np.float64), full_matrices=False)
  s /= np.linalg.norm(s)
  for _ in range(5):
    s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
  return U @ np.diag(s) @ V


def test_muon_orthogonalises_the_momentum_of_each_layer_and_expert():
  axes = {
    "up": ("layers", "experts", "embed", "expert_mlp"),
    "query": ("layers", "embed", "heads", "head_dim"),
    "output": ("layers", "heads", "head_dim", "embed"),
  }
  shapes = {"up": (2, 2, 8, 12), "query": (3, 8, 2, 5), "output": (1, 2, 5, 8)}
  matrices = {"up": (8, 12), "query": (8, 10), "output": (10, 8)}
  rng = np.random.default_rng(0)
  grads = [
    {"lm": {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}}
    for _ in range(2)
  ]
  b1 = 0.8
  chain = optim.transform(Optimizer("muon", b1=b1, clip=None), axes)
  state = chain.init(grads[0])
  for grad in grads:
    got, state = chain.update(grad, state, grad)
  for name, shape in matrices.items():
    one, two = (grad["lm"][name].reshape(-1, *shape) for grad in grads)
    # Nesterov's momentum with the bias corrections of Dozat 2016.
    mean = (1 - b1) * (b1 * one + two)
    ahead = b1 * mean / (1 - b1**3) + (1 - b1) * two / (1 - b1**2)
    updates = got["lm"][name].reshape(-1, *shape)
    scale = 0.2 * np.sqrt(max(shape))  # Liu et al. 2025, equation 4
    for update, x in zip(updates, ahead, strict=True):
      np.testing.assert_allclose(update / scale, _newton_schulz(x), atol=1e-4)
      singular = np.linalg.svd(update / scale, compute_uv=False)
      assert 0.5 < singular.min() and singular.max() < 1.25


def test_muon_leaves_all_but_hidden_matrices_to_adamw():
  rng = np.random.default_rng(0)
  shapes = {"kernel": (2, 3, 4), "bias": (2, 4), "embedding": (5, 3)}
  grads = {"lm": {n: rng.normal(size=s) for n, s in shapes.items()}}
  grads["value"] = {"kernel_D": rng.normal(size=3)}
  grads = jax.tree.map(lambda x: x.astype(np.float32), grads)
  axes = AXES | {"embedding": ("vocab", "embed")}
  config = Optimizer("muon", b1=0.8, b2=0.9, eps=1e-6, clip=None, weight_decay=0.5)
  chain = optim.transform(config, axes)
  params = jax.tree.map(jnp.ones_like, grads)
  got, _ = chain.update(grads, chain.init(params), params)
  parts = [(got["lm"][n], grads["lm"][n]) for n in ("bias", "embedding")]
  parts.append((got["value"]["kernel_D"], grads["value"]["kernel_D"]))
  for (update, g), decay in zip(parts, (0.0, 0.5, 0.0), strict=True):
    ahead = 0.8 * 0.2 * g / (1 - 0.8**2) + g  # Nesterov's momentum after one step
    np.testing.assert_allclose(update, ahead / (np.abs(g) + 1e-6) + decay, rtol=1e-4)
  kernel = np.asarray(got["lm"]["kernel"] - 0.5) / (0.2 * np.sqrt(4))
  want = [_newton_schulz(g) for g in grads["lm"]["kernel"]]
  np.testing.assert_allclose(kernel, want, atol=1e-4)


def test_muon_keeps_one_moment_of_a_matrix_in_bfloat16_its_coefficients_exact():
  params = _params()
  chain = optim.transform(Optimizer("muon"), AXES, "bfloat16")
  state = chain.init(params)
  for n in range(2):
    update = jax.jit(
      lambda s, n: chain.update(params, s, params, key=jax.random.key(n))
    )
    _, state = update(state, n)
  arrays = jax.tree_util.tree_leaves_with_path(state)
  (kernel,) = (x for _, x in arrays if x.shape == (2, 3, 4))
  (coefficients,) = (x for path, x in arrays if "ns_coeffs" in str(path[-1]))
  assert kernel.dtype == jnp.bfloat16 and coefficients.dtype == jnp.float32
  np.testing.assert_allclose(coefficients, [3.4445, -4.7750, 2.0315], rtol=1e-6)


def test_muon_without_axes_is_refused():
  with pytest.raises(ValueError, match=r"kind is 'muon'.*no logical axes"):
    optim.transform(Optimizer("muon"))


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
