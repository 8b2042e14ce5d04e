"""Over-optimises misspecified reward models: their score, another's, the true reward.

Paper: Gao et al. 2022, arXiv:2210.10760: the score of a learned reward rises with KL
  while the true reward turns; Bai et al. 2022, arXiv:2204.05862, Sec. 4: the score of a
  reward model of other data ("test") falls behind that of the one that is optimised
  ("train").
Command: xpo train gao2022_overoptimisation [--jobs 2]
  The same command goes on with an interrupted run; --show draws the points there are.
Hardware: 2 CPU cores, a quarter of an hour for three seeds.
Expected: the train score rises throughout; the fewer the labels, the further the test
  score and the true reward stay behind it, or turn; where the labels prefer long
  completions both scores rise together and the true reward does not follow: an error of
  both halves of the labels does not show by holding one half out.
Departs from the paper: the misspecifications are stated, few labels in two arms, a
  preference for length in the third; RLOO with next to no tie to the start, not PPO.
Result: true reward {200 labels | reward} from {SFT | reward}, train score {200 labels |
  train score | 2}, 200 labels, three seeds: the true reward does not turn.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from xpo_jax.config.experiment import Experiment, Stage
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback
from xpo_jax.evaluation import bootstrap
from xpo_jax.feedback import reward_model
from xpo_jax.report import html, line_chart
from xpo_jax.studies import task as tasks
from xpo_jax.studies.frontier import (
  frontier_page,
  labelled_samples,
  online_frontier,
  processes,
)
from xpo_jax.studies.frontier.online_frontier import ArmPoints, JudgedRun
from xpo_jax.studies.task import Task

# Label -> pairs of each half, at most (one seed makes 799, not 800); logits of a label
# for each word that a completion is longer.
ARMS = {
  "200 labels": (200, 0.0),
  "400 labels": (400, 0.0),
  "labels prefer length": (400, 1.0),
}
TRAIN, TEST = SCORES = ("train score", "test score")


@dataclasses.dataclass(frozen=True)
class Overoptimisation:
  """Settings.

  Attributes:
    temperature: reward that is one logit of a label.
    reward_epochs: passes of a reward model over its pairs.
    beta: of RLOO, whose rewards deviate by 1 on the start's samples.
    learning_rate: of RLOO, constant.
    iterations: of RLOO.
    every: iterations between two judged policies.
    task: start, reward and sizes.
    jobs: processes at once.
    show: train nothing, show the points there are.
  """

  temperature: float = 0.25
  reward_epochs: int = 4
  beta: float = 0.01
  learning_rate: float = 5e-4
  iterations: int = 120
  every: int = 15
  task: Task = dataclasses.field(default_factory=Task)
  jobs: int = 2
  show: bool = False


def experiment(
  source: str | None = None, policy: str | None = None
) -> Overoptimisation:
  """Three misspecifications on synthetic reviews, or on texts and a policy of your
  own."""
  return Overoptimisation(task=Task(source, policy=policy))


def reward(settings: Overoptimisation, label: str, half: str, seed: int) -> Experiment:
  """A reward model on one half of an arm's labels."""
  task, (num_pairs, length_logit) = settings.task, ARMS[label]
  pairs = tasks.from_start(
    labelled_samples.misspecified,
    task,
    seed=seed,
    reward=task.reward,
    half=half,
    num_pairs=num_pairs,
    temperature=settings.temperature,
    length_logit=length_logit,
  )
  return tasks.on_records(
    ObjectiveConfig("bradley_terry"),
    task,
    pairs,
    seed=seed,
    epochs=settings.reward_epochs,
  )


def judged_run(settings: Overoptimisation, label: str, seed: int) -> JudgedRun:
  """RLOO on the train half's reward model, scored by both."""
  scorers = {
    name: Configured(
      reward_model.scorer, directory=Stage(reward(settings, label, half, seed))
    )
    for name, half in zip(SCORES, ("train", "test"), strict=True)
  }
  one = tasks.on_rollouts(
    ObjectiveConfig("rloo", beta=settings.beta),
    settings.task,
    feedback=Feedback(scorers[TRAIN]),
    iterations=settings.iterations,
    optimizer=Optimizer(learning_rate=settings.learning_rate, schedule="constant"),
    seed=seed,
  )
  one = online_frontier.with_checkpoints(one, settings.every)
  return JudgedRun(label, seed, one, scorers=scorers)


