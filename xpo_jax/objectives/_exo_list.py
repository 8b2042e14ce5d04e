"""EXO on lists of completions with rewards."""

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import ranking, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def exo_list(beta: float = 0.1, temperature: float = 0.1) -> Objective:
  """EXO on lists: reverse KL between the policy's and the reward's softmax over K.

  L = sum_k p_k (log p_k - log q_k),   p = softmax_k(beta log-ratio_k),
  q = softmax_k(reward_k / temperature)

  Paper: Ji et al. 2024, arXiv:2402.00856. Not in the survey.
  Departs from the paper: nothing known. The forward KL, the authors' "dpo-rw", is
    `infonca`.
  Reduction: log-ratio summed over tokens; loss averaged over lists. A list of fewer
    than two completions gives 0.

  Args:
    beta: tie to ref, per nat; > 0. Paper: 0.1 (IMDb), 0.5 (HH); its beta_pi.
    temperature: of the target; > 0. Paper: equal to beta; its beta_r.

  Returns:
    Objective; layout RANKED; stats LOGP, REF_LOGP; columns reward_BK.
    Terms: `exo_list`.
    Metrics: reward_* (nats; best against worst completion), reward_accuracy (fraction
    of ordered pairs), ndcg: see `ranking.metrics`.

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> s = scored.from_sequence_logps(
    ...   [[3.0, 1.0, 2.0]], [[1, 1, 1]], [[0.0] * 3], reward_BK=[[3.0, 1.0, 2.0]]
    ... )
    >>> o = objectives.exo_list(beta=0.5, temperature=2.0)  # the same softmax
    >>> abs(round(float(scored.evaluate(o, s).loss), 4))
    0.0
  """
  _hparams.check("exo_list", "beta", beta, usual=0.1, gt=0)
  _hparams.check("exo_list", "temperature", temperature, usual=0.1, gt=0)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    present_BK = scored.present_BK
    reward_BK = _rewards.rewards(scored, beta)
    prob_BK = ranking.softmax(reward_BK, present_BK)
    target_logit_BK = scored.reward_BK / temperature
    # Both softmaxes as logarithms: a target probability may underflow.
    entropy_B = ranking.cross_entropy(reward_BK, prob_BK, present_BK)
    loss_B = ranking.cross_entropy(target_logit_BK, prob_BK, present_BK) - entropy_B
    metrics = ranking.metrics(scored, reward_BK)
    return Loss({"exo_list": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="exo_list",
    hparams={"beta": beta, "temperature": temperature},
    layout=Layout.RANKED,
    stats=frozenset({token_stats.LOGP, token_stats.REF_LOGP}),
    loss=loss,
    columns=frozenset({"reward_BK"}),
  )
