"""Best-of-n: reward by sampling alone, at its exact KL; and SFT on the best of n.

Paper: best-of-n as in Stiennon et al. 2020, arXiv:2009.01325; its KL, Beirami et al.
  2024, arXiv:2401.01879; SFT on the best answer is RAFT's "best of each prompt", Dong
  et al. 2023, arXiv:2304.06767, and a baseline of SLiC-HF, arXiv:2305.10425.
Command: xpo train best_of_n [source=FILE policy=DIR --distilled 8]
Hardware: 2 CPU cores, minutes.
Expected: reward grows with log n; the exact KL stays below log n - (n - 1) / n, far
  below where completions repeat; SFT on the best of n keeps part of the gain in one
  sample.
Departs from the paper: the reward is the task's true one.
Result: best of 32, true reward {best of 32 | reward} at {best of 32 | kl | 2} nats,
  from {best of 1 | reward}; SFT on the best of 8, three seeds: {SFT on best of 8 |
  reward} at {SFT on best of 8 | kl | 2} nats.
"""

import dataclasses
from pathlib import Path

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import demonstrations
from xpo_jax.studies.task import Task


@dataclasses.dataclass(frozen=True)
class BestOfN:
  """Settings.

  Attributes:
    ns: values of n; at most `pool`.
    pool: samples of the start for each prompt, over all subsets of which best-of-n is
      averaged.
    distilled: n of the completions that SFT is repeated on.
    epochs: of that SFT.
    task: start, reward and sizes.
  """

  ns: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
  pool: int = 64
  distilled: int = 8
  epochs: int = 2
  task: Task = dataclasses.field(default_factory=Task)

  def __post_init__(self):
    if not 1 <= min(self.ns) <= max(self.ns) <= self.pool:
      raise ValueError(f"BestOfN.ns is {self.ns}; each must be in 1..{self.pool}, pool")
    if self.distilled < 2:
      raise ValueError(f"BestOfN.distilled is {self.distilled}; take 2 at least")


def experiment(source: str | None = None, policy: str | None = None) -> BestOfN:
  """On synthetic reviews, or on texts and a policy of your own."""
  return BestOfN(task=Task(source, policy=policy))


def distilled(settings: BestOfN, seed: int) -> Experiment:
  """SFT on the best of n.

  Args:
    settings: of the study.
    seed: of samples, order and draws.
  """
  task = settings.task
  best = tasks.from_start(
    demonstrations.best_of,
    task,
    seed=seed,
    reward=task.reward,
    completions=settings.distilled,
  )
  return tasks.on_records(
    ObjectiveConfig("sft"), task, best, seed=seed, epochs=settings.epochs
  )


def arms(settings: BestOfN) -> dict[str, Experiment]:
  """Every run of the study, by label and seed."""
  label = f"SFT on best of {settings.distilled}"
  return {
    f"{label}, seed {seed}": distilled(settings, seed) for seed in settings.task.seeds
  }


def run(settings: BestOfN, run_dir: Path) -> int:
  """Samples a pool, computes best-of-n from it, repeats SFT on the best."""
  from xpo_jax.studies import demo
  from xpo_jax.studies.multistage import arms as study_arms

  study = study_arms.open_study(settings, run_dir)
  params = study_arms.start(study).params
  pool = study_arms.judge(study, params, seed=0, eval_samples=settings.pool)
  rows = _best_of_n(settings, pool.reward_PK)
  trained = study_arms.train_arm(study, lambda seed: distilled(settings, seed))
  rows.append(study_arms.row(study, f"SFT on best of {settings.distilled}", trained))
  demo.show(study_arms.finish(study, "Best-of-n", rows))
  return 0


def _best_of_n(settings: BestOfN, pool_PS):
  """A row for each n: expected reward, exact KL and its bound."""
  from xpo_jax.evaluation import bootstrap, optimal_policy
  from xpo_jax.studies.multistage.arm_table import ArmRow

  rows = []
  for point in optimal_policy.best_of_n(pool_PS, settings.ns):
    n = int(point.strength)
    kl_P = [optimal_policy.best_of_n_kl(reward_S, n) for reward_S in pool_PS]
    measures = {
      "reward": point.reward,
      "kl": bootstrap.bootstrap_mean(kl_P),
      "kl_bound": point.kl.mean,
    }
    rows.append(ArmRow(f"best of {n}", measures, 0.0))
  return rows
