"""Binary CRINGE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.ops import token_stats
from xpo_jax.types import Aux

LOGITS = np.array([[[[2.0, 1.0, -1.0], [0.5, 0.0, 3.0]]], [[[0.0, 4.0, 1.0]] * 2]])
TOKENS = np.array([[[0, 1]], [[1, 0]]])
MASK = np.array([[[1, 1]], [[1, 0]]])


def record(o, label=((1,), (0,)), logits=LOGITS):
  return scored.from_logits(logits, TOKENS, MASK, stats=o.stats, desirable_BK=label)


def drawn(o, s, seed):
  return jax.jit(lambda s, key: o.prepare(s, (), key)[0].rows)(s, jax.random.key(seed))


def test_hand_computed_batch_and_denominator():
  o = objectives.cringe(alpha=0.5)
  out = scored.evaluate(o, record(o))
  nll = sum(
    np.log(np.exp(row).sum()) - row[token]
    for row, token in zip(LOGITS[0, 0], TOKENS[0, 0], strict=True)
  )
  contrast = np.log1p(np.exp(4.0 - 1.0))  # token 1 against the runner-up, token 2
  assert out.terms["likelihood"] == pytest.approx(nll / 3)  # three tokens in all
  assert out.terms["cringe"] == pytest.approx(0.5 * contrast / 3)
  assert out.metrics["logp_chosen"] == pytest.approx(-nll)


def test_single_contrast_token_needs_no_key():
  o = objectives.cringe(k=1)
  s = record(o)
  with_key = scored.evaluate(o, s, key=jax.random.key(1)).loss
  assert scored.evaluate(o, s).loss == with_key
  with pytest.raises(ValueError, match="cringe draws random numbers and key=None"):
    scored.evaluate(objectives.cringe(k=2), record(objectives.cringe(k=2)))


def test_contrast_tokens_are_drawn_by_their_softmax():
  o = objectives.cringe(k=2)
  rows = 3000
  logits = np.broadcast_to([[[[0.0, 1.0, 7.0, -3.0]]]], (rows, 1, 1, 4))
  one = np.full((rows, 1, 1), 2)  # contrast tokens: token 1, then token 0
  s = scored.from_logits(logits, one, one, stats=o.stats, desirable_BK=one[..., 0])
  second = np.asarray(drawn(o, s, 0)).mean()
  p = 1 / (1 + np.e)
  assert abs(second - p) < 4 * np.sqrt(p * (1 - p) / rows)


def test_draw_depends_on_row_and_position_not_on_the_layout():
  o = objectives.cringe(k=3)
  rng = np.random.default_rng(0)
  logits, tokens = rng.normal(size=(4, 1, 6, 8)), rng.integers(8, size=(4, 1, 6))
  s = scored.from_logits(logits, tokens, tokens >= 0, stats=o.stats)
  order = np.array([2, 0, 3])
  cut = jax.tree.map(lambda x: x[order], s)
  cut = cut.replace(extra={k: x[:, :, :4] for k, x in cut.extra.items()})
  whole, part = drawn(o, s, 2), drawn(o, cut, 2)
  np.testing.assert_array_equal(part, whole[order, :, :4])
  assert len(np.unique(whole)) == 3


def test_contrast_token_is_raised_unless_detached():
  def slope(o):
    def loss(logits):
      s = record(o, ((0,), (0,)), logits)
      return o.loss(s, Aux()).terms["cringe"].total

    return np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(LOGITS)))[1, 0, 0]

  push = 1 / (1 + np.exp(-(4.0 - 1.0)))
  live, fixed = slope(objectives.cringe()), slope(objectives.cringe(detach=True))
  np.testing.assert_allclose(live, [0, push, -push], rtol=1e-5)
  np.testing.assert_allclose(fixed, [0, push, 0], rtol=1e-5)


@pytest.mark.parametrize("gap", [1000.0, -1000.0])
def test_extreme_logits_stay_finite(gap):
  o = objectives.cringe()

  def loss(logits):
    return scored.evaluate(o, record(o, ((1,), (0,)), logits)).loss

  logits = jnp.zeros(LOGITS.shape).at[..., 1].set(gap)
  value, slope = jax.jit(jax.value_and_grad(loss))(logits)
  assert np.isfinite(value)
  assert np.isfinite(slope).all()


def test_hparams_out_of_range_are_refused():
  with pytest.raises(ValueError, match="cringe: alpha="):
    objectives.cringe(alpha=-1.0)
  with pytest.raises(ValueError, match="k=0 must be a whole number"):
    objectives.cringe(k=0)
  assert objectives.cringe(k=2).stats == {
    token_stats.LOGP,
    token_stats.contrast_tokens(2),
  }
