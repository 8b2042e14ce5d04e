"""A reward model from ratings, where `kwise` and `bradley_terry` read orders."""

from xpo_jax.ops import masked, token_stats
from xpo_jax.types import Aux, Layout, Loss, Objective, Scored


def pointwise() -> Objective:
  """Pointwise reward model: (r - reward)^2, each rated answer alone.

  With r the scalar head at the last token of the completion. Unlike a model of
  comparisons it knows the scale of the ratings, and takes over every rater's own zero.
  HelpSteer2 (Wang et al. 2024, arXiv:2406.08673, Eq. not checked) trains one so for
  each of five attributes. Layout RATED, needs VALUE, columns reward_BK; mean over
  answers.
  """

  def loss(scored: Scored, aux: Aux) -> Loss:
    del aux
    value_BK = masked.last(scored.value_BKT, scored.mask_BKT)
    square_B = (value_BK[:, 0] - scored.reward_BK[:, 0]) ** 2
    return Loss({"pointwise": scored.mean_B(square_B)}, {}, square_B)

  stats = frozenset({token_stats.VALUE})
  columns = frozenset({"reward_BK"})
  return Objective(
    name="pointwise",
    hparams={},
    layout=Layout.RATED,
    stats=stats,
    loss=loss,
    columns=columns,
  )
