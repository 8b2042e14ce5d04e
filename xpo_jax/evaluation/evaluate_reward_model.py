"""Evaluates a finished reward or preference run against held-out labels."""

from pathlib import Path

from xpo_jax.config import yaml_file
from xpo_jax.config.experiment import Experiment
from xpo_jax.data import records, sealed_files, split
from xpo_jax.data.records import Record
from xpo_jax.evaluation import agreement, evaluate_run
from xpo_jax.evaluation.agreement import Agreement
from xpo_jax.feedback import preference_model, reward_model
from xpo_jax.sharding import distributed
from xpo_jax.train import export, loading
from xpo_jax.train.loading import Datasets


def is_reward(run_dir: str | Path) -> bool:
  """Whether a run trains only a scalar head on completions, and no policy."""
  experiment, _ = yaml_file.read(Path(run_dir))
  return export.is_reward(experiment)


def judge_run(
  run_dir: str | Path,
  *,
  most: int | None = 50,
  seed: int = 0,
  batch: int = 32,
  datasets: Datasets | None = None,
) -> Agreement:
  """Compares a reward or preference model with held-out labels.

  Agreement is measured on the head's own values, whose differences are log odds.

  Args:
    run_dir: a finished run whose experiment holds data out (`Evaluation`).
    most: largest number of pairs of one ranked list, drawn at random; None: all.
    seed: of that draw.
    batch: texts scored at once.
    datasets: records by name, where the run was given some.

  Returns:
    The agreement, also written as agreement.json.

  Raises:
    ValueError: the run is not finished, holds nothing out, or has no scalar head.
  """
  run_dir, datasets = Path(run_dir), datasets or {}
  experiment, _ = yaml_file.read(run_dir)
  directory = evaluate_run.policy_dir(run_dir)
  pairs = agreement.questions(_held_out(experiment, run_dir, datasets), most, seed)
  about = {"held-out prompts": len(set(pairs.prompts)), "seed": seed}
  if experiment.data.transform == preference_model.BOTH_ORDERS:
    model = reward_model.load(directory, kind=reward_model.PREFERENCE)
    agreed = agreement.of_preference(
      preference_model.to_preference(model, batch=batch), pairs
    )
  else:
    model = reward_model.load(directory)
    gain, bias = (float(x) for x in model.affine)
    about |= {"gain": gain, "bias": bias}
    raw = reward_model.load_raw(
      directory, experiment.data.template, experiment.data.limits
    )
    agreed = agreement.of_scorer(reward_model.to_scorer(raw, batch=batch), pairs)
  content = {"about": about, **agreement.plain(agreed)}
  distributed.on_first(
    lambda: sealed_files.write_json(run_dir / agreement.FILE, content)
  )
  return agreed


def _held_out(
  experiment: Experiment, run_dir: Path, datasets: Datasets
) -> list[Record]:
  """The good held-out records, the same ones as in training."""
  data, evaluation = experiment.data, experiment.evaluation
  if evaluation.path is not None:
    rows = loading.load(evaluation, data, datasets).records
  elif evaluation.share:
    loaded = loading.load(data, data, datasets, run_dir / loading.RECORDS)
    rows = split.by_prompt(loaded.records, evaluation.shares, data.seed)["held_out"]
  else:
    raise ValueError(
      "the run holds no data out; set Evaluation.share or Evaluation.path and train "
      "again"
    )
  return [row for row in rows if records.find_problem(row) is None]
