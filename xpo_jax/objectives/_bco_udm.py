"""BCO with underlying distribution matching: undesirable rows weighted by prompt."""

from xpo_jax.objectives import _bco, _hparams, _rewards
from xpo_jax.types import Aux, Loss, Objective, Scored


def bco_udm(beta: float = 0.1) -> Objective:
  """BCO for prompts that differ between the classes: rows have weights (UDM).

  L = -log sigma(beta u - d)  for desirable completions,
      -w(x) log sigma(d - beta u)  for undesirable ones,
  u = log-ratio, d the mean of beta u over all completions so far, as in `bco`; w(x) =
  p(desirable | x) / p(undesirable | x), the ratio of the densities of the classes'
  prompts, so that both classes are averaged over the desirable ones' prompts.

  Paper: Jung et al. 2024, arXiv:2404.04656.
  Departs from the paper: nothing known; d is not weighted, as in TRL, whose code is the
    author's. w is a column of the data: `data.transforms.prompt_matching` computes it
    from a classifier of prompts, clipped as in TRL. Weights of 1 give `bco`.
  Reduction: log-ratio summed over tokens; weighted loss averaged over all rows, not
    divided by the sum of the weights. No gradient through d.

  Args:
    beta: tie to ref, per nat; > 0. TRL: 0.1.

  Returns:
    Objective; layout RATED; stats LOGP, REF_LOGP; columns desirable_BK,
    prompt_weight_BK; state mean (nats), count (completions).
    Terms: `bco_udm`.
    Metrics: those of `bco`; prompt_weight_chosen, prompt_weight_rejected (mean weights
    of desirable and of undesirable rows, a factor).

  Raises:
    ValueError: beta <= 0 (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=1, policy_equals_ref=True)
    >>> s = first_step.replace(prompt_weight_BK=0 * first_step.desirable_BK + 2)
    >>> o = objectives.bco_udm()
    >>> round(float(scored.evaluate(o, s, o.init()).loss), 4)  # 2 log 2
    1.3863
  """
  _hparams.check("bco_udm", "beta", beta, usual=0.1, gt=0)
  bco = _bco.bco(beta)

  def loss(scored: Scored, aux: Aux) -> Loss:
    out = bco.loss(scored, aux)
    weight_B = scored.prompt_weight_BK[:, 0]
    desirable_B = scored.desirable_BK[:, 0] > 0
    loss_B = weight_B * out.per_example_B
    weights = _rewards.by_label(scored, "prompt_weight", weight_B, desirable_B)
    return Loss({"bco_udm": scored.mean_B(loss_B)}, out.metrics | weights, loss_B)

  return bco._replace(
    name="bco_udm",
    columns=bco.columns | {"prompt_weight_BK"},
    loss=loss,
  )
