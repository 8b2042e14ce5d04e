"""Orders of SFT and DPO, merges of their differences, sparse changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax import objectives, scored
from xpo_jax.studies.exact import merging

PARTS = {
  "sft": {"objective": "nll", "hparams": {"reduction": "sequence_sum"}},
  "preference": {"objective": "dpo", "hparams": {"beta": 0.1}},
}


def _train(order, **settings):
  return merging.train(0, order=order, count=100, steps=40, **PARTS, **settings)


def test_each_alone_has_its_own_share():
  skilled, preferring = _train("sft"), _train("dpo")
  assert skilled["skill"] > 0.2 > preferring["skill"]
  assert preferring["reward"] > skilled["reward"]
  share = preferring["skill"] / skilled["skill"]
  assert preferring["score"] == pytest.approx(float(1 + share) / 2, rel=1e-3)


def test_ties_of_all_entries_is_not_the_sum_and_no_merge_is_empty():
  merged, added = _train("ties", keep=1.0), _train("linear")
  assert merged["score"] != pytest.approx(float(added["score"]), rel=1e-3)
  assert merged["sft_density"] == pytest.approx(float(added["sft_density"]))


def test_an_overwhelming_penalty_leaves_the_base():
  """A change that is always shrunk to 0: SFT first does nothing to DPO."""
  held, alone = _train("sft, dpo", sparsity=10.0), _train("dpo")
  for name in ("skill", "reward"):
    assert held[name] == pytest.approx(float(alone[name]), rel=1e-3)


def test_penalty_keeps_only_the_entry_that_matters():
  start = {"x": jnp.zeros(3)}

  def view(params):
    # The likelihood depends on entry 0 alone, up to a little of entry 1.
    logit = params["x"] @ jnp.array([1.0, 1e-12, 0.0])
    return scored.from_sequence_logps(
      jax.nn.log_sigmoid(logit)[None, None], jnp.ones((1, 1))
    )

  found = merging.adapt(
    objectives.nll("sequence_sum"),
    view,
    start,
    sparsity=0.3,
    steps=20,
    learning_rate=0.1,
  )
  assert found["x"][0] > 0.5
  np.testing.assert_array_equal(found["x"][1:], 0)
