"""SimPO raises the reward of a chat model's answers, and resists a bias for length."""

from xpo_jax.studies.atlas import table
from xpo_jax.studies.real_model import claims

RATE = 1e-4
SIMPO = claims.arm("SimPO", "simpo", learning_rate=RATE)
LONGER = claims.arm(
  "SimPO, length-biased labels", "simpo", labels="longer", learning_rate=RATE
)
DPO = claims.arm(
  "DPO, length-biased labels", "dpo", labels="longer", learning_rate=RATE
)
TABLE = claims.on_own_samples(
  "SimPO",
  "simpo",
  claim="SimPO raises reward without a reference, and its average over tokens keeps it "
  "from exploiting length.",
  where="the ablation of length normalisation",
  contrary="A reward that does not rise, or completions no shorter than DPO's where "
  "the labels favour length.",
  arms=(SIMPO, LONGER, DPO),
  predictions=(
    claims.rises("SimPO"),
    claims.differs("length", claims.TOKENS, LONGER.series, DPO.series, table.BELOW),
  ),
  see="SimPO lies above the start.",
  paper_scale="Not run: Mistral 7B and Llama-3 8B on UltraFeedback.",
  design=claims.LONGER,
  learning_rate=RATE,
)
