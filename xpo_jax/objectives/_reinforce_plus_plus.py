"""REINFORCE++: PPO's clip without a critic, on advantages of the whole batch."""

from xpo_jax.objectives import _grpo, _rewards
from xpo_jax.ops import divergences, masked, policy_loss, returns
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored, State


def normalised(scored: Scored, advantage_BKT: Array) -> Array:
  """(A - mean) / std over all completion tokens of the batch, `[B, K, T]`."""
  counts_BK = scored.present_BK * scored.weight_B[:, None]
  population_BKT = scored.mask_BKT * counts_BK[..., None]
  white_BKT = returns.whiten(advantage_BKT, population_BKT)
  return masked.zero_padding(white_BKT, scored.mask_BKT)


def token_surrogate(
  scored: Scored,
  advantage_BKT: Array,
  clip_low: float | Array,
  clip_high: float | Array,
) -> tuple[Array, Array]:
  """PPO's clipped loss with an advantage per token, and 1 where it is clipped."""
  surrogate = (scored.logp_BKT, scored.old_logp_BKT, advantage_BKT, clip_low, clip_high)
  return (
    policy_loss.clipped_surrogate(*surrogate),
    policy_loss.clipped_share(*surrogate),
  )


def reinforce_plus_plus(
  clip_low: float = 0.2, clip_high: float = 0.2, beta: float | None = 0.01
) -> Objective:
  """REINFORCE++: PPO without a critic; the batch's advantages are normalised together.

  L = mean_i 1/|y_i| sum_t max(-A_t rho_t, -A_t clip(rho_t, 1 - e, 1 + e))
  with A_t = r - beta sum_{s >= t} log(pi_old(y_s) / pi_ref(y_s)), minus its mean and
  divided by its deviation over all tokens of the batch; rho_t = pi(y_t) / pi_old(y_t).

  Paper: Hu et al. 2025, arXiv:2501.03262v9, Eq. 1, 4 and 5.
  Departs from the paper: eps is added to the variance (1e-8), not to the deviation; the
    variance is divided by n, as in the authors' code (OpenRLHF: `reinforce`; verl: by
    n - 1). That code takes one mean over the tokens of the batch in place of Eq. 1's
    mean of each completion. The batch is that of an update: with several minibatches of
    a round of rollouts each is normalised by itself. The paper takes one completion of
    a prompt; any number will do here.
  Reduction: mean over a completion's tokens, mean over a prompt's completions, mean
    over prompts. No gradient through A.

  Args:
    clip_low: clip range of the ratio below 1; 0 <= e <= 1. Paper: not stated; 0.2.
    clip_high: clip range of the ratio above 1; >= 0. Paper: not stated; 0.2.
    beta: tie to ref, in the reward, per nat; > 0, or None for no tie and no reference.
      Paper: not stated. Authors' code: 0.01.

  Returns:
    Objective; layout SAMPLED; stats LOGP, and REF_LOGP unless beta is None; columns
    reward_BK, old_logp_BKT; reads tokens.
    Terms: `reinforce_plus_plus`.
    Metrics: reward, frac_informative_prompts (fraction of prompts whose rewards
    differ), clip_fraction (of tokens).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> s = toy.scored(K=1)
    >>> s = s.replace(old_logp_BKT=s.logp_BKT, reward_BK=0 * s.reward_BK + 7)
    >>> o = objectives.reinforce_plus_plus(beta=None)
    >>> float(scored.evaluate(o, s).loss)  # equal rewards: every advantage is 0
    0.0
  """
  name = "reinforce_plus_plus"
  usual = (0.2, 0.2, 0.01)
  _grpo.check_hparams(name, clip_low, clip_high, beta, None, usual=usual)

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    del key
    reward_BKT = returns.place(scored.reward_BK, scored.mask_BKT)
    if beta is not None:
      rollout = scored.replace(logp_BKT=scored.old_logp_BKT)
      kl_BKT = divergences.k1(_rewards.token_rewards(rollout))
      reward_BKT = returns.kl_shaped(reward_BKT, kl_BKT, beta)
    to_go_BKT = returns.discounted(reward_BKT, scored.mask_BKT, 1.0)
    return Aux(normalised(scored, to_go_BKT)), state

  def loss(scored: Scored, aux: Aux) -> Loss:
    token_BKT, clipped_BKT = token_surrogate(scored, aux.rows, clip_low, clip_high)
    loss_B = _grpo.mean_of_prompt(scored, token_BKT)
    metrics = _grpo.reward_metrics(scored)
    metrics |= {"clip_fraction": policy_loss.token_mean(scored, clipped_BKT)}
    return Loss({name: scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name=name,
    hparams={"clip_low": clip_low, "clip_high": clip_high, "beta": beta},
    layout=Layout.SAMPLED,
    stats=_rewards.stats(beta),
    loss=loss,
    columns=_grpo.COLUMNS,
    reads_tokens=True,
    prepare=prepare,
  )
