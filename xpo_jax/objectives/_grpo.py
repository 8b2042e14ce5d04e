"""GRPO, and what its relatives share: advantages within a group, a ratio per token.

Longer than other objectives because the relatives are written with it.
"""

import jax.numpy as jnp

from xpo_jax.objectives import _hparams, _rewards
from xpo_jax.ops import divergences, groups, masked, policy_loss
from xpo_jax.types import Array, Aux, Layout, Loss, Mean, Objective, Scored, State

COLUMNS = frozenset({"old_logp_BKT", "reward_BK"})


def check_hparams(
  name: str,
  clip_low: float | Array,
  clip_high: float | Array,
  beta: float | Array | None,
  dual_clip: float | Array | None,
  paper: tuple[float, float] = (0.2, 0.2),
) -> None:
  """Refuses what GRPO or a relative does not allow; `paper` holds the two clips."""
  _hparams.check(name, "clip_low", clip_low, paper=paper[0], ge=0, le=1)
  _hparams.check(name, "clip_high", clip_high, paper=paper[1], ge=0)
  _hparams.check_optional_beta(name, beta, paper=0.04)
  if dual_clip is not None:
    _hparams.check(name, "dual_clip", dual_clip, paper=3, gt=1)


def standardised(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
  """`prepare`: the advantages (r - mean) / std of each group."""
  del key
  return Aux(groups.standardise(scored.reward_BK, scored.present_BK)), state


def surrogate(
  scored: Scored,
  advantage_BK: Array,
  clip_low: float | Array,
  clip_high: float | Array,
  dual_clip: float | Array | None,
) -> Array:
  """PPO's clipped loss of each token, `[B, K, T]`, all tokens with one advantage."""
  advantage_BKT = jnp.broadcast_to(advantage_BK[..., None], scored.logp_BKT.shape)
  loss_BKT = policy_loss.clipped_surrogate(
    scored.logp_BKT, scored.old_logp_BKT, advantage_BKT, clip_low, clip_high
  )
  if dual_clip is None:
    return loss_BKT
  return policy_loss.dual_clipped(loss_BKT, advantage_BKT, dual_clip)


def kl_penalty(scored: Scored, beta: float | Array | None) -> Array:
  """beta k3 of each token, `[B, K, T]`, through which gradient flows; None is 0."""
  if beta is None:
    return jnp.zeros_like(scored.logp_BKT)
  return beta * divergences.K3.fn(scored.logp_BKT - scored.ref_logp_BKT)


def token_mean_of_prompt(scored: Scored, x_BKT: Array) -> Array:
  """Mean over all tokens of a prompt's completions, `[B]`: DAPO's reduction."""
  x_B = groups.total(masked.sum_T(x_BKT, scored.mask_BKT), scored.present_BK)
  tokens_B = groups.total(masked.length(scored.mask_BKT), scored.present_BK)
  return masked.per_token(x_B, tokens_B)


def reward_metrics(scored: Scored) -> dict[str, Mean]:
  """What rollouts earned, and the share of prompts whose rewards differ."""
  reward_BK, present_BK = scored.reward_BK, scored.present_BK
  return {
    "reward": scored.mean_BK(groups.zero_absent(reward_BK, present_BK)),
    "frac_informative_prompts": scored.mean_B(groups.differ(reward_BK, present_BK)),
  }


def clip_metrics(
  scored: Scored,
  advantage_BK: Array,
  clip_low: float | Array,
  clip_high: float | Array,
) -> dict[str, Mean]:
  """Those of the rewards, and the share of tokens where the clip decides."""
  advantage_BKT = jnp.broadcast_to(advantage_BK[..., None], scored.logp_BKT.shape)
  clipped_BKT = policy_loss.clipped_share(
    scored.logp_BKT, scored.old_logp_BKT, advantage_BKT, clip_low, clip_high
  )
  clipped = policy_loss.token_mean(scored, clipped_BKT)
  return reward_metrics(scored) | {"clip_fraction": clipped}


def grpo(
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  beta: float | None = 0.04,
  dual_clip: float | None = None,
) -> Objective:
  """GRPO: PPO without a value function, the group's rewards as their own baseline.

  L = mean_i 1/|y_i| sum_t [max(-A_i rho_t, -A_i clip(rho_t, 1 - e, 1 + e)) + beta k3_t]
  with A_i = (r_i - mean r) / std r over the completions of a prompt, rho_t =
  pi(y_t) / pi_old(y_t) and k3 = ref/pi - 1 - log(ref/pi), through which gradient flows.

  Paper: Shao et al. 2024 (DeepSeekMath), arXiv:2402.03300, Eq. not checked.
  Departs from the paper: it does not say which std: here the unbiased one plus 1e-4, as
    in TRL (verl adds 1e-6), and rewards that all agree give exactly 0. k3's gradient is
    that of KL(ref || policy) on samples of the policy, not of the reverse KL: kept, it
    is the method. `dual_clip` is Ye et al. 2019's (TRL's `delta`). An empty completion
    counts among the group, as in TRL; verl and OpenRLHF leave it out.
  Reduction: mean over a completion's tokens, mean over a prompt's completions, mean
    over prompts. Each completion weighs the same, so each token of a short one weighs
    more: the length bias that `dr_grpo` removes.

  Args:
    clip_low: how far a ratio may fall below 1; 0 <= e <= 1. Paper: not stated; 0.2.
    clip_high: how far it may rise above 1; >= 0. Paper: not stated; 0.2.
    beta: tie to ref, per nat; > 0, or None for no tie and no reference. Paper: 0.04.
    dual_clip: the largest ratio that counts where A < 0; > 1, or None. Paper: None.

  Returns:
    Objective; layout SAMPLED; stats LOGP, and REF_LOGP unless beta is None; columns
    reward_BK, old_logp_BKT; reads tokens. Terms: `grpo`. Metrics: reward, informative
    (fraction of prompts whose rewards differ), clip_fraction (of tokens).

  Raises:
    ValueError: a hyperparameter out of range (when built, never inside the trace).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> s = toy.scored(K=3, policy_equals_ref=True)
    >>> s = s.replace(old_logp_BKT=s.logp_BKT)  # ratio 1, no KL: advantages sum to 0
    >>> abs(round(float(scored.evaluate(objectives.grpo(), s).loss), 4))
    0.0
  """
  check_hparams("grpo", clip_low, clip_high, beta, dual_clip)

  def loss(scored: Scored, aux: Aux) -> Loss:
    token_BKT = surrogate(scored, aux.rows, clip_low, clip_high, dual_clip)
    token_BKT = token_BKT + kl_penalty(scored, beta)
    loss_BK = masked.mean_T(token_BKT, scored.mask_BKT)
    loss_B = groups.mean(loss_BK, scored.present_BK)
    metrics = clip_metrics(scored, aux.rows, clip_low, clip_high)
    return Loss({"grpo": scored.mean_B(loss_B)}, metrics, loss_B)

  hparams = {"clip_low": clip_low, "clip_high": clip_high}
  hparams |= {"beta": beta, "dual_clip": dual_clip}
  layout = Layout.SAMPLED
  stats = _rewards.stats(beta)
  return Objective(
    name="grpo",
    hparams=hparams,
    layout=layout,
    stats=stats,
    loss=loss,
    columns=COLUMNS,
    reads_tokens=True,
    prepare=standardised,
  )
