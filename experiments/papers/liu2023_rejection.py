"""RSO: rejection sampling from candidates of the SFT policy."""

import math

from xpo_jax.studies.atlas.table import BELOW, Plot, Prediction, Table, gap, sweep
from xpo_jax.studies.exact import sampling

CANDIDATES = (4, 16, 64, 256)

TABLE = Table(
  paper="RSO",
  method="rso",
  claim="Accepting candidates of the SFT policy with probability exp((r - max r) / "
  "beta) samples the optimal policy, ref exp(r / beta) / Z.",
  where="Algorithm 1",
  design="20 actions, Gaussian rewards, beta 0.5; the first accepted of 4 to 256 "
  "candidates, 4,000 times; total variation to the target, beside that of as many "
  "samples of the target itself.",
  contrary="With 256 candidates the distance exceeds that of the target's own samples "
  "by 0.02; or it does not fall from 4 candidates to 64.",
  departs="One acceptance: several without replacement have another law.",
  arms=sweep("RSO", sampling.rejection, "candidates", CANDIDATES),
  predictions=(
    Prediction(
      "distance to the target, 256 candidates, above chance",
      "total variation",
      lambda r: r.metric("RSO", "distance", 256) - r.metric("RSO", "chance", 256),
      (-math.inf, 0.02),
    ),
    Prediction(
      "distance to the target, 64 candidates minus 4",
      "total variation",
      gap("distance", ("RSO", 64), ("RSO", 4)),
      BELOW,
    ),
  ),
  plot=Plot(
    None,
    "distance",
    "candidates",
    "total variation to the optimal policy",
    "The law of the accepted approaches the optimal policy's as candidates are added.",
    log_x=True,
  ),
  paper_scale="Not run: T5 large and XXL on TL;DR and HH; 64 candidates, 8 accepted, "
  "beta 0.5, gamma 0.05.",
  revised="The distance above chance lost a lower end, -0.02, that nothing limits, "
  "after a first look at 0.000.",
)
