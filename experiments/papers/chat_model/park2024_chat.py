"""R-DPO writes shorter answers than DPO where the labels favour length."""

from xpo_jax.studies.atlas import table
from xpo_jax.studies.real_model import claims

R_DPO = claims.arm("R-DPO, length-biased labels", "r_dpo", labels="longer", alpha=0.05)
DPO = claims.DPO_LONGER.series
TABLE = claims.on_own_samples(
  "R-DPO",
  "r_dpo",
  claim="DPO exploits a length bias of the labels and lengthens its completions; a "
  "penalty on length in the loss keeps them shorter.",
  where="abstract",
  contrary="Completions of DPO no longer than the start's, or of R-DPO no shorter than "
  "DPO's.",
  arms=(claims.DPO_LONGER, R_DPO),
  predictions=(
    claims.differs("length", claims.TOKENS, DPO, claims.START.series, table.ABOVE),
    claims.differs("length", claims.TOKENS, R_DPO.series, DPO, table.BELOW),
  ),
  see="Both lie above the start.",
  paper_scale="Not run: Pythia 2.8B on Anthropic HH and TL;DR.",
  design=f"{claims.LONGER} R-DPO has alpha 0.05 a token, which is ours.",
)
