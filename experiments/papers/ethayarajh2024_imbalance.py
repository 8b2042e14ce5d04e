"""KTO: few thumbs up, weighted."""

from xpo_jax.studies.atlas.table import BELOW, Plot, Prediction, Table, sweep
from xpo_jax.studies.exact import labels

RATIOS = (1.0, 3.0, 10.0)  # the last restores the weight of a tenth


def arms(series, kept, weights):
  """KTO over the weight of desirable completions."""
  return sweep(
    series,
    labels.thumbs,
    "hparams.desirable_weight",
    weights,
    objective="kto",
    hparams={"beta": 0.3, "undesirable_weight": 1.0},
    kept=kept,
  )


TABLE = Table(
  paper="KTO",
  method="kto",
  claim="With up to 90 % fewer desirable completions KTO is as good, if their weight "
  "makes up for their number; without the weight it is not.",
  where="the study of imbalanced data",
  design="Tabular bandit, 16 prompts of 12 completions, 2,000 uniform completions with "
  "thumbs that follow reward; all, or a tenth of those with a thumb up, weighted 1, 3 "
  "or 10. 10 seeds.",
  contrary="A tenth, weighted 10, has less reward than all by 0.2; or weight 1 has no "
  "less reward than weight 10.",
  departs="Reward is exact; beta 0.3 and steps are equal in all arms.",
  arms=(*arms("all", 1.0, (1.0,)), *arms("a tenth", 0.1, RATIOS)),
  predictions=(
    Prediction(
      "a tenth, weight 10, minus all: reward",
      "reward",
      lambda r: r.metric("a tenth", "reward", 10.0) - r.metric("all", "reward"),
      (-0.2, 0.2),
    ),
    Prediction(
      "a tenth, weight 1 minus weight 10: reward",
      "reward",
      lambda r: (
        r.metric("a tenth", "reward", 1.0) - r.metric("a tenth", "reward", 10.0)
      ),
      BELOW,
    ),
  ),
  plot=Plot(
    None,
    "reward",
    "weight of a desirable completion",
    "expected reward above the reference's",
    "Whether reward rises to that of all as the weight restores the balance.",
    log_x=True,
  ),
  paper_scale="Llama 7B on Anthropic HH, OpenAssistant and SHP; beta 0.1.",
)
