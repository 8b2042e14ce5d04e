"""ListMLE on implicit rewards, ties broken at random."""

import jax

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import ranking, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored, State


def list_mle(beta: float = 0.05) -> Objective:
  """ListMLE: the likelihood of one order of the list, ties broken at random.

  L = - log P(order of the rewards | s) under Plackett-Luce,   s = beta log-ratio

  Paper: Liu et al. 2024 (LiPO), arXiv:2402.01878; the loss is Xia et al. 2008,
    "Listwise approach to learning to rank" (not on arXiv). Survey 3.9.
  Departs from the paper: nothing known. Without ties it is `plackett_luce`. Ties get a
    new random order in every batch, as in public ranking libraries. One of them
    (allRank) adds 1e-10 to each sum: `ranking.plackett_luce(..., eps=1e-10)`.
  Reduction: log-ratio summed over tokens, likelihood over the ranks of the list; loss
    averaged over prompts.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.05.

  Returns:
    Objective; layout RANKED; stats LOGP, REF_LOGP; columns reward_BK (higher is better,
    only its order counts); draws random numbers.
    Terms: `list_mle`.
    Metrics: reward_chosen, reward_rejected (best and worst completion), reward_margin
    (nats), reward_accuracy (fraction of pairs), ndcg.

  Raises:
    ValueError: beta <= 0 (when built, never inside the trace).

  Example:
    >>> import jax
    >>> from xpo_jax import objectives, scored
    >>> same = [[-5.0, -7.0, -6.0]]
    >>> s = scored.from_sequence_logps(same, same, same, reward_BK=[[1, 0, 1]])
    >>> o = objectives.list_mle()
    >>> loss = scored.evaluate(o, s, o.init(), jax.random.key(0)).loss
    >>> round(float(loss), 4)  # one order of 3!, however the tie is broken
    1.7918
  """
  _hparams.check("list_mle", "beta", beta, usual=0.05, gt=0)

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    key = _hparams.check_key("list_mle", key)
    K = scored.present_BK.shape[1]

    def draw(row: Array) -> Array:
      return jax.random.uniform(jax.random.fold_in(key, row), (K,))

    uniform_BK = jax.vmap(draw)(scored.row_B)
    rank_BK = ranking.rank(scored.reward_BK, scored.present_BK, uniform_BK)
    return Aux(rows=rank_BK), state

  def loss(scored: Scored, aux: Aux) -> Loss:
    score_BK = _rewards.rewards(scored, beta)
    loss_B = -ranking.plackett_luce(score_BK, -aux.rows, scored.present_BK)
    metrics = ranking.metrics(scored, score_BK)
    return Loss({"list_mle": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="list_mle",
    hparams={"beta": beta},
    layout=Layout.RANKED,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
    columns=frozenset({"reward_BK"}),
    prepare=prepare,
  )