def judged_runs(settings: Overoptimisation) -> list[JudgedRun]:
  """The three arms, seed by seed."""
  return [
    judged_run(settings, label, seed) for seed in settings.task.seeds for label in ARMS
  ]


def arms(settings: Overoptimisation) -> dict[str, Experiment]:
  """Every run of the study, by label and seed."""
  return online_frontier.run_names(judged_runs(settings))


def run(settings: Overoptimisation, run_dir: Path) -> int:
  """Trains and judges what is missing, draws the arms, prints both tables."""
  runs = judged_runs(settings)
  study, failed = online_frontier.measure_missing(settings, run_dir, runs)
  points = online_frontier.read(study, runs)
  for label, seeds in points.items():
    path = run_dir / f"{label.replace(' ', '_')}.svg"
    text = line_chart.svg(figure(label, seeds), standalone=True)
    path.write_text(text, encoding="utf-8")
  tables = {"Along training": points_table(points), "Claims": claims_table(points)}
  frontier_page.show(run_dir, "Overoptimisation", tables)
  return processes.exit_code(failed)


def figure(label: str, seeds: Mapping) -> line_chart.Figure:
  """Scores and true reward of an arm against sqrt(KL)."""
  steps = frontier_page.by_strength(seeds)
  root = [online_frontier.mean(step, "kl").mean ** 0.5 for step in steps]
  series = []
  for name in ("reward", *SCORES):
    means = [online_frontier.mean(step, name) for step in steps]
    low, high = [x.low for x in means], [x.high for x in means]
    shown = "true reward" if name == "reward" else name
    y = [x.mean for x in means]
    series.append(line_chart.Series(shown, root, y, low, high, kind="both"))
  note = "Scores: mean 0 and deviation 1 on the start's samples."
  return line_chart.Figure(label, "square root of KL, nats", "score", series, note=note)


def points_table(arms: ArmPoints) -> html.Table:
  """A row a point: the optimised score, the held-out score, the true reward."""
  rows = []
  for label, seeds in arms.items():
    for step in frontier_page.by_strength(seeds):
      columns = ("kl", *SCORES, "reward", "length")
      cells = [str(online_frontier.mean(step, column)) for column in columns]
      rows.append([label, step[0].strength, *cells])
  header = ["arm", "iteration", "KL, nats", *SCORES, "true reward", "tokens"]
  caption = (
    "Mean [95 %] over held-out prompts and the seeds; scores have mean 0 and deviation "
    "1 on the start's samples."
  )
  return html.Table(header, rows, caption)


def claims_table(arms: ArmPoints) -> html.Table:
  """Whether the train score rises where the true reward falls, and leaves the test
  score behind."""
  rows = []
  for label, seeds in arms.items():
    steps = frontier_page.by_strength(seeds)
    best = max(steps, key=lambda step: online_frontier.mean(step, "reward").mean)
    last = steps[-1]
    score, true = (online_frontier.gap(last, best, x) for x in (TRAIN, "reward"))
    ours = (
      f"from iteration {best[0].strength}, where it is best, to {last[0].strength}: "
      f"train score {score}, true reward {true}"
    )
    claim = f"{label}: score up, true reward down"
    turns = score.low > 0 > true.high
    verdict = "reproduces here" if turns else "not separable here"
    rows.append(["arXiv:2210.10760", claim, ours, verdict])
    ahead = bootstrap.bootstrap_seeds(
      np.stack([p.column(TRAIN) - p.column(TEST) for p in last])
    )
    claim = f"{label}: the train score leaves the test score behind"
    ours = f"by {ahead} at iteration {last[0].strength}"
    rows.append(["arXiv:2204.05862", claim, ours, frontier_page.verdict(ahead)])
  caption = "Paired over prompts and seeds; the best point is chosen on these prompts."
  return html.Table(frontier_page.CLAIM_HEADER, rows, caption)
