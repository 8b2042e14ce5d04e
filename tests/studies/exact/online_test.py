"""Learning from samples on the bandit."""

import numpy as np

from xpo_jax.studies.exact import bandits, online


def test_rloo_climbs_and_stays_below_the_optimum_of_its_kl():
  found = online.train(
    0,
    objective="rloo",
    hparams={"beta": None},
    iterations=120,
    learning_rate=0.05,
  )
  assert len(found["step"]) == online.POINTS and found["step"][-1] == 120
  reward, kl = np.asarray(found["reward"]), np.asarray(found["kl"])
  assert 0 < reward[0] < reward[-1]
  best = bandits.optimum(0, kl=float(kl[-1]), tabular=True)
  assert reward[-1] < best["reward"]


def test_samples_of_the_reference_do_not_follow_the_policy():
  """With one update nothing differs; afterwards the samples do."""
  given = {"objective": "online_dpo", "hparams": {"beta": 0.1}, "samples": 2}
  own, other = (
    online.train(0, iterations=24, labels="comparisons", sampler=sampler, **given)
    for sampler in ("policy", "reference")
  )
  assert not np.allclose(own["reward"], other["reward"])
