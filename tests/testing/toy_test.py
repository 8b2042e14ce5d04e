"""Toy records and loss curves."""

import numpy as np
import pytest

from xpo_jax import objectives, scored
from xpo_jax.testing import toy
from xpo_jax.types import Scored


def test_every_field_is_filled():
  s = toy.scored()
  fields = set(Scored.__dataclass_fields__) - {"routing"}  # of a model's layers
  assert all(vars(s)[name] is not None for name in fields)


def test_seed_determines_the_numbers():
  same, other = toy.scored(seed=3), toy.scored(seed=4)
  np.testing.assert_array_equal(same.logp_BKT, toy.scored(seed=3).logp_BKT)
  assert (same.logp_BKT != other.logp_BKT).any()


@pytest.mark.parametrize("K", [1, 2, 3, 5])
def test_lengths_run_from_1_and_a_list_is_ragged(K):
  s = toy.scored(K=K)
  present = np.asarray(s.present_BK) > 0
  length = np.asarray(s.length_BK)
  assert length[present].min() == 1
  assert (length[~present] == 0).all()
  assert present[0, -1] == (K <= 2)
  assert (s.logp_BKT <= 0).all()


def test_policy_equal_to_ref_has_no_log_ratio():
  s = toy.scored(policy_equals_ref=True)
  assert not objectives.log_ratio(s).any()
  assert not s.ref_kl_BKT.any()


@pytest.mark.parametrize("name", objectives.NAMES)
def test_record_fits_the_objective(name):
  o = objectives.build(name)
  scored.check(o, toy.scored_for(o))


def test_curve_of_dpo_is_the_logistic_loss_of_the_margin():
  gap = np.linspace(-6, 6, 5)
  curve = toy.curve(objectives.dpo(beta=0.5), gap)
  np.testing.assert_allclose(curve.loss, np.log1p(np.exp(-0.5 * gap)), rtol=1e-5)
  np.testing.assert_allclose(curve.slope, -0.5 / (1 + np.exp(0.5 * gap)), rtol=1e-5)


def test_curve_of_an_undesirable_completion_rises():
  gap = np.linspace(-6, 6, 5)
  assert (toy.curve(objectives.kto(), gap, desirable=False).slope > 0).all()
  assert (toy.curve(objectives.kto(), gap, desirable=True).slope < 0).all()
