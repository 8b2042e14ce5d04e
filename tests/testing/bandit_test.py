"""The exactly solvable bandit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xpo_jax import objectives, scored
from xpo_jax.testing import bandit

TASK = bandit.make(jax.random.key(0))


def test_reference_has_no_gain_no_kl_and_accuracy_one_half():
  measures = bandit.measure(TASK, jnp.zeros(16))
  np.testing.assert_allclose(
    [measures.reward, measures.kl, measures.length], 0, atol=1e-6
  )
  assert measures.accuracy == 0.5


def test_measures_are_expectations():
  theta_D = jnp.arange(16.0) / 16
  p = np.exp(np.asarray(bandit.logp(TASK, theta_D), np.float64))
  q = np.exp(np.asarray(TASK.ref_logp_XY, np.float64))
  measures = bandit.measure(TASK, theta_D)
  reward = ((p - q) * np.asarray(TASK.reward_XY)).sum(1).mean()
  np.testing.assert_allclose(measures.reward, reward, rtol=1e-4)
  np.testing.assert_allclose(measures.kl, (p * np.log(p / q)).sum(1).mean(), rtol=1e-4)
  entropy = -(p * np.log(p)).sum(1).mean()
  np.testing.assert_allclose(measures.entropy, entropy, rtol=1e-4)


def test_gradient_descent_on_one_completion_has_its_closed_form():
  """Softmax logits of two completions: each update adds rate (1 - p) to their gap."""
  start = jnp.zeros(2)

  def view(theta_Y, _):
    return scored.from_sequence_logps(jax.nn.log_softmax(theta_Y)[:1, None], [[1]])

  path_PY = bandit.descent(
    objectives.nll(reduction="sequence_sum"),
    view,
    start,
    jax.random.key(0),
    optax.sgd(0.5),
    steps=6,
    points=3,
  )
  gap, expected = 0.0, []
  for _ in range(6):
    gap += 2 * 0.5 * (1 - 1 / (1 + np.exp(-gap)))
    expected.append(gap)
  np.testing.assert_allclose(path_PY[:, 0] - path_PY[:, 1], expected[1::2], rtol=1e-5)


def test_descent_refuses_points_that_do_not_divide_its_steps():
  with pytest.raises(ValueError, match=r"7.*multiple of points, 3"):
    bandit.descent(
      objectives.nll(),
      None,
      None,
      jax.random.key(0),
      optax.sgd(0.5),
      steps=7,
      points=3,
    )


def test_labels_follow_reward_flips_and_length():
  def fraction(x_XY, **how):
    pairs = bandit.draw(TASK, 4000, jax.random.key(1), **how)
    both = np.asarray(x_XY)[np.asarray(pairs.prompt_B)[:, None], pairs.completion_B2]
    untied = both[:, 0] != both[:, 1]
    return (both[:, 0] > both[:, 1])[untied].mean()

  assert fraction(TASK.reward_XY, temperature=1e-3) > 0.99
  np.testing.assert_allclose(
    fraction(TASK.reward_XY, temperature=1e-3, flipped=0.3), 0.7, atol=0.03
  )
  assert fraction(TASK.length_XY, temperature=1e6, length_bias=5.0) > 0.99
  np.testing.assert_allclose(fraction(TASK.length_XY), 0.5, atol=0.05)


def test_dpo_learns_the_reward_and_flipped_labels_its_opposite():
  pairs = bandit.draw(TASK, 500, jax.random.key(2), prompts=32)
  flipped = pairs._replace(completion_B2=pairs.completion_B2[:, ::-1])
  dpo = objectives.dpo(beta=1.0)
  fit = jax.jit(lambda pairs: bandit.fit(dpo, TASK, pairs, jax.random.key(0)))
  clean = bandit.measure(TASK, fit(pairs), first=32)
  opposite = bandit.measure(TASK, fit(flipped), first=32)
  assert clean.accuracy > 0.8 > 0.2 > opposite.accuracy
  assert clean.reward > 0.3 > -0.3 > opposite.reward
