"""TDPO2 against DPO and an oracle on logits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_without_alpha_it_is_dpo_in_value_and_gradient():
  s = toy.scored(K=2)

  def loss(o):
    def of(logp_BKT):
      return scored.evaluate(o, s.replace(logp_BKT=logp_BKT)).loss

    return jax.jit(jax.value_and_grad(of))(s.logp_BKT)

  tdpo2, dpo = objectives.tdpo2(beta=0.3, alpha=0.0), objectives.dpo(beta=0.3)
  chex.assert_trees_all_equal(loss(tdpo2), loss(dpo))


def test_oracle_from_logits():
  rng = np.random.default_rng(0)
  policy, ref = rng.normal(size=(2, 3, 2, 4, 6))
  tokens = rng.integers(6, size=(3, 2, 4))
  mask = np.arange(4) < rng.integers(1, 5, size=(3, 2, 1))
  o = objectives.tdpo2(beta=0.7, alpha=0.4)
  s = scored.from_logits(policy, tokens, mask, ref, stats=o.stats)
  p, q = special.softmax(policy, -1), special.softmax(ref, -1)
  kl = (mask * stats.entropy(q, p, axis=-1)).sum(-1)
  picked = [np.take_along_axis(x, tokens[..., None], -1)[..., 0] for x in (p, q)]
  ratio = (mask * np.log(picked[0] / picked[1])).sum(-1)
  z = 0.7 * (ratio[:, 0] - ratio[:, 1] - 0.4 * (kl[:, 1] - kl[:, 0]))
  actual = scored.evaluate(o, s).per_example_B
  np.testing.assert_allclose(actual, -np.log(special.expit(z)), rtol=1e-5)


def test_extreme_kl_stays_finite():
  s = toy.scored(K=2)
  s = s.replace(ref_kl_BKT=jnp.full_like(s.ref_kl_BKT, 1000.0).at[0].set(0))
  for o in (objectives.tdpo1(), objectives.tdpo2()):

    def loss(kl_BKT, o=o):
      return scored.evaluate(o, s.replace(ref_kl_BKT=kl_BKT)).loss

    chex.assert_tree_all_finite(jax.jit(jax.value_and_grad(loss))(s.ref_kl_BKT))
