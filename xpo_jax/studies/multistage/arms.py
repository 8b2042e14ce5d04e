"""Trains the arms of a study through one store, and judges their policies.

A study's directory holds `study.json` (its settings), `stages/` (every run, by digest:
arms share their equal stages, and a widened study trains only what is new) and
`results.json`. Run again with the same directory it goes on.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from xpo_jax.config import yaml_file
from xpo_jax.config.experiment import Experiment, Pretrained
from xpo_jax.data import record_file, records, sealed_files, tokenise
from xpo_jax.data.records import Record
from xpo_jax.evaluation import bootstrap, measure_policy, sequence_logps
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.evaluation.measure_policy import Draws
from xpo_jax.feedback import protocol
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.models.hf_checkpoint import Checkpoint
from xpo_jax.report.html import Table
from xpo_jax.studies import find_recipe
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import arm_table, samples
from xpo_jax.studies.multistage.arm_table import ArmRow
from xpo_jax.studies.task import Task
from xpo_jax.train import loading, loop, metrics, progress, run_directory, stages
from xpo_jax.types import Params

RESULTS = "results.json"
Say = Callable[[str], None]
Score = Callable[[int, Draws], np.ndarray]
"""`(seed, draws) -> [P, K]`: a further measure of that seed's samples."""


class Arms(NamedTuple):
  """A study in its directory.

  Attributes:
    task: what it runs on.
    run_dir: its directory.
    say: takes a line of progress.
  """

  task: Task
  run_dir: Path
  say: Say

  @property
  def store(self) -> Path:
    """Where every run of the study stands."""
    return self.run_dir / run_directory.STAGES


class Trained(NamedTuple):
  """Policies of an arm.

  Attributes:
    policies: seed -> `{"lm": ...}`.
    seconds: of the steps of its runs, stages left out.
  """

  policies: Mapping[int, Params]
  seconds: float = 0.0


def open_study(settings: Any, run_dir: str | Path, say: Say = print) -> Arms:
  """Opens a directory, new or of an interrupted study with the same settings; a study
  may be widened by further seeds.

  Args:
    settings: the study's dataclass; its field `task` is the `Task`.
    run_dir: the directory.
    say: takes a line of progress.

  Raises:
    ValueError: the directory holds something else, or another study.
  """
  run_dir, began = Path(run_dir), time.perf_counter()
  _write_settings(run_dir, settings)

  def say_with_time(text: str) -> None:
    say(f"[{time.perf_counter() - began:5.0f} s] {text}")

  return Arms(settings.task, run_dir, say_with_time)


def train(arms: Arms, experiment: Experiment) -> Path:
  """Trains an experiment in the study's store, the rest of it, or finds it there.

  Returns:
    Its run directory.

  Raises:
    Stopped: SIGTERM or Ctrl-C ended it; its checkpoint is written.
  """
  run_dir = stages.directory(experiment, arms.store, {})
  if (run_dir / run_directory.SUMMARY).exists():
    return run_dir
  arms.say(f"{run_dir.name}: {experiment.objective} on {experiment.data.title}")
  if (run_dir / yaml_file.FILE).exists():
    result = loop.resume(run_dir, experiment, store=arms.store, say=progress.silent)
  else:
    result = loop.train(experiment, run_dir, store=arms.store, say=progress.silent)
  if result.stopped:
    raise progress.Stopped(f"stopped by {result.stopped}: xpo resume {arms.run_dir}")
  return run_dir


def policy(arms: Arms, experiment: Experiment) -> Checkpoint:
  """The policy that an experiment leaves; trained where it is missing."""
  directory = run_directory.policy(train(arms, experiment))
  return hf_checkpoint.load(directory, remat="none")


def trained_records(arms: Arms, experiment: Experiment) -> tuple[Record, ...]:
  """The records, made by a function, that an experiment is trained on; it is trained
  where it is missing."""
  return record_file.read(train(arms, experiment) / loading.RECORDS)


