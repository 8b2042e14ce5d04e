"""NCA: an absolute target for the chosen completions."""

from xpo_jax.studies.atlas.table import ABOVE, BELOW, Table
from xpo_jax.studies.atlas.table_parts import change, changes, over_beta

BETAS = (0.1, 0.3, 0.55)

TABLE = Table(
  paper="NCA, InfoNCA",
  method="nca",
  claim="DPO, which optimises relative rewards alone, lets the likelihood of the "
  "chosen completions fall; NCA, which optimises each completion's, does not.",
  where="abstract",
  design="Contextual bandit, linear policy, 1,000 pairs; mean change of the chosen "
  "completions' log-probability on the training pairs over three betas.",
  contrary="At beta 0.3 DPO's chosen completions do not fall, or NCA's do.",
  departs="Pairs, where the paper has lists of rewards too.",
  arms=(*over_beta("DPO", "dpo", BETAS), *over_beta("NCA", "nca", BETAS)),
  predictions=(change("DPO", "chosen", BELOW), change("NCA", "chosen", ABOVE)),
  plot=changes(
    "DPO's chosen completions end far below 0, the reference's log-probability, at "
    "every beta; NCA's end a nat below at 0.1, near 0 at 0.3 and above it at 0.55."
  ),
  paper_scale="Not run: Mistral 7B on UltraFeedback, beta 0.01, QLoRA, lr 5e-6, batch "
  "32.",
  revised="The caption was changed after a first look: it had said that NCA's chosen "
  "completions end above the reference's.",
)
