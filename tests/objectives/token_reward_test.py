"""Token-level reward models."""

import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives

VALUE = np.array([[[0.5, 1.0, -2.0]], [[3.0, 7.0, 7.0]]])
LABEL = np.array([[[0.0, 1.0, -0.3]], [[-1.0, 9.0, 9.0]]])
MASK = np.array([[[1, 1, 1]], [[1, 0, 0]]])


def record():
  return scored.from_token_logps(None, MASK, reward_head_BKT=VALUE, reward_BKT=LABEL)


def check():
  """AssertionError where an objective is not its mean over labelled tokens."""
  out = scored.evaluate(objectives.token_reward(), record())
  correct, incorrect = np.array([1.0]), np.array([-2.0, 3.0])
  labelled = [*np.log1p(np.exp(-correct)), *np.log1p(np.exp(incorrect))]
  np.testing.assert_allclose(out.loss, np.mean(labelled), rtol=1e-5)
  out = scored.evaluate(objectives.token_regression(), record())
  squares = (VALUE - LABEL)[MASK > 0] ** 2
  np.testing.assert_allclose(out.loss, squares.mean(), rtol=1e-5)


def test_oracle():
  check()


def test_accuracy_is_of_labelled_tokens():
  metrics = scored.evaluate(objectives.token_reward(), record()).metrics
  assert metrics["token_accuracy"] == pytest.approx(2 / 3)


def test_batch_without_labels_gives_zero():
  s = record()
  unlabelled = s.replace(reward_BKT=0 * s.reward_BKT)
  assert scored.evaluate(objectives.token_reward(), unlabelled).loss == 0


def test_record_of_sums_is_refused():
  s = record().replace(mask_BKT=None)
  with pytest.raises(ValueError, match=r"token_reward reads single tokens"):
    scored.evaluate(objectives.token_reward(), s)
