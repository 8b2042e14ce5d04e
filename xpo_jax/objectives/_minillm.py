"""MiniLLM: policy gradient of the sequence's reverse KL, its first step exact."""

from xpo_jax.objectives import _gkd, _hparams, _on_policy_distillation
from xpo_jax.ops import groups, masked, policy_loss, returns, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored, State


def minillm(
  teacher_share: float = 0.2, clip: float = 0.2, length_normalised: bool = True
) -> Objective:
  """MiniLLM: reverse KL of completions, split into its next step and the steps after.

  L = mean_i sum_t [KL(policy(.|s_t) || teacher(.|s_t))
                    + max(-R_t rho_t, -R_t clip(rho_t, 1 - e, 1 + e))]
  with R_t the mean over s > t of log teacher(y_s|s_s) - log pi_old(y_s|s_s), 0 at the
  last token, and rho_t = pi(y_t|s_t) / p(y_t|s_t). Completions are drawn token by token
  from p = (1 - a) pi_old + a teacher, a the teacher's share, so that the student meets
  the teacher's tokens; rho_t corrects the choice of y_t, not of the tokens before and
  after it. With a = 0 and sums R_t in place of means the expected gradient, at ratio 1,
  is that of KL(policy || teacher) of whole completions.

  Paper: Gu et al. 2023, arXiv:2306.08543, Eq. 7; the sampling is Eq. 4, the mean R_t
    Eq. 6.
  Departs from the paper: the KL of the next step has no weight rho_t, as in the
    authors' code; its mean given s_t is 1. R_t divides by the number of tokens after t
    (paper: by one less). The paper's loss on pretraining text is `sft` as an auxiliary
    loss. Not taken from the authors' code: its policy gradient also counts the reward
    of token t itself, which the KL of the next step counts already; rewards there are
    scaled and clipped, discounted (0.95) and whitened over the batch, and losses are
    means over tokens.
  Reduction: sum over tokens, mean over a prompt's completions, mean over prompts.

  Args:
    teacher_share: a, 0 <= a < 1; `Sampling.teacher_share` must be the same. Paper: 0.2.
    clip: clip range of rho around 1; >= 0. Paper: 0.2.
    length_normalised: whether R_t is a mean (paper) or a sum, which favours short
      completions.

  Returns:
    Objective; layout SAMPLED; stats LOGP, TEACHER_LOGP, POLICY_TEACHER_KL; columns
    old_logp_BKT; reads tokens.
    Terms: `single_step`, `long_range`.
    Metrics: teacher_kl (KL of the next step summed over tokens, nats per completion),
    clip_fraction (of tokens).

  Raises:
    ValueError: a hyperparameter out of range (when built).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> half, quarter, kl = [[[-0.6931] * 2]], [[[-1.3863] * 2]], [[[0.3, 0.2]]]
    >>> s = scored.from_token_logps(
    ...   half,
    ...   [[[1.0, 1.0]]],
    ...   old_logp_BKT=half,
    ...   extra={"teacher_logp_BKT": quarter, "policy_teacher_kl_BKT": kl},
    ... )
    >>> out = scored.evaluate(objectives.minillm(teacher_share=0.0), s)
    >>> {name: round(float(x), 4) for name, x in out.terms.items()}
    {'single_step': 0.5, 'long_range': 0.6932}
  """
  check = _hparams.check
  check("minillm", "teacher_share", teacher_share, usual=0.2, ge=0, lt=1)
  check("minillm", "clip", clip, usual=0.2, ge=0)

  def surrogate(scored: Scored, return_BKT: Array) -> tuple:
    sampler_logp_BKT = token_stats.log_mixture(
      scored.old_logp_BKT, scored.extra["teacher_logp_BKT"], teacher_share
    )
    return scored.logp_BKT, sampler_logp_BKT, return_BKT, clip, clip

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    del key
    mask_BKT = scored.mask_BKT
    reward_BKT = _on_policy_distillation.token_rewards(scored)
    return_BKT = returns.discounted(reward_BKT, mask_BKT, 1.0) - reward_BKT
    if length_normalised:
      after_BKT = returns.discounted(mask_BKT, mask_BKT, 1.0) - mask_BKT
      return_BKT = masked.per_token(return_BKT, after_BKT)
    return Aux(return_BKT), state

  def loss(scored: Scored, aux: Aux) -> Loss:
    kl_BK = _gkd.divergence(scored, token_stats.POLICY_TEACHER_KL)
    arguments = surrogate(scored, aux.rows)
    long_range_BKT = policy_loss.clipped_surrogate(*arguments)
    long_range_BK = masked.sum_T(long_range_BKT, scored.mask_BKT)
    kl_B, long_range_B = (
      groups.mean(x_BK, scored.present_BK) for x_BK in (kl_BK, long_range_BK)
    )
    terms = {
      "single_step": scored.mean_B(kl_B),
      "long_range": scored.mean_B(long_range_B),
    }
    clipped_BKT = policy_loss.clipped_share(*arguments)
    metrics = {
      "teacher_kl": scored.mean_BK(kl_BK),
      "clip_fraction": policy_loss.token_mean(scored, clipped_BKT),
    }
    return Loss(terms, metrics, kl_B + long_range_B)

  return Objective(
    name="minillm",
    hparams={
      "teacher_share": teacher_share,
      "clip": clip,
      "length_normalised": length_normalised,
    },
    layout=Layout.SAMPLED,
    stats=frozenset(
      {token_stats.LOGP, token_stats.TEACHER_LOGP, token_stats.POLICY_TEACHER_KL}
    ),
    loss=loss,
    columns=frozenset({"old_logp_BKT"}),
    reads_tokens=True,
    prepare=prepare,
    teacher_share=teacher_share,
  )
