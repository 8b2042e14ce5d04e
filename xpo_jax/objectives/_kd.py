"""KD: knowledge distillation on given completions."""

from xpo_jax.objectives import _gkd, _hparams
from xpo_jax.ops import masked, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def kd(interpolation: float = 0.0) -> Objective:
  """KD: divergence to the teacher at every position of given completions.

  L = mean over completions of 1/|y| sum_t KL(teacher(.|s_t) || policy(.|s_t))
  over the whole vocabulary: word-level distillation, "supervised KD" in the paper of
  `gkd`, whose loss this is on a fixed data set (lambda = 0). On the teacher's own
  completions sum_t is an unbiased estimate of KL(teacher || policy) of sequences. For
  interpolation > 0 it is the divergence D of `gkd`.

  Paper: Hinton et al. 2015, arXiv:1503.02531; on the tokens of sequences Kim and Rush
    2016, arXiv:1606.07947.
  Departs from the paper: no likelihood of the completions beside it (`mixture` with
    `sft` adds it); no temperature of its own. The KL differs from their cross-entropy
    by the teacher's entropy, which is constant.
  Reduction: mean over a completion's tokens, then over completions, as in `gkd`. Reads
    column 0 of any layout.

  Args:
    interpolation: see `gkd`. Paper: 0, the forward KL.

  Returns:
    Objective; layout DEMO; stats TEACHER_KL, or another `token_stats.teacher_jsd`.
    Terms: `kd`.
    Metrics: seq_divergence (D summed over tokens, nats per completion).

  Raises:
    ValueError: interpolation out of range (when built).

  Example:
    >>> from xpo_jax import objectives, scored
    >>> from xpo_jax.testing import toy
    >>> o = objectives.kd()
    >>> same = toy.scored_for(o, policy_equals_ref=True)  # all roles, the teacher too
    >>> abs(round(float(scored.evaluate(o, same).loss), 4))
    0.0
  """
  _hparams.check("kd", "interpolation", interpolation, usual=0, ge=0, le=1)
  stat = token_stats.teacher_jsd(interpolation)

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    divergence_B = _gkd.divergence(scored, stat)[:, 0]
    loss_B = masked.per_token(divergence_B, masked.length(scored.mask_BKT)[:, 0])
    metrics = {"seq_divergence": scored.mean_B(divergence_B)}
    return Loss({"kd": scored.mean_B(loss_B)}, metrics, loss_B)

  return Objective(
    name="kd",
    hparams={"interpolation": interpolation},
    layout=Layout.DEMO,
    stats=frozenset({stat}),
    loss=loss,
  )
