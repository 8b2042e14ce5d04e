"""SLiC-HF: pairs of the policy's own samples, ranked by a model, against people's."""

from xpo_jax.studies.atlas.table import (
  ABOVE,
  Arm,
  Prediction,
  Table,
  at_equal_kl,
  frontier,
  gap,
)
from xpo_jax.studies.exact import sources

LAST = 300.0
OWN, OTHERS, SFT = "sample-rank", "direct", "SFT on the ranker's better ones"


def arm(series, objective, hparams, source):
  """A loss along training on pairs of a source."""
  settings = {
    "objective": objective,
    "hparams": hparams,
    "source": source,
    "ranking": {"objective": "bradley_terry", "hparams": {}},
  }
  return Arm(series, 0.0, sources.calibrate, settings)


SLIC = {"delta": 1.0, "weight": 0.1}
TABLE = Table(
  paper="SLiC-HF",
  method="slic",
  claim="Calibration on samples of the SFT model, ordered by a ranker that was fitted "
  "to people's pairs, is better than calibration on those pairs themselves, which "
  "another model wrote, and better than SFT on the ranker's choices.",
  where="the comparison of SLiC-HF-direct and SLiC-HF-sample-rank",
  design="Bandit of 16 prompts of 12 completions; 200 pairs of another policy, "
  "labelled by Bradley-Terry; a ranker linear in the completions' features, a policy "
  "that is a table; first-round pairs of 8 samples of the reference; SLiC with margin "
  "1 and weight 0.1 along 300 steps, at 0.2 nats of KL and at the end.",
  contrary="Ranked samples give no more reward than people's pairs, at equal KL or at "
  "the end; or no more than SFT on the better ones at the end.",
  departs="The weight of the likelihood term is not known from the paper; the target "
  "of that term is the better completion. Reward in place of a judge's win rate.",
  arms=(
    arm(OWN, "slic", SLIC, "sample-rank"),
    arm(OTHERS, "slic", SLIC, "direct"),
    arm(SFT, "nll", {"reduction": "sequence_sum"}, "sample-rank"),
  ),
  predictions=(
    at_equal_kl(OWN, OTHERS, 0.2),
    Prediction(
      "sample-rank minus direct, reward at the end",
      "reward",
      gap("reward", (OWN, LAST), (OTHERS, LAST)),
      ABOVE,
    ),
    Prediction(
      "sample-rank minus SFT on the ranker's choices, reward at the end",
      "reward",
      gap("reward", (OWN, LAST), (SFT, LAST)),
      ABOVE,
    ),
  ),
  plot=frontier(
    "At one KL ranked samples are further up than people's pairs, which move the "
    "policy further; SFT stays below and stops earlier.",
  ),
  paper_scale="Not run: T5-Large on TL;DR, ranker T5-XXL, 8 samples at temperature "
  "0.7, margin 1, lr 1e-5, batch 32.",
  revised="In a first design the policy was linear in half of the features and "
  "measured on held-out prompts; pairs of any policy taught it alike.",
)
