"""NPO."""

import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.types import AuxLoss


def record(ratio, desirable):
  logp = np.asarray(ratio, float)[:, None]
  return scored.from_sequence_logps(
    logp, np.ones_like(logp), 0 * logp, desirable_BK=np.asarray(desirable)[:, None]
  )


def test_hand_computed_rows_and_desirable_ones_take_no_part():
  out = scored.evaluate(objectives.npo(beta=0.5), record([3.0, 9.0, -2.0], [0, 1, 0]))
  rows = [2 / 0.5 * np.log1p(np.exp(0.5 * ratio)) for ratio in (3.0, -2.0)]
  assert out.loss == pytest.approx(np.mean(rows))
  assert out.metrics["reward_rejected"] == pytest.approx(0.5 * (3 - 2) / 2)
  assert out.metrics["logp_rejected"] == pytest.approx((3 - 2) / 2)


def test_batch_without_undesirable_rows_gives_0():
  assert scored.evaluate(objectives.npo(), record([3.0], [1])).loss == 0


def test_retain_set_is_a_separate_aux_loss():
  forget, retain = record([3.0], [0]), record([-1.0, -3.0], [1, 1])
  parts = [
    AuxLoss(0.5, objectives.npo(beta=1.0), "forget"),
    AuxLoss(2.0, objectives.sft(), "retain"),
  ]
  out = scored.evaluate_parts(parts, {"forget": forget, "retain": retain})
  expected = 0.5 * 2 * np.log1p(np.exp(3.0)) + 2.0 * (1 + 3) / 2
  assert out.loss == pytest.approx(expected)
