"""Online DPO raises the reward of a chat model's answers."""

from xpo_jax.studies.real_model import claims

TABLE = claims.on_own_samples(
  "Online DPO (OAIF)",
  "online_dpo",
  claim="DPO on pairs of the current policy's samples raises reward.",
  where="abstract",
  contrary="A reward that does not rise.",
  arms=(claims.arm("online DPO", "online_dpo"),),
  predictions=(claims.rises("online DPO"),),
  see="Online DPO lies above the start.",
  paper_scale="Not run: PaLM 2 on TL;DR and HH.",
  on_samples=True,
)
