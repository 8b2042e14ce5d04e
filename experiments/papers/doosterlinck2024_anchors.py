"""APO: which of a pair's completions rises and which falls."""

from xpo_jax.studies.atlas.table import ABOVE, BELOW, Table
from xpo_jax.studies.atlas.table_parts import change, changes, over_beta

BETAS = (0.1, 0.3, 1.0)

TABLE = Table(
  paper="APO",
  method="apo",
  claim="APO-zero raises the chosen completions and lowers the rejected ones; APO-down "
  "lowers both.",
  where="the definition of both losses",
  design="Contextual bandit, linear policy, 1,000 pairs; mean changes of the pairs' "
  "log-probabilities on the training pairs over three betas.",
  contrary="At beta 0.3 APO-zero lowers the chosen completions or raises the rejected "
  "ones; or APO-down raises either.",
  departs="One set of pairs for both: the paper matches each to data.",
  arms=(
    *over_beta("APO-zero", "apo_zero", BETAS),
    *over_beta("APO-down", "apo_down", BETAS),
  ),
  predictions=(
    change("APO-zero", "chosen", ABOVE),
    change("APO-zero", "rejected", BELOW),
    change("APO-down", "chosen", BELOW),
    change("APO-down", "rejected", BELOW),
  ),
  plot=changes(
    "Below 0 chosen completions have become less likely: on pairs of uniform "
    "completions with either loss, at every beta."
  ),
  paper_scale="Not run: Llama-3 8B Instruct on CLAIR pairs, beta 0.1, lr 2e-7, batch "
  "64.",
  revised="The caption was changed after a first look: it had said that chosen "
  "completions rise with APO-zero.",
)
