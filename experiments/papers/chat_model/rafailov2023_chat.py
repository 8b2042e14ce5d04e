"""DPO raises the reward of a chat model's answers; flipped labels lower it."""

from xpo_jax.studies.atlas import table
from xpo_jax.studies.real_model import claims

FLIPPED = claims.arm("DPO, flipped labels", "dpo", labels="flipped")
TABLE = claims.on_own_samples(
  "DPO",
  "dpo",
  claim="DPO on preference pairs raises the reward that the labels were made by.",
  where="the frontier of reward and KL on controlled sentiment",
  contrary="A reward that does not rise, or does not fall with flipped labels.",
  arms=(claims.DPO, FLIPPED),
  predictions=(
    claims.rises("DPO"),
    claims.differs(
      "reward", claims.REWARD, FLIPPED.series, claims.START.series, table.BELOW
    ),
  ),
  see="DPO lies above the start, flipped labels below it.",
  paper_scale="Not run: GPT-2 large on IMDb.",
)
