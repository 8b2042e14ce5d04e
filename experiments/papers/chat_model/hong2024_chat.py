"""ORPO raises the reward of a chat model's answers without a reference."""

from xpo_jax.studies.real_model import claims

TABLE = claims.on_own_samples(
  "ORPO",
  "orpo",
  claim="ORPO raises reward in one stage, without a reference.",
  where="abstract",
  contrary="A reward that does not rise.",
  arms=(claims.DPO, claims.arm("ORPO", "orpo")),
  predictions=(claims.rises("ORPO"),),
  see="ORPO lies above the start.",
  paper_scale="Not run: OPT 125M to Mistral 7B.",
)
