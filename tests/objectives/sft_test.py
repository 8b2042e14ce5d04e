"""Supervised fine-tuning."""

import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_uniform_policy_gives_log_of_vocabulary():
  mask_BKT = np.array([[[1, 1, 1]], [[1, 0, 0]]])
  s = scored.from_logits(np.zeros((2, 1, 3, 7)), np.ones((2, 1, 3), np.int32), mask_BKT)
  assert scored.evaluate(objectives.sft(), s).loss == pytest.approx(np.log(7))


def test_mean_is_over_tokens_not_over_rows():
  s = scored.from_sequence_logps([[-6.0], [-1.0]], [[3], [1]])
  assert scored.evaluate(objectives.sft(), s).loss == pytest.approx((6 + 1) / (3 + 1))


def test_reads_column_0_of_a_pair():
  s = toy.scored(K=2)
  logp, mask = (np.asarray(x, np.float64)[:, 0] for x in (s.logp_BKT, s.mask_BKT))
  out = scored.evaluate(objectives.sft(), s)
  assert out.loss == pytest.approx(-(logp * mask).sum() / mask.sum(), rel=1e-6)
  assert out.metrics["logp_chosen"] == pytest.approx((logp * mask).sum(-1).mean())
