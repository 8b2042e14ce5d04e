"""RLAIF: a labeller that prefers what is shown first, asked in both orders."""

from xpo_jax.studies.atlas.table import ABOVE, Plot, Prediction, Table, gap, sweep
from xpo_jax.studies.exact import sampling

BIASES = (0.0, 0.5, 1.0, 2.0, 4.0)
VERDICTS = ("one", "both orders", "two of one order")

TABLE = Table(
  paper="RLAIF (Google)",
  method="rlaif",
  claim="An AI labeller is biased by position; the mean of its verdicts in both orders "
  "agrees better with people.",
  where="position debiasing",
  design="A labeller whose logit is the gap of qualities, plus up to 4 nats for the "
  "completion shown first, plus noise; people choose by Bradley-Terry. 4,000 pairs. "
  "Agreement of one verdict, of the mean of both orders, and, since that also averages "
  "noise, of two verdicts in one order.",
  contrary="At a bias of 1 nat the mean of both orders agrees no better than one "
  "verdict, or no better than two of one order.",
  departs="The labeller is simulated: the correction is tested, not a language model.",
  arms=tuple(
    arm
    for verdicts in VERDICTS
    for arm in sweep(
      verdicts, sampling.position_bias, "bias", BIASES, verdicts=verdicts
    )
  ),
  predictions=tuple(
    Prediction(
      f"both orders minus {other}, agreement at bias 1",
      "fraction",
      gap("agreement", ("both orders", 1.0), (other, 1.0)),
      ABOVE,
    )
    for other in ("one", "two of one order")
  ),
  plot=Plot(
    None,
    "agreement",
    "bias towards the completion shown first, nats",
    "agreement with people, fraction of pairs",
    "One order loses agreement as its bias grows, however often it is asked.",
  ),
  paper_scale="Not run: PaLM 2 as labeller on TL;DR and HH.",
)
