"""Trains methods on a chat model's own samples, and shows them beside the start."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.data.records import Conversation
from xpo_jax.evaluation.measure_policy import Draws
from xpo_jax.report import html, run_page
from xpo_jax.studies import demo
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import arms, samples
from xpo_jax.studies.multistage.arm_table import ArmRow
from xpo_jax.studies.multistage.arms import Arms
from xpo_jax.studies.real_model import runs
from xpo_jax.studies.sentiment.findings import Check
from xpo_jax.studies.task import Task

START = "start"
SHOWN = 4  # held-out prompts whose samples are shown


@dataclasses.dataclass(frozen=True)
class RealModel:
  """Settings.

  Attributes:
    task: policy, prompts, reward and sizes.
  """

  task: Task


@dataclasses.dataclass(frozen=True)
class Method:
  """A method of the study.

  Attributes:
    label: its row.
    objective: what is minimised.
    labels: see `runs.experiment`.
  """

  label: str
  objective: ObjectiveConfig
  labels: runs.Labels = "true"


class Judged(NamedTuple):
  """A policy of the study.

  Attributes:
    row: its measures.
    draws: its samples on held-out prompts, by seed.
  """

  row: ArmRow
  draws: Mapping[int, Draws]


Checks = Callable[[Mapping[str, ArmRow]], Sequence[Check]]


def experiment(method: Method, task: Task, seed: int) -> Experiment:
  """A method's run."""
  return runs.experiment(method.objective, task, seed=seed, labels=method.labels)


def experiments(methods: Sequence[Method], task: Task) -> dict[str, Experiment]:
  """Every run, by label and seed."""
  return {
    f"{method.label}, seed {seed}": experiment(method, task, seed)
    for method in methods
    for seed in task.seeds
  }


def run(
  settings: RealModel,
  run_dir: Path,
  methods: Sequence[Method],
  *,
  title: str,
  command: str,
  checks: Checks = lambda rows: (),
) -> int:
  """Trains and judges what is missing, writes results.json and a page, prints both.

  Args:
    settings: with a task of `runs.task`.
    run_dir: new, or of the same study that was interrupted.
    methods: what is trained.
    title: of the page.
    command: that reproduces it.
    checks: rows by label -> statements that must hold.

  Returns:
    0, or 1 where a check fails.
  """
  study = arms.open_study(settings, run_dir, say)
  judged = {START: _start(study)}
  for method in methods:
    judged[method.label] = judge(study, method)
  rows = {label: one.row for label, one in judged.items()}
  table = arms.finish(study, title, list(rows.values()))
  found = checks(rows)
  demo.show(table)
  blocks = [html.Section("Measures", [table])]
  if found:
    holds = checks_table(found)
    demo.show(holds)
    blocks.insert(0, html.Section("Does it hold?", [holds]))
  shown = samples_table(study.task, judged)
  blocks.append(html.Section("Samples", [shown]))
  blocks.append(html.Section("How to reproduce", [html.Code(command)]))
  for question, *texts in shown.rows:
    print(f"\n{question}")
    for label, text in zip(judged, texts, strict=True):
      print(f"  {label}: {text}")
  path = run_page.write_page(study.run_dir, html.Page(title, _lead(study.task), blocks))
  print(f"\nreport: {path}")
  failed = [check.statement for check in found if not check.holds]
  for statement in failed:
    print(f"DOES NOT HOLD: {statement}")
  return 1 if failed else 0


def say(text: str) -> None:
  """Prints a line at once."""
  print(text, flush=True)


def _start(study: Arms) -> Judged:
  study.say(f"samples of the start on {study.task.eval_prompts} held-out prompts")
  draws = {seed: arms.reference_draws(study, seed) for seed in study.task.seeds}
  row = arms.judged_row(study, START, draws, scores=runs.SCORES)
  return Judged(row, draws)


def judge(study: Arms, method: Method) -> Judged:
  """Trains a method for every seed, where it is missing, and judges its policies."""
  draws, seconds = {}, 0.0
  for seed in study.task.seeds:
    # One policy at a time: each is a whole model, its adapter merged.
    trained = runs.train(study, experiment(method, study.task, seed))
    draws[seed] = arms.judge(study, trained.policies[seed], seed)
    seconds += trained.seconds
  row = arms.judged_row(study, method.label, draws, seconds=seconds, scores=runs.SCORES)
  return Judged(row, draws)


def raises(row: ArmRow) -> Check:
  """The check that a method raises the reward: the whole interval of its change, paired
  with the start's samples by prompt, is above 0."""
  change = row.measures["change"]
  statement = f"{row.label} raises the reward of held-out prompts"
  return Check(statement, str(change), change.low > 0)


def lowers(row: ArmRow) -> Check:
  """The check that a method lowers the reward, as `raises`."""
  change = row.measures["change"]
  statement = f"{row.label} lowers the reward of held-out prompts"
  return Check(statement, str(change), change.high < 0)


def checks_table(checks: Sequence[Check]) -> html.Table:
  """Checks and whether they hold."""
  rows = [
    ["yes" if check.holds else "**NO**", check.statement, check.found]
    for check in checks
  ]
  return html.Table(
    ["holds", "what must hold", "change of reward"],
    rows,
    "95 % bootstrap over prompts, paired with the start. A NO fails the command.",
  )


def _question(prompt: str) -> str:
  """The last message of a conversation, or the prompt itself."""
  return prompt.turns[-1].content if isinstance(prompt, Conversation) else prompt


def samples_table(task: Task, judged: Mapping[str, Judged]) -> html.Table:
  """The first sample of every policy for the first held-out prompts."""
  draws = [one.draws[task.seeds[0]] for one in judged.values()]
  prompts = samples.texts_of(tasks.prompts(task, "test"))
  rows = [
    [
      html.Verbatim(_question(prompts[p])),
      *(html.Verbatim(one.texts[p][0].strip()) for one in draws),
    ]
    for p in range(min(SHOWN, task.eval_prompts))
  ]
  return html.Table(
    ["question", *judged], rows, "The first sample of each, unselected."
  )


def _lead(task: Task) -> str:
  trained = "whole" if task.adapter is None else f"by LoRA of rank {task.adapter.rank}"
  return (
    f"A pretrained chat model, trained {trained}, answers questions of opinion in a "
    "sentence; the reward is VADER's sentiment of its answer. Methods on pairs learn "
    f"from the best and the worst of {runs.CANDIDATES} samples of the start for each "
    f"of {task.num_prompts} prompts, methods on samples from fresh ones. Policies are "
    f"judged on other prompts, at temperature {task.temperature:g}; KL is to the "
    "start, at that temperature. This says how a method moves one small model, not how "
    "methods rank on large ones."
  )
