"""SAPO."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import group_oracle as oracle
from xpo_jax import objectives


def check():
  s = oracle.record()
  fields = oracle.completions(s, "logp_BKT", "old_logp_BKT", "ref_logp_BKT")
  prompts = []
  for group, r in zip(fields, oracle.rewards(s), strict=True):
    each = []
    for (logp, old, ref), a in zip(group, oracle.standardised(r), strict=True):
      tau = 0.7 if a > 0 else 2.0
      gate = 4 / tau / (1 + np.exp(-tau * (np.exp(logp - old) - 1)))
      each.append((-a * gate + 0.5 * oracle.k3(logp, ref)).mean())
    prompts.append(np.mean(each))
  actual = scored.evaluate(objectives.sapo(0.7, 2.0, beta=0.5), s).loss
  np.testing.assert_allclose(actual, np.mean(prompts), rtol=1e-5)


def test_oracle():
  check()


def test_gate_metric_is_1_on_policy_and_less_elsewhere():
  s = oracle.record()
  o = objectives.sapo()
  on_policy = s.replace(old_logp_BKT=s.logp_BKT)
  assert scored.evaluate(o, on_policy).metrics["gate"] == pytest.approx(1)
  assert scored.evaluate(o, s).metrics["gate"] < 0.99


@pytest.mark.parametrize("hparams", [{"tau_pos": 0.0}, {"tau_neg": -1.0}])
def test_hparam_out_of_range_is_refused(hparams):
  (hparam,) = hparams
  with pytest.raises(ValueError, match=rf"sapo: {hparam}=.* > 0"):
    objectives.sapo(**hparams)
