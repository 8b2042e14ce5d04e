"""CPO: DPO with a uniform reference, plus the NLL of the chosen completion."""

from xpo_jax.objectives import _hparams, _nll, _rewards
from xpo_jax.ops import links, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def cpo(
  beta: float = 0.1,
  weight: float = 1.0,
  label_smoothing: float = 0.0,
  reduction: str | _nll.Reduction = "sequence_sum",
  link: links.Link | str = "logistic",
) -> Objective:
  """CPO: reference-free DPO, regularised by the NLL of the chosen completion.

  L = -(1 - e) log sigma(m) - e log sigma(-m) + w NLL(y_w),
  m = beta (log pi(y_w|x) - log pi(y_l|x)), e the label smoothing. Another link f takes
  the place of -log sigma.

  Paper: Xu et al. 2024, arXiv:2401.08417, Eq. 5; Eq. 3 is its first term. Survey
    3.10.
  Departs from the paper: nothing in the formula. The authors' code (and TRL) averages
    the NLL over the tokens of the batch, smaller by a factor of the length:
    `reduction="token_mean"`; its `w = 1` belongs to that reduction. Label smoothing is
    TRL's, and so is the hinge, max(0, 1 - m), which it never smooths. The authors'
    repository now holds `arpo` under the same name.
  Reduction: log-probability summed over tokens, so that the shorter of two completions
    starts with the higher likelihood; losses averaged over pairs; the NLL by
    `reduction`.

  Args:
    beta: scale of the log-likelihoods, per nat; > 0. Paper: 0.1.
    weight: weight of the NLL term; >= 0. Paper: 1.
    label_smoothing: probability that a label is flipped; 0 <= e < 0.5. Paper: 0.
    reduction: of the NLL, see `nll`. Paper: sequence_sum as written.
    link: f; a `links.Link` or a name of `links.LINKS`. Paper: logistic. TRL: hinge too.

  Returns:
    Objective; layout PAIR; stats LOGP.
    Terms: `cpo`, `nll`.
    Metrics: reward_* (beta times nats), reward_accuracy (fraction), logp_chosen,
    logp_rejected (nats per completion).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> tie = scored.from_sequence_logps([[-2.0, -2.0]], [[4, 2]])
    >>> terms = scored.evaluate(objectives.cpo(), tie).terms
    >>> {name: round(float(term), 4) for name, term in terms.items()}  # log 2, 2 nats
    {'cpo': 0.6931, 'nll': 2.0}
  """
  _hparams.check("cpo", "beta", beta, usual=0.1, gt=0)
  _hparams.check("cpo", "weight", weight, usual=1, ge=0)
  _hparams.check("cpo", "label_smoothing", label_smoothing, usual=0, ge=0, lt=0.5)
  nll_reduction = _hparams.choice("cpo", "reduction", reduction, _nll.REDUCTIONS)
  link = _hparams.choice("cpo", "link", link, links.LINKS)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = beta * _rewards.seq_logp(scored)
    margin_B = reward_BK[:, 0] - reward_BK[:, 1]
    loss_B = links.smoothed(link, margin_B, label_smoothing)
    metrics = _rewards.reward_metrics(scored, reward_BK) | _rewards.logp_metrics(scored)
    return Loss({"cpo": scored.mean_B(loss_B)}, metrics, loss_B)

  preference = Objective(
    name="cpo",
    hparams={
      "beta": beta,
      "weight": weight,
      "label_smoothing": label_smoothing,
      "reduction": nll_reduction.name,
      "link": link.name,
    },
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP}),
    loss=loss,
  )
  return _nll.with_nll(preference, weight, nll_reduction)
