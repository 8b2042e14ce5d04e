"""DPO of Llama 3 on pairs of up to 3,072 tokens: a run for a slice of TPUs.

Paper: Rafailov et al. 2023, arXiv:2305.18290: beta 0.1. The policy is that of
  Grattafiori et al. 2024, arXiv:2407.21783, who train it with DPO at beta 0.1 and
  learning rates of 1e-5; ours is that of later open recipes, 5e-7.
Command: xpo train dpo_llama [size=8B] path=FILE policy=DIR
  Before it: xpo check dpo_llama --topology v5e:16x16; size is 1B, 8B or 70B.
Hardware: a slice of TPUs; the mesh is fsdp over all its chips.
Expected: no number of the papers can be reproduced without their data.
Departs from the paper: AdamW with moments in bfloat16.
Result: not run.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.studies import llama


def experiment(
  size: str = "8B",
  path: str = "hub:allenai/ultrafeedback_binarized_cleaned",
  policy: str | None = None,
  rows: int = 256,
) -> Experiment:
  """One epoch; a row is a pair at the limits."""
  return llama.dpo(size, path, policy, rows)
