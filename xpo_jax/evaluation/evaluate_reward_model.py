"""What is done with a finished reward or preference run: normalise it, then judge it.

Both write into the run: reward.json beside the weights, so that the directory can give
feedback wherever it goes, and agreement.json, for `report`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from xpo_jax.config import yaml_file
from xpo_jax.config.experiment import Experiment, Scratch, Trained
from xpo_jax.data import records, split, tokenise
from xpo_jax.data.tokenise import Limits
from xpo_jax.evaluation import agreement, evaluate_run
from xpo_jax.evaluation.agreement import Agreement
from xpo_jax.feedback import preference_model, reward_model
from xpo_jax.models import hf_checkpoint, sample, transformer
from xpo_jax.ops.kl_control import Affine
from xpo_jax.train import loading, offline
from xpo_jax.train.loading import Datasets

_LONGEST = 128  # tokens of a reference sample where the data set no limit


def is_reward(run_dir: str | Path) -> bool:
  """Does a run train a head on answers, and nothing that writes them?"""
  experiment, _ = yaml_file.read(Path(run_dir))
  stats = experiment.objective.build().stats
  return {role for stat in stats for role in stat.roles} == {"policy.value"}


def judge_run(
  run_dir: str | Path,
  *,
  samples: int = 256,
  most: int | None = 50,
  seed: int = 0,
  batch: int = 32,
  datasets: Datasets | None = None,
) -> Agreement:
  """Normalises a reward model on reference samples and holds it to held-out labels.

  A preference model has nothing to normalise. Agreement is measured on the head's own
  values, whose differences are log odds.

  Args:
    run_dir: a finished run whose experiment holds data out (`Evaluation`).
    samples: prompts of the training data that the start, which is the reference of a
      later policy, completes once each; a run from scratch has none and takes that many
      preferred answers instead.
    most: pairs of one ranked list, drawn at random; None: all.
    seed: of the samples and of that draw.
    batch: texts read at once.
    datasets: records by name, where the run was given some.

  Returns:
    What is also written as agreement.json. reward.json is written, or written anew.

  Raises:
    ValueError: the run is not finished, holds nothing out, or has no scalar head.
  """
  run_dir, datasets = Path(run_dir), datasets or {}
  experiment, _ = yaml_file.read(run_dir)
  directory = evaluate_run.policy_dir(run_dir)
  train, held_out = _records(experiment, datasets)
  asked = agreement.questions(held_out, most, seed)
  data = experiment.data
  if data.transform == preference_model.BOTH_ORDERS:
    kind, unit = reward_model.PREFERENCE, Affine(1.0, 0.0)
    reward_model.write_description(directory, data.template, data.limits, kind=kind)
    held = reward_model.load(directory, kind=kind)
    found = agreement.of_preference(
      preference_model.to_preference(held, batch=batch), asked
    )
  else:
    # Described once it is normalised: a kill before leaves nothing that loads as if.
    held = reward_model.load_raw(directory, data.template, data.limits)
    found = agreement.of_scorer(reward_model.to_scorer(held, batch=batch), asked)
    texts = _reference(experiment, run_dir, train, samples, seed, batch)
    unit = reward_model.normalise(held, *texts).affine
    reward_model.write_description(directory, data.template, data.limits, affine=unit)
  about = {
    "held-out prompts": len(set(asked.prompts)),
    "seed": seed,
    "gain": float(unit.gain),
    "bias": float(unit.bias),
  }
  content = {"about": about, **agreement.plain(found)}
  text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
  (run_dir / agreement.FILE).write_text(text, encoding="utf-8")
  return found


def _records(experiment: Experiment, datasets: Datasets):
  """The good records of both splits, the same ones as in training."""
  data, held = experiment.data, experiment.evaluation
  rows = loading.load(data, data, datasets).records
  if held.path is not None:
    train, held_out = rows, loading.load(held, data, datasets).records
  elif held.share:
    shares = {"train": 1 - held.share, "held_out": held.share}
    train, held_out = split.by_prompt(rows, shares, data.seed).values()
  else:
    raise ValueError(
      "the run holds no data out; set Evaluation.share or Evaluation.path and train "
      "again"
    )
  sound = (
    [r for r in part if records.find_problem(r) is None] for part in (train, held_out)
  )
  return tuple(sound)


def _reference(
  experiment: Experiment,
  run_dir: Path,
  rows: Sequence[records.Record],
  samples: int,
  seed: int,
  batch: int,
) -> tuple[list[str], list[str]]:
  """Prompts of the training data, and a reference answer to each."""
  data, start = experiment.data, experiment.start
  first = {records.plain_text(row.prompt): row for row in rows}
  order = np.random.default_rng(seed).permutation(len(first))[:samples]
  rows = [list(first.values())[i] for i in order]
  prompts = [row.prompt for row in rows]
  if isinstance(start, Scratch):
    return prompts, [_preferred(row) for row in rows]
  stage = run_dir / offline.START / offline.POLICY
  where = stage if isinstance(start, Trained) else start.directory
  held = hf_checkpoint.load(where)
  limits = Limits(data.limits.prompt, long_prompt="truncate")
  ids = tokenise.tokenise_prompts(rows, held.tokenizer, data.template, limits=limits)
  prompt_BP, length_B = sample.pad(ids)
  texts = []
  for start_row in range(0, len(ids), batch):
    # The last batch is filled with its own prompts: one shape, one compile.
    row_B = np.minimum(np.arange(start_row, start_row + batch), len(ids) - 1)
    drawn = sample.sample(
      transformer.model(held.config),
      held.params["lm"],
      prompt_BP[row_B],
      length_B[row_B],
      completions=1,
      max_completion_tokens=data.limits.completion or _LONGEST,
      key=jax.random.key(seed),
      row_B=row_B,
      stop_ids=(held.tokenizer.eos_token_id,),
    )
    tokens, sizes = jax.device_get((drawn.tokens_BKT, drawn.length_BK))
    for n, row, size in zip(row_B, tokens, sizes, strict=True):
      # Decoded together: a tokenizer may read a completion's first token otherwise.
      whole = tokenise.decode(held.tokenizer, [*ids[n], *row[0, : size[0]]])
      texts.append(whole.removeprefix(tokenise.decode(held.tokenizer, ids[n])))
  return prompts, texts[: len(prompts)]


def _preferred(row: records.Record) -> str:
  if isinstance(row, records.Ranked):
    return row.completions[int(np.argmax(row.rewards))]
  return records.completions(row)[0]
