"""Controlled sentiment on IMDb with GPT-2 large: the paper's size.

Paper: Rafailov et al. 2023, arXiv:2305.18290, Sec. 6.1, Fig. 2 (left): GPT-2 large
  fine-tuned on IMDb, prefixes of 2 to 8 tokens, DPO at beta 0.05, 0.1, 1 and 5, RMSprop
  at 1e-6.
Command: xpo train controlled_sentiment_imdb source=IMDB_DIR policy=GPT2_LARGE_DIR
  source: a prepared TFDS directory of `imdb_reviews` in the array_record format.
  policy: a Hugging Face directory of GPT-2 large.
Hardware: one accelerator of 80 GB.
Expected: the paper has a figure; DPO's frontier lies above preferred fine-tuning's.
Departs from the paper: the reward is VADER, not a sentiment classifier; prefixes are
  four words.
Result: not run. Tested in parts: TFDS directories with IMDb's features, GPT-2
  checkpoints.
"""

from pathlib import Path

from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import demo
from xpo_jax.studies.sentiment.settings import Arm, SentimentStudy


def experiment(source: str, policy: str) -> SentimentStudy:
  """DPO at the paper's betas against preferred fine-tuning, three seeds."""
  return SentimentStudy(
    source=source,
    policy=policy,
    num_texts=None,
    sft_steps=2000,
    sft_rows=16,
    sft_learning_rate=1e-5,
    max_completion_tokens=64,
    row_length=512,
    num_pairs=25_000,
    rows=16,
    arms=(
      Arm("DPO", ObjectiveConfig("dpo"), (0.05, 0.1, 1.0, 5.0), learning_rate=1e-6),
      Arm(
        "Preferred-FT",
        ObjectiveConfig("sft"),
        (1e-6, 3e-6, 1e-5, 3e-5),
        hparam="learning_rate",
      ),
    ),
    online=(),
    control_beta=0.1,
    reward_learning_rate=1e-5,
    eval_prompts=512,
  )


def run(study: SentimentStudy, run_dir: Path) -> int:
  """The study and its page."""
  command = (
    f"xpo train controlled_sentiment_imdb source={study.source} policy={study.policy}"
  )
  return demo.run(study, run_dir, command)
