"""GSPO-token."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.compiled import scored
from tests.objectives import group_oracle as oracle
from xpo_jax import objectives
from xpo_jax.types import Aux


def check():
  s = oracle.record()
  a_BKT = np.random.default_rng(0).normal(size=s.mask_BKT.shape)
  o = objectives.gspo_token(0.05, 0.1, beta=0.5)
  actual = o.loss(s, Aux(jnp.asarray(a_BKT, jnp.float32))).terms["gspo_token"].value
  fields = oracle.completions(s, "logp_BKT", "old_logp_BKT", "ref_logp_BKT")
  present = np.asarray(s.present_BK)
  prompts = []
  for b, group in enumerate(fields):
    each = []
    for k, (logp, old, ref) in zip(np.flatnonzero(present[b]), group, strict=True):
      ratio = np.exp((logp - old).mean())  # at every token
      a = a_BKT[b, k, : len(logp)]
      token = -np.minimum(ratio * a, np.clip(ratio, 0.95, 1.1) * a)
      each.append((token + 0.5 * oracle.k3(logp, ref)).mean())
    prompts.append(np.mean(each))
  np.testing.assert_allclose(actual, np.mean(prompts), rtol=1e-5)
  # Unclipped, a token's gradient is -A_t s_i / |y|, a mean over K and B.
  o = objectives.gspo_token(1.0, 1e3)

  def loss(logp_BKT):
    aux = Aux(jnp.asarray(a_BKT, jnp.float32))
    return o.loss(s.replace(logp_BKT=logp_BKT), aux).terms["gspo_token"].value

  gradient = np.asarray(jax.jit(jax.grad(loss))(s.logp_BKT))
  for b, group in enumerate(fields):
    for k, (logp, old, _) in zip(np.flatnonzero(present[b]), group, strict=True):
      n = len(logp)
      each = -a_BKT[b, k, :n] * np.exp((logp - old).mean()) / n
      expected = each / len(group) / len(fields)
      np.testing.assert_allclose(gradient[b, k, :n], expected, rtol=1e-4, atol=1e-8)


def test_oracle_with_an_advantage_per_token():
  check()


def test_a_token_without_advantage_gets_no_gradient():
  """GSPO cannot do that: its ratio moves all tokens together."""
  s = oracle.record()
  a_BKT = jnp.ones_like(s.mask_BKT).at[:, :, 0].set(0)
  o = objectives.gspo_token(1.0, 1e3)

  def loss(logp_BKT):
    return o.loss(s.replace(logp_BKT=logp_BKT), Aux(a_BKT)).terms["gspo_token"].value

  gradient = jax.jit(jax.grad(loss))(s.logp_BKT)
  assert not gradient[:, :, 0].any()
  assert gradient[:, :, 1].any()


def test_clip_is_of_completions():
  logp = np.log([[[4.0, 0.25], [4.0, 0.25]]])  # ratios whose geometric mean is 1
  s = scored.from_token_logps(
    logp, np.ones((1, 2, 2)), old_logp_BKT=0 * logp, reward_BK=[[1.0, 0.0]]
  )
  assert scored.evaluate(objectives.gspo_token(), s).metrics["clip_fraction"] == 0