def start_directory(arms: Arms) -> Path:
  """The policy that all arms start from, the reference of all KLs."""
  begin = tasks.start(arms.task)
  if isinstance(begin, Pretrained):
    return Path(begin.directory)
  return run_directory.policy(train(arms, begin.experiment))


def start(arms: Arms) -> Checkpoint:
  """The same, loaded."""
  return hf_checkpoint.load(start_directory(arms), remat="none")


def train_arm(arms: Arms, make: Callable[[int], Experiment]) -> Trained:
  """Trains an arm for every seed.

  Args:
    arms: the study.
    make: seed -> its experiment.
  """
  policies, seconds = {}, 0.0
  for seed in arms.task.seeds:
    run_dir = train(arms, make(seed))
    checkpoint = hf_checkpoint.load(run_directory.policy(run_dir), remat="none")
    policies[seed] = checkpoint.params
    seconds += sum(line["time/seconds"] for line in metrics.read(run_dir))
  return Trained(policies, seconds)


def judge(
  arms: Arms,
  params: Params,
  seed: int,
  *,
  eval_samples: int | None = None,
  reference: Path | None = None,
) -> Draws:
  """Samples on held-out prompts, with true rewards and KL to a reference.

  Args:
    arms: the study.
    params: `{"lm": ...}` of the policy.
    seed: of the draws.
    eval_samples: completions of each prompt; None: the task's.
    reference: directory of its policy; None: the start's.
  """
  task = arms.task
  if eval_samples is not None:
    task = dataclasses.replace(task, eval_samples=eval_samples)
  reference = start_directory(arms) if reference is None else reference
  checkpoint = hf_checkpoint.load(reference, remat="none")
  return _draws(task, params, checkpoint, seed)


def _draws(task: Task, params: Params, reference: Checkpoint, seed: int) -> Draws:
  prompts = samples.texts_of(tasks.prompts(task, "test"))
  if len(prompts) < task.eval_prompts:
    raise ValueError(
      f"Task.eval_prompts is {task.eval_prompts}, the held-out split has "
      f"{len(prompts)}; take fewer prompts or more texts"
    )
  setup = measure_policy.EvalSetup(
    transformer.model(reference.config),
    reference.params,
    samples.encode(reference.tokenizer, prompts[: task.eval_prompts]),
    reference.tokenizer,
    GenerationConfig(
      task.max_completion_tokens, task.eval_samples, temperature=task.temperature
    ),
    batch=task.eval_batch or task.eval_prompts,
  )
  key = jax.random.fold_in(jax.random.key(seed), 4)
  draws = measure_policy.draw(setup, params, key)
  scorer = task.reward.build()
  reward_PK = protocol.score_groups(scorer, draws.prompts, draws.texts)
  return draws._replace(reward_PK=reward_PK.astype(np.float64))


def reference_draws(arms: Arms, seed: int, *, reference: Path | None = None) -> Draws:
  """The reference's own samples, judged; drawn once in a process.

  Args:
    arms: the study.
    seed: of the draws.
    reference: directory of its policy; None: the start's.
  """
  reference = start_directory(arms) if reference is None else reference
  task = json.dumps(yaml_file.to_dict(arms.task))
  return _reference_draws(str(reference), task, seed)


@functools.lru_cache(maxsize=32)  # every arm is compared with the same samples
def _reference_draws(directory: str, task: str, seed: int) -> Draws:
  settings = yaml_file.from_dict(Task, json.loads(task))
  checkpoint = hf_checkpoint.load(directory, remat="none")
  return _draws(settings, checkpoint.params, checkpoint, seed)


