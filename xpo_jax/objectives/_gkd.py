"""GKD: generalised knowledge distillation on the student's own completions."""

from xpo_jax.objectives import _hparams
from xpo_jax.ops import groups, masked, token_stats
from xpo_jax.types import Array, Aux, Layout, Loss, Objective, Scored, TokenStat


def divergence(scored: Scored, stat: TokenStat) -> Array:
  """A statistic per token summed over each completion, `[B, K]`."""
  return masked.sum_T(scored.extra[stat.field], scored.mask_BKT)


def gkd(interpolation: float = 0.5) -> Objective:
  """GKD: divergence to the teacher at every position of the student's completions.

  L = mean_i 1/|y_i| sum_t D(teacher(.|s_t) || policy(.|s_t)),   y_i ~ policy
  D = b KL(teacher || m) + (1 - b) KL(policy || m),   m = b teacher + (1 - b) policy
  over the whole vocabulary, with b the interpolation. At b = 0 it is the forward KL,
  KL(teacher || policy), at b = 1 the reverse KL, the limits of D / b and D / (1 - b).
  No gradient flows through the sampling.

  Paper: Agarwal et al. 2023, arXiv:2306.13649, Eq. 4; D is Eq. 1.
  Departs from the paper: this is its loss on the student's completions (lambda = 1).
    For a fraction lambda of them add `kd` on a fixed data set, as an auxiliary loss
    of weight (1 - lambda) / lambda: the expected gradient is 1 / lambda times the
    paper's, which draws for each batch which of both it is. The paper's b is called
    beta. TRL averages over all tokens of the batch instead of over each completion's.
  Reduction: mean over a completion's tokens, mean over a prompt's completions, mean
    over prompts.

  Args:
    interpolation: 0 <= b <= 1, static. TRL's default: 0.5. Paper: 0.1 on translation,
      the forward KL on the other tasks.

  Returns:
    Objective; layout SAMPLED; stats TEACHER_JSD_0.5, of `token_stats.teacher_jsd`.
    Terms: `gkd`.
    Metrics: seq_divergence (D summed over tokens, nats per completion).

  Raises:
    ValueError: interpolation out of range (when built).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> o = objectives.gkd()
    >>> same = toy.scored_for(o, policy_equals_ref=True)  # all roles, the teacher too
    >>> abs(round(float(scored.evaluate(o, same).loss), 4))
    0.0
  """
  _hparams.check("gkd", "interpolation", interpolation, usual=0.5, ge=0, le=1)
  stat = token_stats.teacher_jsd(interpolation)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    divergence_BK = divergence(scored, stat)
    mean_BK = masked.per_token(divergence_BK, masked.length(scored.mask_BKT))
    loss_B = groups.mean(mean_BK, scored.present_BK)
    metrics = {"seq_divergence": scored.mean_BK(divergence_BK)}
    return Loss({"gkd": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="gkd",
    hparams={"interpolation": interpolation},
    layout=Layout.SAMPLED,
    stats=frozenset({stat}),
    loss=loss,
  )
