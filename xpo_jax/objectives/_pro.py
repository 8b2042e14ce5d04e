"""PRO: contrasts each completion with all worse ones, at reward-based temperatures."""

import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import ranking, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def pro(sft_weight: float = 0.05) -> Objective:
  """PRO: softmax contrast of each completion with the worse ones, plus SFT.

  L = sum_i log[1 + sum_{r_j < r_i} exp(T_ij p_j - T_i p_i)]
      - sft_weight (n - 1)^2 log pi(best),
  T_ij = r_i - r_j, T_i = max_j T_ij, p = log-probability per token, n completions.

  Paper: Song et al. 2023, arXiv:2306.17492, Eq. 5. Survey 3.9.
  Departs from the paper: the paper writes temperatures 1 / T. (n - 1)^2 is the authors'
    code's, in which tied completions compete at T = 0, a constant: here they do not.
    The code adds 1e-10 inside the log (see `ranking.contrast`), and scores one pad
    token of short rows: not copied.
  Reduction: p averaged over tokens, a sum over ranks, SFT summed over the tokens of the
    best completion (ties: the first column); both averaged over prompts. A list of one
    gives 0.

  Args:
    sft_weight: weight of the SFT term; >= 0. Paper: 0.05 (the scripts; the code's
      default 2).

  Returns:
    Objective; layout RANKED; stats LOGP; columns reward_BK (its gaps are inverse
    temperatures).
    Terms: `pro`, `sft`.
    Metrics: reward_* of p (nats per token), reward_accuracy (fraction of pairs), ndcg.

  Raises:
    ValueError: sft_weight < 0 (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> even = scored.from_sequence_logps([[-4, -8]], [[4, 8]], reward_BK=[[3, 1]])
    >>> terms = scored.evaluate(objectives.pro(), even).terms
    >>> {name: round(float(term), 4) for name, term in terms.items()}  # 0.05 * 4
    {'pro': 0.6931, 'sft': 0.2}
  """
  _hparams.check("pro", "sft_weight", sft_weight, usual=0.05, ge=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    label_BK, present_BK = scored.reward_BK, scored.present_BK
    score_BK = _rewards.avg_logp(scored)
    contrast_B = ranking.contrast(score_BK, label_BK, present_BK)
    best_BK = ranking.rank(label_BK, present_BK) == 1
    nll_B = -jnp.where(best_BK, _rewards.seq_logp(scored), 0).sum(1)
    others_B = jnp.maximum(present_BK.sum(1) - 1, 0)
    sft_B = sft_weight * (others_B**2 * nll_B)
    terms = {"pro": scored.mean_B(contrast_B), "sft": scored.mean_B(sft_B)}
    return Loss(terms, ranking.metrics(scored, score_BK), contrast_B + sft_B)

  return Objective(
    name="pro",
    hparams={"sft_weight": sft_weight},
    layout=Layout.RANKED,
    stats=frozenset({token_stats.LOGP}),
    loss=loss,
    columns=frozenset({"reward_BK"}),
  )