def row(
  arms: Arms,
  label: str,
  trained: Trained,
  *,
  reference: Path | None = None,
  scores: Mapping[str, Score] | None = None,
  **more: Interval | float,
) -> ArmRow:
  """Judges an arm.

  Args:
    arms: the study.
    label: what the arm is called.
    trained: its policies.
    reference: directory of the policy that KL and change are to; None: the start.
    scores: further measures of the samples, by name.
    more: further measures, by name.
  """
  reference = start_directory(arms) if reference is None else reference
  draws = {
    seed: judge(arms, params, seed, reference=reference)
    for seed, params in trained.policies.items()
  }
  return judged_row(
    arms,
    label,
    draws,
    seconds=trained.seconds,
    reference=reference,
    scores=scores,
    **more,
  )


def judged_row(
  arms: Arms,
  label: str,
  draws: Mapping[int, Draws],
  *,
  seconds: float = 0.0,
  reference: Path | None = None,
  scores: Mapping[str, Score] | None = None,
  **more: Interval | float,
) -> ArmRow:
  """The row of an arm whose samples are judged.

  Args:
    draws: seed -> of `judge`, against the same reference.
    seconds: of its runs.
    arms, label, reference, scores, more: see `row`.
  """
  reference = start_directory(arms) if reference is None else reference
  columns = {
    "reward": [d.reward_PK for d in draws.values()],
    "change": [
      d.reward_PK - reference_draws(arms, seed, reference=reference).reward_PK
      for seed, d in draws.items()
    ],
    "kl": [d.kl_PK for d in draws.values()],
    "length": [d.length_PK for d in draws.values()],
  }
  for name, score in (scores or {}).items():
    columns[name] = [score(seed, d) for seed, d in draws.items()]
  measures = {
    name: bootstrap.bootstrap_seeds(
      np.stack([measure_policy.per_prompt(x_PK) for x_PK in by_seed])
    )
    for name, by_seed in columns.items()
  }
  return ArmRow(label, measures | more, seconds)


def start_row(arms: Arms, label: str = "SFT", **more: Any) -> ArmRow:
  """The start, judged as an arm."""
  draws = {seed: reference_draws(arms, seed) for seed in arms.task.seeds}
  return judged_row(arms, label, draws, **more)


def nll(
  arms: Arms, policies: Sequence[Params], rows: Sequence[records.Record]
) -> Interval:
  """Nats per token of demonstrations under policies, over rows and seeds.

  Args:
    arms: the study.
    policies: `{"lm": ...}` each, of one arm.
    rows: held out.
  """
  begin = start(arms)
  limits = tokenise.Limits(completion=arms.task.max_completion_tokens)
  examples = tokenise.tokenise(rows, begin.tokenizer, limits=limits)
  tokens_P = np.array([len(example.completions[0]) for example in examples])
  model = transformer.model(begin.config)
  logps = [
    sequence_logps.score_pairs(model, params, params, examples)["logp_BK"][:, 0]
    for params in policies
  ]
  return bootstrap.bootstrap_seeds(-np.stack(logps) / tokens_P)


def finish(arms: Arms, title: str, rows: Sequence[ArmRow]) -> Table:
  """Writes results.json and returns the rows as a table."""
  return arm_table.write(arms.run_dir / RESULTS, title, rows, arms.task)


def _write_settings(run_dir: Path, settings: Any) -> None:
  path = run_dir / find_recipe.STUDY
  content = json.loads(json.dumps(find_recipe.study_record(settings)))
  if path.exists():
    old = sealed_files.read_json(path)
    # More seeds widen a study: what is there stays, what is new is trained.
    seeds = content["settings"]["task"]["seeds"]
    if set(old["settings"]["task"]["seeds"]) <= set(seeds):
      old["settings"]["task"]["seeds"] = seeds
    yaml_file.refuse_change("settings", run_dir, old["settings"], content["settings"])
  elif not sealed_files.is_vacant(run_dir):
    raise ValueError(f"run directory {run_dir} holds something else; name another one")
  run_dir.mkdir(parents=True, exist_ok=True)
  sealed_files.write_json(path, content)
