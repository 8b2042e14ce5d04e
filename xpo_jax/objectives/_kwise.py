"""K-wise reward model: the Bradley-Terry loss over all pairs of a list."""

from xpo_jax.ops import masked, ranking, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def kwise() -> Objective:
  """K-wise: the Bradley-Terry loss averaged over all pairs of a prompt.

  L = - mean over pairs (label_i > label_j) of log sigma(r_i - r_j)
  with r the scalar head at the last token of the completion.

  Paper: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, Sec. 3.5, Eq. 1. Survey
    3.1.
  Departs from the paper: tied pairs, which the formula does not cover, are dropped, and
    the mean is over the remaining pairs. OpenAI's earlier code (2019) contrasts the
    best of four with the rest: `ranking.softmax_nll` at the best completion.
  Reduction: the head's output at the last completion token, which it has read (EOS
    where the completion ends with it); mean over the ordered pairs of a
    prompt, then over prompts: each prompt weighs the same for any K. A list of one, or
    with all tied, gives 0 and counts.

  Returns:
    Objective; layout RANKED; stats REWARD_HEAD; columns reward_BK (the annotators'
    order, higher is better).
    Terms: `kwise`.
    Metrics: reward_chosen, reward_rejected (best and worst completion), reward_margin
    (units of the reward), reward_accuracy (fraction of pairs), ndcg.

  Example:
    >>> import numpy as np
    >>> from xpo_jax import objectives, scored
    >>> one = np.ones((1, 3, 1))
    >>> order = [[2, 0, 1]]
    >>> s = scored.from_token_logps(None, one, reward_head_BKT=one, reward_BK=order)
    >>> round(float(scored.evaluate(objectives.kwise(), s).loss), 4)
    0.6931
  """

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    reward_BK = masked.last(scored.reward_head_BKT, scored.mask_BKT)
    better_BKK = ranking.better(scored.reward_BK, scored.present_BK)
    weight_BKK = better_BKK.astype(reward_BK.dtype)
    sum_B = ranking.pair_logistic(reward_BK, weight_BKK)
    loss_B = masked.per_token(sum_B, weight_BKK.sum((1, 2)))
    metrics = ranking.metrics(scored, reward_BK)
    return Loss({"kwise": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="kwise",
    hparams={},
    layout=Layout.RANKED,
    stats=frozenset({token_stats.REWARD_HEAD}),
    loss=loss,
    columns=frozenset({"reward_BK"}),
  )
