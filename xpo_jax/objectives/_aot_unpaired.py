"""AOT on unpaired data: sorted chosen rewards against sorted rejected rewards."""

from xpo_jax.objectives import _aot, _hparams, _rewards
from xpo_jax.ops import links, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored, State


def aot_unpaired(beta: float = 0.01, label_smoothing: float = 0.0) -> Objective:
  """AOT, unpaired: logistic loss between sorted chosen and rejected log-ratios.

  L = mean_i f(beta (u_wi - u_li))
  with u_wi the i-th smallest log-ratio of the batch's chosen completions, u_li of its
  rejected ones, f as in `aot`. The pairing of the data does not matter.

  Paper: Melnyk et al. 2024, arXiv:2406.05882.
  Departs from the paper: nothing known; see `aot` on microbatches. Both sides have the
    same number of completions. TRL called this "aot_pair" until it was renamed.
  Reduction: log-ratio summed over tokens; loss averaged over pairs. Both completions of
    a match have a gradient and may be in different rows. Each row therefore holds the
    log-ratios of its matches fixed and carries two terms: its chosen completion against
    the rejected one of the same rank, which counts, and its rejected completion against
    the chosen one of the same rank, minus the value of that term from `prepare`, which
    adds its gradient and 0. The sum over rows is then exact in value and gradient for
    any microbatches.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.01.
    label_smoothing: e, the probability that a label is flipped; 0 <= e < 0.5. Paper: 0.

  Returns:
    Objective; layout PAIR; stats LOGP, REF_LOGP.
    Terms: `aot_unpaired`.
    Metrics: those of `dpo`, for the pairs of the data.

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> first_step = toy.scored(K=2, policy_equals_ref=True)
    >>> loss = scored.evaluate(objectives.aot_unpaired(), first_step).loss
    >>> round(float(loss), 4)  # log 2
    0.6931
  """
  name = "aot_unpaired"
  e = label_smoothing
  _hparams.check(name, "beta", beta, usual=0.01, gt=0)
  _hparams.check(name, "label_smoothing", e, usual=0, ge=0, lt=0.5)

  def match(chosen_B: Array, rejected_B: Array) -> Array:
    return links.smoothed_logistic(beta * (chosen_B - rejected_B), e)

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    del key
    chosen_B, rejected_B = _rewards.log_ratio(scored).T
    real_rows = (scored.weight_B, scored.row_B)
    below_B = _aot.partner(chosen_B, rejected_B, *real_rows)
    above_B = _aot.partner(rejected_B, chosen_B, *real_rows)
    return Aux(rows=(below_B, above_B, match(above_B, rejected_B))), state

  def loss(scored: Scored, aux: Aux) -> Loss:
    chosen_B, rejected_B = _rewards.log_ratio(scored).T
    below_B, above_B, counted_B = aux.rows
    loss_B = match(chosen_B, below_B) + (match(above_B, rejected_B) - counted_B)
    metrics = _rewards.reward_metrics(scored, _rewards.rewards(scored, beta))
    metrics |= _rewards.logp_metrics(scored)
    return Loss({name: scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name=name,
    hparams={"beta": beta, "label_smoothing": label_smoothing},
    layout=Layout.PAIR,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
    columns=frozenset(),
    prepare=prepare,
  )
