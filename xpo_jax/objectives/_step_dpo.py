"""Step-DPO: DPO on the first step at which two solutions part."""

from xpo_jax.objectives import _dpo, _hparams
from xpo_jax.types import Aux, Loss, Objective, Scored


def step_dpo(beta: float = 0.4) -> Objective:
  """Step-DPO: DPO on one step of reasoning, given the correct steps before it.

  L = -log sigma(beta [log-ratio(s_w | x, s_<k) - log-ratio(s_l | x, s_<k)])
  with s_<k the steps before, which belong to the prompt, s_l the first wrong step of a
  sampled solution and s_w a correct one in its place, sampled too.

  Paper: Lai et al. 2024, arXiv:2406.18629, Eq. 2.
  Departs from the paper: nothing. It is `dpo` on other data. Steps before that are left
    in both completions change nothing: their log-ratio cancels in the margin (their
    tokens still cost). The authors' code ends no step with EOS: prepare the data by
    `data.transforms.steps:open_ended`, which takes it off.
  Reduction: log-ratio summed over the tokens of the step; loss averaged over pairs.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.4, and 0.5 for the 72B model.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `step_dpo`.
    Metrics: reward_* (nats), reward_accuracy (fraction), logp_chosen, logp_rejected
    (nats per completion), as `dpo`.

  Raises:
    ValueError: beta <= 0 (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> round(float(scored.evaluate(objectives.step_dpo(), first_step).loss), 4)
    0.6931
  """
  _hparams.check("step_dpo", "beta", beta, usual=0.4, gt=0)
  dpo = _dpo.dpo(beta)

  def loss(scored: Scored, aux: Aux) -> Loss:
    out = dpo.loss(scored, aux)
    return out.replace(terms={"step_dpo": out.terms["dpo"]})

  return dpo._replace(name="step_dpo", hparams={"beta": beta}, loss=loss)
