"""CPO: SFT is as good as its data, a contrast of good and less good is better."""

from xpo_jax.studies.atlas.table import ABOVE, Arm, Prediction, Table, frontier, gap
from xpo_jax.studies.exact import ranked

SYSTEMS, LAST = 3, 300.0
BETA, WEIGHT = 1.0, 0.1
ANY, BEST, OWN = "SFT on any", "SFT on the best", "CPO"


def arm(series, objective, hparams, demonstration="best"):
  """A loss along training on the same triples."""
  settings = {
    "objective": objective,
    "hparams": hparams,
    "size": SYSTEMS,
    "demonstration": demonstration,
  }
  return Arm(series, 0.0, ranked.train, settings)


SFT = {"reduction": "sequence_sum"}
TABLE = Table(
  paper="CPO",
  method="cpo",
  claim="SFT cannot be better than the completions it imitates, even the best of "
  "several; CPO, which contrasts the best with the worst, goes beyond them.",
  where="abstract, and the section on SFT and the quality of references",
  design="Contextual bandit, linear policy, held-out prompts; 300 triples of "
  "different samples of the reference, scored with noise of half a standard "
  "deviation; SFT on any one of the triple or on its best, CPO on best and worst with "
  "beta 1 and likelihood weight 0.1; 300 steps.",
  contrary="SFT's reward differs from its data's by 0.1; or the best of three teach "
  "SFT no more than any; or CPO's reward is no higher than SFT's, or than its own "
  "chosen completions'.",
  departs="Known rewards with noise in place of models that score translations; beta 1 "
  "for gaps of single nats, weight 0.1 for a mean over about ten tokens.",
  arms=(
    arm(ANY, "nll", SFT, "any"),
    arm(BEST, "nll", SFT),
    arm(OWN, "cpo", {"beta": BETA, "weight": WEIGHT}),
  ),
  predictions=(
    # Features whose mean SFT matches make the reward: on its own prompts it is exact.
    Prediction(
      "SFT on the best, reward minus its data's",
      "reward",
      lambda r: r.metric(BEST, "reward", LAST) - r.metric(BEST, "data", LAST),
      (-0.1, 0.1),
    ),
    Prediction(
      "SFT on the best minus SFT on any, reward",
      "reward",
      gap("reward", (BEST, LAST), (ANY, LAST)),
      ABOVE,
    ),
    Prediction(
      "CPO minus SFT on the best, reward",
      "reward",
      gap("reward", (OWN, LAST), (BEST, LAST)),
      ABOVE,
    ),
    Prediction(
      "CPO, reward minus its chosen completions'",
      "reward",
      lambda r: r.metric(OWN, "reward", LAST) - r.metric(OWN, "data", LAST),
      ABOVE,
    ),
  ),
  plot=frontier(
    "Along training SFT stops at the reward of its data; CPO goes on beyond it.",
  ),
  paper_scale="Not run: ALMA 13B, LoRA, 22,000 parallel sentences of 10 directions; "
  "beta 0.1, likelihood weight 1, lr 1e-4, 1 epoch.",
)
