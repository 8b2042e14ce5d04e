"""RLOO raises the reward of a chat model's answers."""

from xpo_jax.studies.real_model import claims

TABLE = claims.on_own_samples(
  "RLOO",
  "rloo",
  claim="RLOO raises the reward of its own samples.",
  where="the comparison of reward over training",
  contrary="A reward that does not rise.",
  arms=(claims.arm("RLOO", "rloo"),),
  predictions=(claims.rises("RLOO"),),
  see="RLOO lies above the start.",
  paper_scale="Not run: Pythia 6.9B and Llama 7B on TL;DR and HH.",
  on_samples=True,
)
