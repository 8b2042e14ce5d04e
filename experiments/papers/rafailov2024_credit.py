"""From r to Q*: a policy trained on pairs assigns credit to tokens."""

from xpo_jax.studies.atlas.table import ABOVE, Arm, Plot, Prediction, Table, sweep
from xpo_jax.studies.exact import trees

COUNTS = (300, 3000)


def arms(series, objective):
  """A loss over the number of pairs."""
  return sweep(
    series, trees.pairs, "count", COUNTS, objective=objective, hparams={"beta": 0.5}
  )


TABLE = Table(
  paper="From r to Q*",
  method="token_dpo",
  claim="DPO fits the optimal advantages of a token MDP: its log-ratios are the credit "
  "of each token, though the labels are of whole completions; and search by likelihood "
  "is search by value.",
  where="abstract",
  design="Trees of 4 tokens out of 3, 40 states, random token rewards, beta 0.5. The "
  "population's loss over 972 pairs, which connect all 81 completions, against the "
  "soft Bellman optimum; then 300 and 3,000 pairs, correlation of log-ratios with the "
  "optimal advantage; greedy and 3-beam search on the population's policy. 10 seeds.",
  contrary="A difference above 2 % of the largest advantage in the population; or a "
  "correlation below 0.8 with 3,000 pairs, or no higher than with 300.",
  departs="The MDP is enumerated; the paper shows heat maps and search on TL;DR. With "
  "a fixed length, search does not over-optimise.",
  arms=(
    *arms("sampled pairs", "token_dpo"),
    Arm(
      "population",
      972.0,
      trees.identity,
      {"objective": "token_dpo", "hparams": {"beta": 0.5}},
    ),
  ),
  predictions=(
    Prediction(
      "population, largest error over the largest advantage",
      "fraction",
      lambda r: r.metric("population", "error") / r.metric("population", "scale"),
      (-0.001, 0.02),
    ),
    Prediction(
      "3,000 pairs, correlation with the optimal advantage",
      "correlation",
      lambda r: r.metric("sampled pairs", "credit", 3000),
      (0.8, 1.0),
    ),
    Prediction(
      "3,000 pairs minus 300, correlation with the optimal advantage",
      "correlation",
      lambda r: (
        r.metric("sampled pairs", "credit", 3000)
        - r.metric("sampled pairs", "credit", 300)
      ),
      ABOVE,
    ),
    Prediction(
      "population, return lost by 3 beams",
      "fraction",
      lambda r: r.metric("population", "beam3"),
      (-0.001, 0.01),
    ),
  ),
  plot=Plot(
    None,
    "credit",
    "pairs",
    "correlation with the optimal advantage",
    "Credit of single tokens is learned from labels of whole completions.",
    log_x=True,
  ),
  paper_scale="Pythia 2.8B on TL;DR and HH, DPO's own defaults.",
)
