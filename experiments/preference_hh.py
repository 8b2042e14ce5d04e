"""A preference model that reads both completions, on Anthropic HH pairs.

Paper: Munos et al. 2023 (Nash learning from human feedback), arXiv:2312.00886
  (there summaries and T5X models).
Command: xpo train preference_hh path=hh_harmless_pairs.jsonl.gz
  then xpo evaluate runs/preference_hh: prints its agreement with labels
  path: JSON lines with `chosen` and `rejected` HH transcripts (plain or .gz).
Hardware: 2 CPU cores.
Expected: no number of the paper applies at this size. Compare with `reward_hh`, which
  holds out the same prompts: HH labels are nearly transitive, so no more than it.
Departs from the paper: dialogue in place of summaries, a small model from scratch.
Result: not run.
"""

import dataclasses

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.data.tokenise import Limits
from xpo_jax.feedback import preference_model
from xpo_jax.studies import small_dialogue


def experiment(path: str) -> Experiment:
  """SFT on the chosen completions, then the model on both orders of a pair."""
  # A row holds a prompt, and twice both completions, each with its EOS.
  limits = Limits(prompt=380, completion=160, long_prompt="truncate")
  data = dataclasses.replace(small_dialogue.hh(path), limits=limits)
  sft_data = dataclasses.replace(data, epochs=3)
  both = dataclasses.replace(data, transform=preference_model.BOTH_ORDERS)
  return small_dialogue.after_sft(ObjectiveConfig("preference_model"), both, sft_data)
