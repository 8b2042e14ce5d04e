"""SimPO: the average over tokens, against the exploitation of length."""

from xpo_jax.studies.atlas.table import ABOVE, KL, Arm, Plot, Prediction, Table, gap_at
from xpo_jax.studies.exact import sentences

BETA, GAMMA = 2.0, 0.5
LENGTH = 4.0  # about the reference's mean: sums are as large as averages times this
NATS = 0.3  # of KL, at which both are compared
OWN, SUM = "SimPO", "sum over tokens"


def arm(series, beta, per_token):
  """A loss along training; a sum's beta is per completion, not per token."""
  settings = {
    "objective": "simpo",
    "hparams": {"beta": beta, "gamma": GAMMA},
    "per_token": per_token,
  }
  return Arm(series, 0.0, sentences.pairs, settings)


TABLE = Table(
  paper="SimPO",
  method="simpo",
  claim="The average over tokens keeps SimPO from exploiting length: with the sum in "
  "its place the policy prefers longer completions and writes longer ones.",
  where="the ablation of length normalisation",
  design="Trees of completions of 1 to 5 tokens, a table of logits, rewards "
  "independent of length; 400 pairs of the reference's samples; SimPO with beta 2 and "
  "gamma 0.5, and the same loss on sums with a quarter of the beta; exact "
  "expectations along 300 steps, compared at 0.3 nats of KL.",
  contrary="The loss on sums does not lengthen its completions; or not more than "
  "SimPO; or its log-probability per token is no more correlated with length.",
  departs="Completions of at most 5 tokens, known rewards; log-probabilities per token "
  "are correlated with length by Pearson's coefficient.",
  arms=(arm(OWN, BETA, True), arm(SUM, BETA / LENGTH, False)),
  predictions=(
    Prediction(
      f"sum over tokens, length minus the reference's at {NATS} nats",
      "tokens",
      lambda r: r.at(SUM, "length", "root_kl", NATS**0.5),
      ABOVE,
    ),
    Prediction(
      f"sum over tokens minus SimPO, length at {NATS} nats",
      "tokens",
      gap_at("length", "root_kl", NATS**0.5, SUM, OWN),
      ABOVE,
    ),
    Prediction(
      "sum over tokens minus SimPO, correlation of log-probability per token and "
      f"length at {NATS} nats",
      "correlation",
      gap_at("correlation", "root_kl", NATS**0.5, SUM, OWN),
      ABOVE,
    ),
  ),
  plot=Plot(
    "kl",
    "length",
    KL,
    "expected length minus the reference's, tokens",
    "As KL grows the loss on sums lengthens completions; under SimPO their mean length "
    "falls a little, and its interval reaches 0.",
  ),
  paper_scale="Not run: Mistral 7B and Llama-3 8B on UltraFeedback; beta 2 to 2.5, "
  "gamma 0.3 to 1.6, lr 3e-7 to 1e-6, batch 128, 1 epoch.",
  revised="A first design compared five betas after 300 steps, all of them beyond 0.3 "
  "nats.",
)
