"""XPO: online DPO with an exploration bonus."""

from xpo_jax.objectives import _hparams, _online_dpo, _rewards
from xpo_jax.ops import token_stats
from xpo_jax.types import Aux, Layout, Loss, Mean, Objective, Scored


def exploration(alpha: float = 1e-5) -> Objective:
  """XPO's exploration bonus alone: alpha log pi of column 0, a sample of the reference.

  Layout SAMPLED; stats LOGP. Terms: `exploration`.
  """
  _hparams.check("exploration", "alpha", alpha, usual=1e-5, ge=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    weight_B = scored.weight_B * scored.present_BK[:, 0]
    logp_B = _rewards.seq_logp(scored)[:, 0]
    total = (logp_B * weight_B).sum()
    weight = weight_B.sum()
    metrics = {"logp_of_ref_sample": Mean(total, weight)}
    return Loss({"exploration": Mean(alpha * total, weight)}, metrics)

  return Objective(
    name="exploration",
    hparams={"alpha": alpha},
    layout=Layout.SAMPLED,
    stats=frozenset({token_stats.LOGP}),
    loss=loss,
    column0_source="reference",
  )


def exploratory_dpo(beta: float = 0.1, alpha: float = 1e-5) -> Objective:
  """XPO: online DPO plus an optimism bonus that lowers samples of the reference.

  L = -log sigma(beta (log-ratio_best - log-ratio_worst)) + alpha log pi(y_ref | x)
  The record: column 0 of each prompt was drawn from the reference, the other columns
  from the policy; reward_BK ranks all of them.

  Paper: Xie et al. 2024, arXiv:2405.21046.
  Departs from the paper: the paper samples one completion of each, K = 2; with more,
    the best and the worst form the pair (`online_dpo`). With equal rewards there is no
    pair, only the bonus. Online IPO with the bonus is a `mixture` of
    `best_against_worst(ipo(...))` and `exploration(alpha)`.
  Reduction: log-probabilities summed over tokens. Two denominators: prompts with a
    pair, prompts with a column 0.

  Args:
    beta: tie to ref, per nat; > 0. TRL: 0.1.
    alpha: weight of the bonus, per nat; >= 0. 0 gives `online_dpo`. TRL: 1e-5.

  Returns:
    Objective; layout SAMPLED; stats LOGP, REF_LOGP; columns reward_BK.
    Terms: `exploratory_dpo`, `exploration`.
    Metrics: those of `online_dpo`, and logp_of_ref_sample (nats per completion).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> same = [[-3.0, -1.0]]
    >>> s = scored.from_sequence_logps(same, [[1, 1]], same, reward_BK=[[0.0, 1.0]])
    >>> terms = scored.evaluate(objectives.exploratory_dpo(alpha=0.1), s).terms
    >>> {name: round(float(term), 4) for name, term in terms.items()}
    {'exploratory_dpo': 0.6931, 'exploration': -0.3}
  """
  _hparams.check("exploratory_dpo", "beta", beta, usual=0.1, gt=0)
  _hparams.check("exploratory_dpo", "alpha", alpha, usual=1e-5, ge=0)
  online = _online_dpo.online_dpo(beta)
  bonus = exploration(alpha)

  def loss(scored: Scored, aux: Aux) -> Loss:
    pair_loss = online.loss(scored, aux)
    bonus_loss = bonus.loss(scored, Aux())
    terms = {"exploratory_dpo": pair_loss.terms["online_dpo"]} | bonus_loss.terms
    return Loss(terms, pair_loss.metrics | bonus_loss.metrics)

  return online._replace(
    name="exploratory_dpo",
    hparams={"beta": beta, "alpha": alpha},
    loss=loss,
    column0_source=bonus.column0_source,
  )
