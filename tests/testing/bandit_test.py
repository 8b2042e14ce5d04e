"""The exact bandit."""

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax import objectives
from xpo_jax.testing import bandit

TASK = bandit.make(jax.random.key(0))


def test_the_reference_has_no_gain_no_kl_and_chance_accuracy():
  found = bandit.measure(TASK, jnp.zeros(16))
  np.testing.assert_allclose([found.reward, found.kl, found.length], 0, atol=1e-6)
  assert found.accuracy == 0.5


def test_measures_are_expectations():
  theta_D = jnp.arange(16.0) / 16
  p = np.exp(np.asarray(bandit.logp(TASK, theta_D), np.float64))
  q = np.exp(np.asarray(TASK.ref_logp_XY, np.float64))
  found = bandit.measure(TASK, theta_D)
  reward = ((p - q) * np.asarray(TASK.reward_XY)).sum(1).mean()
  np.testing.assert_allclose(found.reward, reward, rtol=1e-4)
  np.testing.assert_allclose(found.kl, (p * np.log(p / q)).sum(1).mean(), rtol=1e-4)


def test_labels_follow_reward_flips_and_length():
  def share(x_XY, **how):
    pairs = bandit.draw(TASK, 4000, jax.random.key(1), **how)
    both = np.asarray(x_XY)[np.asarray(pairs.prompt_B)[:, None], pairs.answer_B2]
    untied = both[:, 0] != both[:, 1]
    return (both[:, 0] > both[:, 1])[untied].mean()

  assert share(TASK.reward_XY, temperature=1e-3) > 0.99
  np.testing.assert_allclose(
    share(TASK.reward_XY, temperature=1e-3, flipped=0.3), 0.7, atol=0.03
  )
  assert share(TASK.length_XY, temperature=1e6, length_bias=5.0) > 0.99
  np.testing.assert_allclose(share(TASK.length_XY), 0.5, atol=0.05)


def test_dpo_learns_the_reward_and_flipped_labels_its_opposite():
  pairs = bandit.draw(TASK, 500, jax.random.key(2), prompts=32)
  turned = pairs._replace(answer_B2=pairs.answer_B2[:, ::-1])
  dpo = objectives.dpo(beta=1.0)
  fit = jax.jit(lambda pairs: bandit.fit(dpo, TASK, pairs, jax.random.key(0)))
  right = bandit.measure(TASK, fit(pairs), first=32)
  wrong = bandit.measure(TASK, fit(turned), first=32)
  assert right.accuracy > 0.8 > 0.2 > wrong.accuracy
  assert right.reward > 0.3 > -0.3 > wrong.reward
