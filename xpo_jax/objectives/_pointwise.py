"""Pointwise reward model: regression on ratings."""

from xpo_jax.ops import masked, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def pointwise() -> Objective:
  """Pointwise reward model: the squared error (r - reward)^2 of each completion.

  With r the scalar head at the last token of the completion, which it has read. Unlike
  a comparison model it learns the scale of the ratings, and also each rater's zero
  point. HelpSteer2 (Wang et al. 2024, arXiv:2406.08673) trains one for each of five
  attributes. Layout RATED; stats REWARD_HEAD; columns reward_BK. Mean over completions.
  """

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    predicted_BK = masked.last(scored.reward_head_BKT, scored.mask_BKT)
    square_B = (predicted_BK[:, 0] - scored.reward_BK[:, 0]) ** 2
    return Loss({"pointwise": scored.mean_B(square_B)}, {}, square_B)

  return Objective(
    name="pointwise",
    hparams={},
    layout=Layout.RATED,
    stats=frozenset({token_stats.REWARD_HEAD}),
    loss=loss,
    columns=frozenset({"reward_BK"}),
  )
