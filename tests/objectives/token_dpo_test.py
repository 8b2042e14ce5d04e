"""DPO as a sum of token credit."""

import jax
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def check():
  s = toy.scored(K=2)
  gap = np.asarray(s.logp_BKT, np.float64) - np.asarray(s.ref_logp_BKT, np.float64)
  credit = 0.3 * np.where(np.asarray(s.mask_BKT) > 0, gap, 0)
  margin = (credit[:, 0].sum(-1) - credit[:, 1].sum(-1)).astype(np.float64)
  actual = scored.evaluate(objectives.token_dpo(beta=0.3), s)
  np.testing.assert_allclose(actual.per_example_B, np.log1p(np.exp(-margin)), rtol=1e-5)


def test_loss_is_logistic_in_the_sum_of_credit():
  check()


def test_it_is_dpo():
  s = toy.scored(K=2)
  losses = [
    jax.value_and_grad(lambda x, o=o: scored.evaluate(o, s.replace(logp_BKT=x)).loss)(
      s.logp_BKT
    )
    for o in (objectives.token_dpo(beta=0.3), objectives.dpo(beta=0.3))
  ]
  for token, whole in zip(*losses, strict=True):
    np.testing.assert_allclose(token, whole, atol=1e-6)


def test_sums_without_tokens_are_refused():
  s = scored.from_sequence_logps([[-1.0, -2.0]], [[3, 3]], [[-1.0, -1.0]])
  with pytest.raises(ValueError, match="token_dpo reads single tokens"):
    scored.evaluate(objectives.token_dpo(), s)
