"""RL beside the likelihood of pretraining data: limits of its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax.studies.exact import bandits, pretraining

NLL = {"objective": "nll", "hparams": {"reduction": "sequence_sum"}}

_worlds = jax.jit(pretraining.worlds)


def _mix(gamma, beta, iterations=100):
  return pretraining.mix(
    0,
    objective="reinforce",
    hparams={"beta": beta},
    likelihood=NLL,
    gamma=gamma,
    iterations=iterations,
  )


def test_heavy_pretraining_data_keep_the_policy_where_they_look():
  free, held = _mix(0.0, 0.02), _mix(300.0, 0.02)
  assert held["forgotten"] < free["forgotten"] / 20
  assert free["reward"] > held["reward"]


def test_forgetting_is_the_divergence_from_the_reference():
  _, task = _worlds(jax.random.key(0))
  zero_D = jnp.zeros(bandits.FEATURES)
  assert pretraining.forgotten(task, zero_D) == pytest.approx(0, abs=1e-6)
  theta_D = np.random.default_rng(0).normal(size=bandits.FEATURES)
  ref_XY = np.asarray(task.ref_logp_XY, np.float64)[pretraining.SEEN :]
  logit_XY = ref_XY + np.asarray(task.feature_XYD)[pretraining.SEEN :] @ theta_D
  logp_XY = logit_XY - np.log(np.exp(logit_XY).sum(1, keepdims=True))
  expected = (np.exp(ref_XY) * (ref_XY - logp_XY)).sum(1).mean()
  found = pretraining.forgotten(task, jnp.asarray(theta_D))
  assert found == pytest.approx(expected, rel=1e-3)


def test_features_of_the_two_tasks_have_opposite_scales():
  rl, pretrained = _worlds(jax.random.key(1))
  low, high = pretraining.SCALES
  for task, first, last in ((rl, low, high), (pretrained, high, low)):
    spread_D = task.feature_XYD.std((0, 1))
    assert spread_D[0] == pytest.approx(first, rel=0.2)
    assert spread_D[-1] == pytest.approx(last, rel=0.2)
