"""LiPO: longer lists, and weights of a ranking metric."""

from xpo_jax.studies.atlas.table import Table, at_equal_kl, frontier, sweep
from xpo_jax.studies.exact import labels

BETAS = (0.1, 0.3, 0.55, 1.0, 1.7, 3.0)
KL = 0.3


def arms(series, objective, size):
  """A listwise loss over its betas, with as many prompts whatever the lists' size."""
  return sweep(
    series, labels.lists, "hparams.beta", BETAS, objective=objective, size=size
  )


TABLE = Table(
  paper="LiPO",
  method="lipo",
  claim="With more completions a prompt LiPO gets better, and its lambda weights do "
  "better than Plackett-Luce on the same lists.",
  where="the comparison of ranking losses and of list sizes",
  design="Contextual bandit; a linear policy that sees half of the features which make "
  "the reward; 300 lists of 2 or 8 completions with graded labels; true reward at 0.3 "
  "nats, held-out prompts.",
  contrary="Lists of 8 teach no more than lists of 2; or LiPO no more than "
  "Plackett-Luce.",
  departs="Labels are single noisy judgements, not means of a ranking model.",
  arms=(
    *arms("LiPO, lists of 8", "lipo", 8),
    *arms("LiPO, lists of 2", "lipo", 2),
    *arms("Plackett-Luce, lists of 8", "plackett_luce", 8),
  ),
  predictions=(
    at_equal_kl("LiPO, lists of 8", "LiPO, lists of 2", KL),
    at_equal_kl("LiPO, lists of 8", "Plackett-Luce, lists of 8", KL),
  ),
  plot=frontier(
    "A curve further up has more reward at the same KL; each point is a beta."
  ),
  paper_scale="Not run: T5 large on TL;DR and HH, lists of 8, beta 0.05, lr 2e-5, "
  "batch 32.",
  revised="The betas, 0.01 to 1, were moved up to 0.1 to 3 after a first look, in "
  "which some seeds did not bracket 0.3 nats.",
)
