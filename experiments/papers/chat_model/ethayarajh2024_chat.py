"""KTO raises the reward of a chat model's answers from unpaired labels."""

from xpo_jax.studies.real_model import claims

TABLE = claims.on_own_samples(
  "KTO",
  "kto",
  claim="KTO raises reward from completions that are called desirable or undesirable, "
  "without pairs.",
  where="abstract",
  contrary="A reward that does not rise.",
  arms=(claims.DPO, claims.arm("KTO", "kto")),
  predictions=(claims.rises("KTO"),),
  see="KTO lies above the start.",
  paper_scale="Not run: Pythia and Llama up to 30B.",
  design="Chosen completions are desirable, rejected ones undesirable.",
)
