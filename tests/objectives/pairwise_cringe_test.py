"""Pairwise CRINGE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 2, 3, 5))
TOKENS = RNG.integers(5, size=(2, 2, 3))
MASK = np.arange(3) < np.array([[3, 2], [1, 3]])[..., None]
HPARAMS = {"alpha": 0.3, "margin": -1.0, "temperature": 2.0}


def losses(o, logits):
  s = scored.from_logits(logits, TOKENS, MASK, stats=o.stats)
  return scored.evaluate(o, s).per_example_B


def oracle(logits, gate=None):
  logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  own = np.take_along_axis(logits, TOKENS[..., None], -1)
  seq = (np.take_along_axis(logp, TOKENS[..., None], -1)[..., 0] * MASK).sum(-1)
  others = logits.copy()
  np.put_along_axis(others, TOKENS[..., None], -np.inf, -1)
  contrast = (np.log1p(np.exp(own[..., 0] - others.max(-1))) * MASK).sum(-1)[:, 1]
  gap = seq[:, 0] - seq[:, 1]
  gate = 1 / (1 + np.exp(-(-1.0 - gap) / 2.0)) if gate is None else gate
  return gate * (0.3 * contrast - seq[:, 0]), gate


def test_oracle_and_both_gradients_of_the_gate():
  along = RNG.normal(size=LOGITS.shape)
  expected, gate = oracle(LOGITS)
  step = 1e-5
  for detach, fixed_gate in ((False, None), (True, gate)):
    o = objectives.pairwise_cringe(**HPARAMS, detach_gate=detach)
    actual, slope = jax.jvp(
      lambda logits, o=o: losses(o, logits), (jnp.asarray(LOGITS),), (along,)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    up, down = (oracle(LOGITS + s * along, fixed_gate)[0] for s in (step, -step))
    np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-4)


def test_gate_closes_as_the_margin_grows():
  o = objectives.pairwise_cringe(temperature=2.0)
  tokens, mask = np.array([[[0], [1]]]), np.ones((1, 2, 1))

  @jax.jit
  def force(gap):
    def loss(logits):
      s = scored.from_logits(logits, tokens, mask, stats=o.stats)
      return scored.evaluate(o, s).loss

    # The chosen token stays at 1/3, the rejected one falls `gap` behind its rival.
    logits = jnp.zeros((1, 2, 1, 3)).at[0, 1, 0, 0].set(gap)
    return jnp.linalg.norm(jax.jit(jax.grad(loss))(logits)[0, 0, 0])

  # sigma(-gap / temperature), before a likelihood that pulls as it did
  assert force(30.0) / force(20.0) == pytest.approx(np.exp(-10 / 2.0), rel=1e-3)


@pytest.mark.parametrize("hparams", [{"alpha": -1.0}, {"temperature": 0.0}])
def test_hparam_out_of_range_is_refused(hparams):
  (hparam,) = hparams
  with pytest.raises(ValueError, match=f"pairwise_cringe: {hparam}="):
    objectives.build("pairwise_cringe", hparams)
