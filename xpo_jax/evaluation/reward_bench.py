"""Measures a reward model's accuracy by subset, as RewardBench does.

Paper: Lambert et al. 2024, "RewardBench: evaluating reward models for language
modeling", arXiv:2403.13787. A pair is correct where the chosen completion's reward is
greater; a tie is wrong, as in the authors' code (elsewhere here it counts half).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xpo_jax.data import records, sealed_files, sources
from xpo_jax.evaluation import agreement, bootstrap, evaluate_run
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.feedback import reward_model
from xpo_jax.feedback.protocol import Scorer

FILE = "reward_bench.json"
ALL = "all"  # every pair, whatever its subset


def evaluate(
  directory: str | Path, path: str | Path, *, chat: bool = False, batch: int = 32
) -> dict[str, Interval]:
  """Measures the accuracy of a run's reward model, or of a reward-model directory.

  Args:
    directory: a finished run, into which reward_bench.json is written, or a directory
      of `reward_model`.
    path: JSON lines with `prompt`, `chosen`, `rejected` and optionally `subset`; texts
      or messages.
    chat: whether texts become messages of user and assistant, rendered by the chat
      template; else the reward model's template combines them.
    batch: texts per forward pass.

  Returns:
    `ALL` and each subset -> accuracy, with its interval over prompts.

  Raises:
    ValueError: no reward model; as `read`.
  """
  pairs, subsets = read(path, chat=chat)
  scorer = reward_model.scorer(str(evaluate_run.policy_dir(directory)), batch=batch)
  accuracy = measure(scorer, pairs, subsets)
  if evaluate_run.is_run(directory):
    about = {"file": Path(path).name, "chat": chat}
    plain = {name: bootstrap.plain(one) for name, one in accuracy.items()}
    content = {"about": about, "accuracy": plain}
    sealed_files.write_json(Path(directory) / FILE, content)
  return accuracy


def read(
  path: str | Path, *, chat: bool = False
) -> tuple[tuple[records.Record, ...], tuple[str, ...]]:
  """Reads pairs and the subset of each, "" where it has none.

  Raises:
    ValueError: an empty file, lines that are no JSON objects, other columns.
    BadRecords: a pair that is not one.
  """
  path = Path(path)
  rows: list[dict[str, Any]] = []
  subsets: list[str] = []
  for uid, row in sources.json_lines(path):
    if not isinstance(row, dict):
      reason = f": {row.detail}" if isinstance(row, records.BadRecord) else ""
      raise ValueError(f"{uid} is no JSON object{reason}")
    if missing := {"prompt", "chosen", "rejected"} - set(row):
      raise ValueError(f"{uid} lacks {sorted(missing)}")
    subsets.append(str(row.pop("subset", "")))
    rows.append(_chat(row) if chat else row)
  if not rows:
    raise ValueError(f"{path}: no pairs")
  if ALL in subsets:
    raise ValueError(
      f"{path}: a subset is named {ALL!r}, which is all pairs; rename it"
    )
  loaded = sources.from_dicts(rows, path.name, sources.Reading(kind="pair"))
  if loaded.bad:
    raise records.BadRecords(loaded.bad)
  return loaded.records, tuple(subsets)


def measure(
  scorer: Scorer, pairs: Sequence[records.Record], subsets: Sequence[str]
) -> dict[str, Interval]:
  """Measures accuracy over all pairs and by subset; a tie is wrong."""
  questions = agreement.questions(pairs)
  correct_N = (agreement.compare(scorer, questions) > 0.5).astype(np.float64)
  accuracy = {ALL: bootstrap.bootstrap_mean(correct_N, questions.prompt_N)}
  for name in dict.fromkeys(filter(None, subsets)):
    at_N = np.array([subset == name for subset in subsets])
    accuracy[name] = bootstrap.bootstrap_mean(correct_N[at_N], questions.prompt_N[at_N])
  return accuracy


def _chat(row: dict[str, Any]) -> dict[str, Any]:
  """A row whose texts are messages of user and assistant."""
  roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
  messages = {
    column: [{"role": role, "content": row[column]}]
    for column, role in roles.items()
    if isinstance(row[column], str)
  }
  return row | messages
