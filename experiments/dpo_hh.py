"""DPO on Anthropic HH pairs with a small model trained from scratch.

Paper: Rafailov et al. 2023, arXiv:2305.18290, Sec. 6.3 (there Pythia-2.8B).
Command: xpo train dpo_hh path=hh_harmless_pairs.jsonl.gz
  path: JSON lines with `chosen` and `rejected` HH transcripts (plain or .gz).
Hardware: 2 CPU cores.
Expected: no number of the paper applies at this size. Held-out accuracy above 0.5 says
  that preferences were learnt; the model is too small to answer anything.
Last result: 2026-11-22, 2 cores shared with other jobs, 17 minutes: held-out accuracy
  0.640 [0.585, 0.696] on 289 pairs (95 %, over prompts), KL 2.66 [2.41, 2.91] nats; the
  rejected answers are longer (59 against 43 tokens), so length alone orders many pairs.
"""

import dataclasses

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import small_dialogue


def experiment(path: str) -> Experiment:
  """SFT on the chosen answers, then DPO from it; prompts held out from both."""
  data = small_dialogue.hh(path)
  taught = dataclasses.replace(data, epochs=3)
  return small_dialogue.after_sft(ObjectiveConfig("dpo", beta=0.1), data, taught)
