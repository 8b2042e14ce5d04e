"""The retain term of NPO + KL."""

import numpy as np
import pytest
from scipy import special, stats

from tests.compiled import scored
from xpo_jax import objectives


def test_oracle_over_two_texts_of_different_length():
  rng = np.random.default_rng(0)
  policy, ref = rng.normal(size=(2, 2, 1, 3, 5))
  mask = np.array([[[1, 1, 1]], [[1, 0, 0]]])
  o = objectives.retain_kl()
  s = scored.from_logits(policy, 0 * mask, mask, ref, stats=o.stats)
  p, q = special.softmax(policy, -1), special.softmax(ref, -1)
  kl = stats.entropy(q, p, axis=-1)
  out = scored.evaluate(o, s)
  assert out.loss == pytest.approx((kl * mask).sum() / 4, rel=1e-5)
  assert out.metrics["seq_kl"] == pytest.approx((kl * mask).sum() / 2, rel=1e-5)
