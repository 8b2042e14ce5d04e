"""Writes a policy's outputs in AlpacaEval's file format, for its own command.

`alpaca_eval --model_outputs FILE` takes a JSON list of objects with `instruction`,
`output`, `generator` and `dataset` (github.com/tatsu-lab/alpaca_eval). The judge is
AlpacaEval's; nothing is judged here.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xpo_jax.data import records, sealed_files
from xpo_jax.data.formats import tables
from xpo_jax.data.records import Turn
from xpo_jax.evaluation import evaluate_run
from xpo_jax.models import generate
from xpo_jax.models.generation_config import GenerationConfig

FILE = "alpaca_eval.json"


def write(
  directory: str | Path,
  instructions: str | Path,
  path: str | Path,
  config: GenerationConfig,
  *,
  chat: bool = False,
  seed: int = 0,
  batch: int = 64,
) -> int:
  """Generates a completion of each instruction and writes AlpacaEval's file.

  Args:
    directory: a finished run, or a Hugging Face directory.
    instructions: a file of rows (`tables.rows`) with `instruction` and optionally
      `dataset`, such as AlpacaEval's evaluation set.
    path: of the file to write.
    config: how completions are drawn, one for each instruction.
    chat: whether an instruction is a message of the user, rendered by the chat
      template; else it is a text, with the run's template around it.
    seed: of the draws.
    batch: instructions decoded at once.

  Returns:
    The number of outputs that were cut at the limit of tokens.

  Raises:
    ValueError: no instructions, a row without one, several completions; as
      `evaluate_run.sampler`.
  """
  if config.completions != 1:
    raise ValueError(
      f"config.completions is {config.completions}; AlpacaEval takes one output of "
      "each instruction"
    )
  rows = _read(Path(instructions))
  sample = evaluate_run.sampler(directory)
  prompts = [
    (Turn("user", row["instruction"]),) if chat else row["instruction"] for row in rows
  ]
  outputs: list[str] = []
  for index_R in generate.batch_indices(len(rows), min(batch, len(rows))):
    part = sample([prompts[n] for n in index_R], config, seed + len(outputs))
    outputs += [text for (text,) in part]
  named = [
    {
      "dataset": row.get("dataset", Path(instructions).stem),
      "instruction": row["instruction"],
      "output": str(output),
      "generator": str(directory),
    }
    for row, output in zip(rows, outputs[: len(rows)], strict=True)
  ]
  content = json.dumps(named, indent=1, ensure_ascii=False)
  sealed_files.write_text(Path(path), content + "\n")  # read by others: no checksum
  return sum(map(records.is_cut, outputs[: len(rows)]))


def _read(path: Path) -> Sequence[dict[str, Any]]:
  rows = list(tables.rows(path))
  if not rows:
    raise ValueError(f"{path}: no instructions")
  for number, row in enumerate(rows, 1):
    if isinstance(row, records.BadRecord):
      raise ValueError(f"{row.uid}: {row.problem}: {row.detail}")
    if not isinstance(row, dict) or not isinstance(row.get("instruction"), str):
      raise ValueError(
        f"{path}, row {number} has no text `instruction`; it has "
        f"{sorted(row) if isinstance(row, dict) else type(row).__name__}"
      )
    if row.get("input"):
      raise ValueError(
        f"{path}, row {number} has an `input`; put it into its `instruction`"
      )
  return rows
