"""TDPO2 raises the reward of a chat model's answers at less KL than DPO."""

from xpo_jax.studies.atlas import table
from xpo_jax.studies.real_model import claims

TABLE = claims.on_own_samples(
  "TDPO",
  "tdpo2",
  claim="TDPO2 aligns as DPO does, and its policy stays nearer to the reference.",
  where="abstract",
  contrary="A reward that does not rise, or no less KL than DPO's.",
  arms=(claims.DPO, claims.arm("TDPO2", "tdpo2")),
  predictions=(
    claims.rises("TDPO2"),
    claims.differs("kl", claims.NATS, "TDPO2", "DPO", table.BELOW),
  ),
  see="TDPO2 lies above the start, and left of DPO.",
  paper_scale="Not run: GPT-2 large on IMDb, Pythia 2.8B on HH.",
)
