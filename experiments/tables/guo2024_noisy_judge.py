"""Online DPO with a judge that errs: true reward at equal KL over error rates.

Paper: Guo et al. 2024 (OAIF), arXiv:2402.04792, where a judge labels the policy's own
  samples; Lee et al. 2023 (RLAIF), arXiv:2309.00267: a judge that agrees with people on
  about three quarters of pairs trains a policy that people like as well as RLHF's.
Command: xpo train guo2024_noisy_judge [source=TEXTS.jsonl policy=DIR] [--jobs 2]
  The same command goes on with an interrupted run; --show draws the points there are.
Hardware: 2 CPU cores, a quarter of an hour for three seeds.
Expected: an error rate that is the same on every pair scales the expected gradient by
  1 - 2 error: the KL grows more slowly, reward at equal KL is little less, until at one
  half there is nothing to learn.
Departs from the paper: the judge is scripted; it errs at random, not on hard pairs.
Result: 25 % errors - none, true reward at 0.25 nats: {error 25% - error 0%, at 0.25
  nats | reward}, three seeds: not separable.
"""

import dataclasses
from pathlib import Path

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import Configured
from xpo_jax.config.sampling import Feedback
from xpo_jax.feedback import noisy_judge
from xpo_jax.studies import find_recipe
from xpo_jax.studies.frontier import frontier_page, online_frontier, processes
from xpo_jax.studies.frontier.frontier_page import OrderingClaim
from xpo_jax.studies.frontier.online_frontier import JudgedRun
from xpo_jax.studies.task import Task


@dataclasses.dataclass(frozen=True)
class NoisyJudge:
  """Settings.

  Attributes:
    errors: shares of the pairs that the judge gets wrong, an arm each; the first is
      what the others are compared with.
    every: iterations between two judged policies.
    matched_kl: nats at which arms are compared.
    task: start, reward and sizes.
    jobs: processes at once.
    show: train nothing, show the points there are.
  """

  errors: tuple[float, ...] = (0.0, 0.1, 0.25, 0.4)
  every: int = 10
  matched_kl: tuple[float, ...] = (0.25, 0.5, 1.0)
  task: Task = dataclasses.field(default_factory=Task)
  jobs: int = 2
  show: bool = False


def experiment(source: str | None = None, policy: str | None = None) -> NoisyJudge:
  """Four error rates on synthetic reviews, or on texts and a policy of your own."""
  return NoisyJudge(task=Task(source, policy=policy))


def judged_runs(settings: NoisyJudge) -> list[JudgedRun]:
  """Online DPO with each error rate, seed by seed."""
  recipe = find_recipe.load("online_dpo").experiment
  runs = []
  for seed in settings.task.seeds:
    for error in settings.errors:
      judge = Configured(noisy_judge.preference, error=error, seed=seed)
      data = dataclasses.replace(
        recipe.data, feedback=Feedback(judge, kind="win_rates")
      )
      one = online_frontier.on_task(
        dataclasses.replace(recipe, data=data), settings.task, seed=seed
      )
      one = online_frontier.with_checkpoints(one, settings.every)
      runs.append(JudgedRun(label(error), seed, one))
  return runs


def arms(settings: NoisyJudge) -> dict[str, Experiment]:
  """Every run of the study, by label and seed."""
  return online_frontier.run_names(judged_runs(settings))


def label(error: float) -> str:
  """Of an arm."""
  return f"error {error:.0%}"


def run(settings: NoisyJudge, run_dir: Path) -> int:
  """Trains and judges what is missing, draws the plot, prints both tables."""
  runs = judged_runs(settings)
  study, failed = online_frontier.measure_missing(settings, run_dir, runs)
  first, *others = settings.errors
  paper, claim = "RLAIF, arXiv:2309.00267", "clean labels are no better"
  frontier_page.show_frontier(
    run_dir,
    "Online DPO by judges that err, along training",
    online_frontier.read(study, runs),
    [OrderingClaim(paper, claim, label(error), label(first)) for error in others],
    settings.matched_kl,
    caption="True reward, mean [95 %] over held-out prompts and the seeds.",
  )
  return processes.exit_code(failed)
