"""IPO raises the reward of a chat model's answers."""

from xpo_jax.studies.real_model import claims

TABLE = claims.on_own_samples(
  "IPO",
  "ipo",
  claim="IPO on preference pairs raises the preference for the policy's completions.",
  where="the definition of its objective",
  contrary="A reward that does not rise.",
  arms=(claims.DPO, claims.arm("IPO", "ipo")),
  predictions=(claims.rises("IPO"),),
  see="IPO lies above the start.",
  paper_scale="The paper has no language model.",
)
