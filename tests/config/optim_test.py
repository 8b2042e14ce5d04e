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
