"""NPO: forgetting without collapse."""

import math

from xpo_jax.studies.atlas.table import (
  ABOVE,
  BELOW,
  Arm,
  Plot,
  Prediction,
  Table,
  gap,
  gap_at,
  ratio,
)
from xpo_jax.studies.exact import labels

LAST = 12_000.0
FORGOTTEN = -8.0  # nats, of the completions to forget
NPO, ASCENT = "NPO", "gradient ascent"


def arm(series, objective, hparams, sign):
  """A method along small steps of gradient descent."""
  settings = {
    "objective": objective,
    "hparams": hparams,
    "sign": sign,
    "iterations": int(LAST),
    "learning_rate": 0.05,
  }
  return Arm(series, 0.0, labels.unlearning, settings)


TABLE = Table(
  paper="NPO",
  method="npo",
  claim="Gradient ascent on completions to forget diverges at a linear rate and "
  "destroys the rest; NPO diverges logarithmically and keeps more of it.",
  where="abstract",
  design="Contextual bandit, linear policy; the likeliest completions of 8 prompts are "
  "forgotten by 12,000 steps of gradient descent at 0.05; distance of the parameters, "
  "and the other 56 prompts' KL to the reference and how many keep their likeliest "
  "completion, at the end and where both methods have forgotten as much, at a mean "
  "log-probability of -8 nats.",
  contrary="Gradient ascent's distance at the end not 4 times NPO's; or NPO keeps the "
  "likeliest completion on no more of the other prompts at the end; or, at equal "
  "forgetting, on no more of them or at no less KL.",
  departs="No set of completions to retain; a linear policy, as the paper's theorem.",
  arms=(
    arm(ASCENT, "nll", {"reduction": "sequence_sum"}, -1.0),
    arm(NPO, "npo", {"beta": 1.0}, 1.0),
  ),
  predictions=(
    Prediction(
      "distance of gradient ascent over NPO's, at the end",
      "ratio",
      ratio("distance", (ASCENT, LAST), (NPO, LAST)),
      (4.0, math.inf),
    ),
    Prediction(
      "NPO minus gradient ascent, prompts that keep their completion, at the end",
      "fraction",
      gap("kept", (NPO, LAST), (ASCENT, LAST)),
      ABOVE,
    ),
    Prediction(
      "NPO minus gradient ascent, prompts that keep their completion, equal forgetting",
      "fraction",
      gap_at("kept", "forgotten", FORGOTTEN, NPO, ASCENT),
      ABOVE,
    ),
    Prediction(
      "NPO minus gradient ascent, KL of the other prompts, equal forgetting",
      "nats",
      gap_at("kl", "forgotten", FORGOTTEN, NPO, ASCENT),
      BELOW,
    ),
  ),
  plot=Plot(
    "forgotten",
    "kl",
    "log-probability of the forgotten completions, nats",
    "KL of the other prompts, nats",
    "Along training from right to left: NPO ends where gradient ascent goes on; until "
    "then their curves nearly coincide.",
  ),
  paper_scale="Not run: Llama-2 7B on TOFU, beta 0.1, lr 1e-5, 10 epochs.",
  revised="The predictions at equal forgetting and the figure were added after a first "
  "look, in which NPO's lead at the end was that of having forgotten less; steps of "
  "0.5 became ten of 0.05 each, since gradient ascent had passed -8 nats within three.",
)
