"""On-policy distillation: policy gradient of the reverse KL to a teacher."""

from xpo_jax.objectives import _hparams
from xpo_jax.ops import groups, masked, policy_loss, returns, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored, State


def token_rewards(scored: Scored) -> Array:
  """log teacher - log pi_old of each sampled token, nats, `[B, K, T]`; 0 on padding.

  Summed over a completion it is an unbiased estimate of -KL(pi_old || teacher).
  """
  gap_BKT = scored.extra["teacher_logp_BKT"] - scored.old_logp_BKT
  return masked.zero_padding(gap_BKT, scored.mask_BKT)


def on_policy_distillation(discount: float = 0.0) -> Objective:
  """On-policy distillation: the sampled reverse KL of each token is its advantage.

  L = - mean_i sum_t A_t pi(y_t|s_t) / pi_old(y_t|s_t),   y_i ~ pi_old
  A_t = sum_{s >= t} discount^(s - t) (log teacher(y_s|s_s) - log pi_old(y_s|s_s))
  At ratio 1 the expected gradient is, with discount 0, that of sum_t
  KL(policy(.|s_t) || teacher(.|s_t)) at the positions that the student visits (`gkd`
  with interpolation 1, without the division by length); with discount 1, that of
  KL(policy || teacher) of whole completions. It needs the teacher's log-probs of the
  sampled tokens alone, not its whole distribution.

  Paper: the reverse KL on the student's completions is of Agarwal et al. 2023,
    arXiv:2306.13649; this form of it is "On-Policy Distillation", Lu and Thinking
    Machines Lab, 2025, and the code of its Tinker cookbook.
  Departs from the paper: the code adds the advantages to those of a reward; `mixture`
    with an objective on rewards does. Its sum over all tokens of the batch is divided
    by the number of completions.
  Reduction: sum over tokens, mean over a prompt's completions, mean over prompts.

  Args:
    discount: of the rewards of later tokens, in [0, 1]. Paper: 0.

  Returns:
    Objective; layout SAMPLED; stats LOGP, TEACHER_LOGP; columns old_logp_BKT; reads
    tokens.
    Terms: `on_policy_distillation`.
    Metrics: teacher_kl (sampled reverse KL, nats per completion).

  Raises:
    ValueError: discount out of range (when built).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> half, quarter = [[[-0.6931]]], [[[-1.3863]]]
    >>> s = scored.from_token_logps(
    ...   half, [[[1.0]]], old_logp_BKT=half, extra={"teacher_logp_BKT": quarter}
    ... )
    >>> out = scored.evaluate(objectives.on_policy_distillation(), s)
    >>> round(float(out.loss), 4), round(float(out.metrics["teacher_kl"]), 4)
    (0.6932, 0.6932)
  """
  _hparams.check("on_policy_distillation", "discount", discount, usual=0, ge=0, le=1)

  def prepare(scored: Scored, state: State, key: Array) -> tuple[Aux, State]:
    del key
    reward_BKT = token_rewards(scored)
    return Aux(returns.discounted(reward_BKT, scored.mask_BKT, discount)), state

  def loss(scored: Scored, aux: Aux) -> Loss:
    ratio_BKT = policy_loss.ratio(scored.logp_BKT, scored.old_logp_BKT)
    loss_BK = masked.sum_T(-aux.rows * ratio_BKT, scored.mask_BKT)
    loss_B = groups.mean(loss_BK, scored.present_BK)
    metrics = {"teacher_kl": scored.mean_BK(-token_rewards(scored).sum(-1))}
    return Loss({"on_policy_distillation": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="on_policy_distillation",
    hparams={"discount": discount},
    layout=Layout.SAMPLED,
    stats=frozenset({token_stats.LOGP, token_stats.TEACHER_LOGP}),
    loss=loss,
    columns=frozenset({"old_logp_BKT"}),
    reads_tokens=True,
    prepare=prepare,
  )
