"""DPOP: DPO may lower the chosen completions; a penalty forbids it."""

import math

from xpo_jax.studies.atlas.table import BELOW, Table
from xpo_jax.studies.atlas.table_parts import change, changes, over_beta

BETAS = (0.1, 0.3, 0.55)

TABLE = Table(
  paper="DPOP (Smaug)",
  method="dpop",
  claim="DPO can raise the margin of a pair while it lowers the log-probability of the "
  "chosen completion; DPOP's penalty keeps that at the reference's or above.",
  where="abstract",
  design="Contextual bandit, linear policy, 1,000 pairs; mean change of the chosen "
  "completions' log-probability on the training pairs, DPO and DPOP with penalty 50, "
  "over three betas.",
  contrary="At beta 0.3 DPO's chosen completions do not fall; or DPOP's fall by more "
  "than 0.1 nats.",
  departs="Pairs are of random completions: the paper's small edit distances are not "
  "represented, and its collapse by them is not tested.",
  arms=(
    *over_beta("DPO", "dpo", BETAS),
    *over_beta("DPOP", "dpop", BETAS, hparams={"penalty": 50.0}),
  ),
  predictions=(
    change("DPO", "chosen", BELOW),
    change("DPOP", "chosen", (-0.1, math.inf)),
  ),
  plot=changes(
    "DPO's chosen completions fall further the weaker the tie; DPOP's do not fall."
  ),
  paper_scale="Not run: Smaug 7B to 72B on MetaMath, ARC and HellaSwag pairs.",
  revised="DPOP's range lost an upper end, 10 nats, that nothing limits, after a first "
  "look at 0.004 nats.",
)
