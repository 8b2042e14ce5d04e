"""Controlled sentiment on texts of your own: the reward-KL frontier of six methods.

Paper: Rafailov et al. 2023, arXiv:2305.18290, Sec. 6.1 and Fig. 2 (left).
Command: xpo train controlled_sentiment source=movie_review_sentences.jsonl.gz
  source: JSON lines with a `text` column (plain or .gz), a TFDS directory, hub:NAME.
Hardware: 2 CPU cores.
Expected: see the result; the paper has a figure, no table.
Last result: see README, "Results".
"""

from pathlib import Path

from xpo_jax.recipes import demo
from xpo_jax.recipes.sentiment_study import Study


def experiment(source: str) -> Study:
  """Settings for a few thousand sentences of some twenty words."""
  return Study(source=source, texts=None)


def run(study: Study, run_dir: Path) -> int:
  """The whole study and its page."""
  command = f"xpo train controlled_sentiment source={study.source}"
  return demo.run(study, run_dir, command)
