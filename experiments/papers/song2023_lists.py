"""PRO: longer rankings teach more than pairs, and more than their best alone."""

from xpo_jax.studies.atlas.table import (
  ABOVE,
  Arm,
  Prediction,
  Table,
  at_equal_kl,
  frontier,
  gap,
)
from xpo_jax.studies.exact import ranked

NATS, LAST = 0.3, 300.0
LISTS = 100
FIVE, TWO, SFT = "PRO, lists of 5", "PRO, lists of 2", "SFT on the best of 5"


def arm(series, objective, hparams, size):
  """A loss along training on as many prompts, whatever the lists' size."""
  settings = {"objective": objective, "hparams": hparams, "size": size, "count": LISTS}
  return Arm(series, 0.0, ranked.train, settings)


PRO = {"sft_weight": 0.05}
TABLE = Table(
  paper="PRO",
  method="pro",
  claim="Longer rankings of a prompt's completions teach PRO more than pairs do, and "
  "more than SFT learns from their best.",
  where="abstract of the first version",
  design="Contextual bandit, linear policy, held-out prompts; 100 prompts with 2 or 5 "
  "different samples of the reference, scored with noise of half a standard "
  "deviation; PRO with SFT weight 0.05, and SFT on the best of 5, along 300 steps, "
  "compared at 0.3 nats of KL and at the end.",
  contrary="Lists of 5 give no more reward than lists of 2 at equal KL or at the end; "
  "or PRO no more than SFT on the best of the same lists.",
  departs="Completions are the reference's own samples, not other models'.",
  arms=(
    arm(FIVE, "pro", PRO, 5),
    arm(TWO, "pro", PRO, 2),
    arm(SFT, "nll", {"reduction": "token_mean"}, 5),
  ),
  predictions=(
    at_equal_kl(FIVE, TWO, NATS),
    Prediction(
      "lists of 5 minus lists of 2, reward at the end",
      "reward",
      gap("reward", (FIVE, LAST), (TWO, LAST)),
      ABOVE,
    ),
    at_equal_kl(FIVE, SFT, NATS),
  ),
  plot=frontier(
    "At one KL lists of 5 are a little further up; but their SFT term is 16 times as "
    "heavy as that of pairs, which go further and end higher.",
  ),
  paper_scale="Not run: LLaMA 7B on HH with completions of ChatGPT and Alpaca, lists "
  "of 2 to 5; SFT weight 0.05, lr 5e-6, 2 epochs.",
)
