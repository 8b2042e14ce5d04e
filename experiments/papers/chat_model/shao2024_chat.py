"""GRPO raises the reward of a chat model's answers."""

from xpo_jax.studies.real_model import claims

TABLE = claims.on_own_samples(
  "GRPO",
  "grpo",
  claim="GRPO raises the reward of its own samples without a critic.",
  where="the definition of the method",
  contrary="A reward that does not rise.",
  arms=(claims.arm("GRPO", "grpo"),),
  predictions=(claims.rises("GRPO"),),
  see="GRPO lies above the start.",
  paper_scale="Not run: DeepSeekMath 7B.",
  on_samples=True,
)
