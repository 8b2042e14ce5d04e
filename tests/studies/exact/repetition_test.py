"""Rounds of pairs of the policy's own completions."""

import numpy as np

from xpo_jax.studies.exact import paths, repetition

CRINGE = {"objective": "cringe", "hparams": {"alpha": 1.0}}
ROUNDS = {"rounds": 2, "count": 60, "steps": 20}


def test_pairwise_cringe_with_an_open_gate_is_binary_cringe():
  """Adam does not heed the constant between a mean over pairs and one over tokens."""
  open_gate = {"margin": 1e6, "temperature": 1.0, "detach_gate": True}
  pairwise = repetition.iterate(
    0, objective="pairwise_cringe", hparams=open_gate, **ROUNDS
  )
  binary = repetition.iterate(0, **CRINGE, **ROUNDS)
  for name in ("repetition", "kl", "length"):
    np.testing.assert_allclose(pairwise[name], binary[name], rtol=0.02, atol=1e-4)


def test_rounds_follow_one_another_and_repetition_falls():
  found = repetition.iterate(0, **CRINGE, **ROUNDS)
  ends = paths.ends(ROUNDS["steps"])
  np.testing.assert_array_equal(
    found["step"], [*ends, *(ROUNDS["steps"] + end for end in ends)]
  )
  first, half, last = (found["repetition"][i] for i in (0, len(ends) - 1, -1))
  assert first > half > last
  # The second round starts where the first one ended.
  assert abs(found["kl"][len(ends)] - found["kl"][len(ends) - 1]) < 0.05
