"""NPO: forgetting without collapse."""

from xpo_jax.studies.atlas.table import ABOVE, Arm, Plot, Prediction, Table
from xpo_jax.studies.exact import labels

LAST = 1200.0


def arm(series, objective, hparams, sign):
  """A method along 1,200 steps of gradient descent."""
  settings = {"objective": objective, "hparams": hparams, "sign": sign}
  return Arm(series, 0.0, labels.unlearning, settings)


TABLE = Table(
  paper="NPO",
  method="npo",
  claim="Gradient ascent on completions to forget diverges at a linear rate and "
  "destroys the rest; NPO diverges logarithmically and keeps more of it.",
  where="abstract",
  design="Contextual bandit, linear policy; the likeliest completions of 8 prompts are "
  "forgotten by 1,200 steps of gradient descent at 0.5; the other 56 prompts' KL to "
  "the reference, and the distance of the parameters. 10 seeds.",
  contrary="Gradient ascent's distance at the end not 4 times NPO's; or NPO keeps the "
  "likeliest completion on no more of the other prompts.",
  departs="No set of completions to retain; a linear policy, as the paper's theorem.",
  arms=(
    arm("gradient ascent", "nll", {"reduction": "sequence_sum"}, -1.0),
    arm("NPO", "npo", {"beta": 1.0}, 1.0),
  ),
  predictions=(
    Prediction(
      "distance of gradient ascent over NPO's, at the end",
      "ratio",
      lambda r: (
        r.metric("gradient ascent", "distance", LAST)
        / r.metric("NPO", "distance", LAST)
      ),
      (4.0, 1e6),
    ),
    Prediction(
      "NPO minus gradient ascent, prompts that keep their completion",
      "fraction",
      lambda r: (
        r.metric("NPO", "kept", LAST) - r.metric("gradient ascent", "kept", LAST)
      ),
      ABOVE,
    ),
  ),
  plot=Plot(
    None,
    "distance",
    "updates",
    "distance of the parameters",
    "Gradient ascent's distance grows in proportion to the updates, NPO's with their "
    "logarithm.",
    log_x=True,
  ),
  paper_scale="Llama-2 7B on TOFU, beta 0.1, lr 1e-5, 10 epochs.",
)
