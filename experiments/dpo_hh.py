"""DPO on Anthropic HH pairs with a small model trained from scratch.

Paper: Rafailov et al. 2023, arXiv:2305.18290, Sec. 6.3 (there Pythia-2.8B).
Command: xpo train dpo_hh path=hh_harmless_pairs.jsonl.gz
  path: JSON lines with `chosen` and `rejected` HH transcripts (plain or .gz).
Hardware: 2 CPU cores.
Expected: held-out accuracy above 0.5; no number of the paper applies at this size, and
  the model is too small to answer.
Departs from the paper: a small model from scratch.
Result: held-out accuracy {DPO | accuracy} on 289 pairs, one seed; the rejected
  completions are longer (59 against 43 tokens), so length alone orders many pairs.
"""

import dataclasses

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import small_dialogue


def experiment(path: str) -> Experiment:
  """SFT on the chosen completions, then DPO from it; prompts held out from both."""
  data = small_dialogue.hh(path)
  sft_data = dataclasses.replace(data, epochs=3)
  return small_dialogue.after_sft(ObjectiveConfig("dpo", beta=0.1), data, sft_data)
