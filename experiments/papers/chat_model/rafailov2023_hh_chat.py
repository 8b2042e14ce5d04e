"""DPO on people's pairs orders held-out ones, on a chat model."""

from xpo_jax.studies.atlas import table, worlds
from xpo_jax.studies.atlas.table import Arm, Plot, Prediction, Table
from xpo_jax.studies.real_model import cells, claims

PAIRS = "hh_harmless_pairs.jsonl.gz"
DPO = Arm(
  "DPO",
  0.0,
  cells.on_pairs,
  {
    "policy": worlds.SMOLLM2,
    "pairs": PAIRS,
    "objective": "dpo",
    "hparams": {},
    "learning_rate": claims.LEARNING_RATE,
  },
  {PAIRS: "harmless-base/train.jsonl.gz of Anthropic/hh-rlhf on the hub"},
)
TABLE = Table(
  paper="DPO",
  method="dpo_hh",
  claim="The policy that DPO trains on people's preferences orders pairs that it has "
  "not seen as people do: its log-ratio is a reward.",
  where="the derivation of the loss",
  design="SmolLM2-135M-Instruct, six steps of DPO at beta 0.1 on pairs of Anthropic HH "
  "(harmless) with prompts of at most 128 tokens and completions of at most 64, longer "
  "ones cut; 32 held-out pairs.",
  contrary="Log-ratios of chosen completions no higher than those of rejected ones.",
  departs=claims.SMALL,
  arms=(DPO,),
  predictions=(
    Prediction(
      "DPO, log-ratio of chosen minus rejected completions",
      claims.NATS,
      table.metric("margin", ("DPO", None)),
      table.ABOVE,
    ),
  ),
  plot=Plot(
    "rejected",
    "chosen",
    "log-ratio of rejected completions, nats",
    "log-ratio of chosen completions, nats",
    "DPO lies above the diagonal.",
  ),
  seeds=1,
  paper_scale="Not run: Pythia 2.8B on Anthropic HH.",
  world=worlds.CHAT_MODEL,
)
