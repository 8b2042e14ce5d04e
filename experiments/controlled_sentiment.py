"""Controlled sentiment on texts of your own: the reward-KL frontier of seven methods.

Paper: Rafailov et al. 2023, arXiv:2305.18290, Sec. 6.1 and Fig. 2 (left).
Command: xpo train controlled_sentiment source=FILE --bad-rows drop
  source: JSON lines with a `text` column (plain or .gz), a TFDS directory, hub:NAME.
  A text's first four words are its prompt; rows without more words are bad rows.
Hardware: 2 CPU cores, half an hour.
Expected: the paper has a figure, no table. A few thousand sentences are too few for
  this model: its samples are phrases of real words that do not make sense, and the page
  shows how methods trade reward for KL. Settings are set by hand, not tuned.
Departs from the paper: a small model from scratch; the reward is VADER, not a sentiment
  classifier; no PPO.
Result: DPO at beta 0.2 - SFT, true reward: {DPO, beta 0.2, over SFT | change}, three
  seeds; at equal KL no method separates from another.
"""

from pathlib import Path

from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import demo
from xpo_jax.studies.sentiment.settings import Arm, SentimentStudy

ARMS = (
  Arm("DPO", ObjectiveConfig("dpo"), (0.05, 0.2, 0.7, 3.0), learning_rate=4e-4),
  Arm(
    "beta-DPO", ObjectiveConfig("beta_dpo"), (0.05, 0.2, 0.7, 3.0), learning_rate=4e-4
  ),
  Arm(
    "ORPO",
    ObjectiveConfig("orpo"),
    (1.0, 3.0, 8.0, 24.0),
    hparam="weight",
    learning_rate=4e-4,
  ),
  Arm(
    "SimPO",
    ObjectiveConfig("simpo", beta=5.0),
    (5e-5, 1e-4, 2e-4, 4e-4),
    hparam="learning_rate",
  ),
  Arm(
    "KTO",
    ObjectiveConfig("kto", beta=0.3),
    (5e-5, 1e-4, 2e-4, 4e-4),
    hparam="learning_rate",
  ),
  Arm(
    "Preferred-FT",
    ObjectiveConfig("sft"),
    (3e-4, 1e-3, 3e-3, 6e-3),
    hparam="learning_rate",
  ),
)


def experiment(source: str) -> SentimentStudy:
  """Settings for some ten thousand sentences of about twenty words."""
  return SentimentStudy(
    source=source,
    num_texts=None,
    vocab=4096,
    width=96,
    sft_steps=600,
    sft_rows=12,
    max_completion_tokens=20,
    num_pairs=1600,
    rows=8,
    arms=ARMS,
    control_beta=0.2,
  )


def run(study: SentimentStudy, run_dir: Path) -> int:
  """The study and its page."""
  command = (
    f"xpo train controlled_sentiment source={study.source} --bad-rows {study.bad_rows}"
  )
  return demo.run(study, run_dir, command)
