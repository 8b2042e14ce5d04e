"""SLiC-HF, sample-rank: samples of the SFT policy, ranked, calibrated by a hinge.

Paper: Zhao et al. 2023, arXiv:2305.10425: 8 samples of each prompt, ranked by a
  tournament of pairwise comparisons or by a pointwise reward, loss with delta = 1 and
  an NLL term.
Command: xpo train slic_sample_rank [source=FILE policy=DIR --delta 1 --weight 0.1]
Hardware: 2 CPU cores, minutes for three seeds.
Expected: both rankings above SFT, the tournament's above the pointwise one (paper: win
  rates 86.2 and 82.4 %, SFT 45.0 %); here both use the true reward, so direction only.
Departs from the paper: the ranking model is the task's true reward; the pointwise arm
  pairs the best sample with the worst, which the paper does not state; the NLL target
  is the chosen completion, and its weight is not checked against the paper. The
  tournament makes seven pairs of a prompt, the pointwise arm one.
Result: tournament, true reward {SLiC, tournament | reward} against the pointwise {SLiC,
  pointwise | reward}, from {SFT | reward}; three seeds. The paper's direction.
"""

import dataclasses
from pathlib import Path

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import preference_pairs
from xpo_jax.studies.task import Task

RANKINGS = {"SLiC, tournament": "tournament", "SLiC, pointwise": "best_worst"}


@dataclasses.dataclass(frozen=True)
class SampleRank:
  """Settings.

  Attributes:
    candidates: samples of the SFT policy for each prompt. Paper: 8.
    sampling_temperature: of the samples. Paper: 0.7.
    top_k: of the samples. Paper: 40.
    delta: gap of the hinge, nats. Paper: 1.
    weight: of the NLL term.
    task: start, reward and sizes.
  """

  candidates: int = 8
  sampling_temperature: float = 0.7
  top_k: int = 40
  delta: float = 1.0
  weight: float = 0.1
  task: Task = dataclasses.field(default_factory=Task)

  def __post_init__(self):
    if self.candidates < 2:
      raise ValueError(
        f"SampleRank.candidates is {self.candidates}; a ranking needs at least 2"
      )


def experiment(source: str | None = None, policy: str | None = None) -> SampleRank:
  """The paper's settings on synthetic reviews, or on texts and a policy of your own."""
  return SampleRank(task=Task(source, policy=policy))


def arm(settings: SampleRank, ranking: str, seed: int) -> Experiment:
  """The experiment of an arm.

  Args:
    settings: of the study.
    ranking: of the samples; see `preference_pairs.ranked`.
    seed: of samples, order and draws.
  """
  task = settings.task
  pairs = tasks.from_start(
    preference_pairs.ranked,
    task,
    seed=seed,
    reward=task.reward,
    candidates=settings.candidates,
    kept=settings.candidates,
    rejection_beta=None,
    ranking=ranking,
    sampling_temperature=settings.sampling_temperature,
    top_k=settings.top_k,
  )
  loss = ObjectiveConfig("slic", delta=settings.delta, weight=settings.weight)
  return tasks.on_records(loss, task, pairs, seed=seed)


def arms(settings: SampleRank) -> dict[str, Experiment]:
  """Every run of the study, by label and seed."""
  return {
    f"{label}, seed {seed}": arm(settings, ranking, seed)
    for label, ranking in RANKINGS.items()
    for seed in settings.task.seeds
  }


def run(settings: SampleRank, run_dir: Path) -> int:
  """Trains both arms and judges them."""
  from xpo_jax.studies import demo
  from xpo_jax.studies.multistage import arms as study_arms

  study = study_arms.open_study(settings, run_dir)
  rows = [study_arms.start_row(study)]
  for label, ranking in RANKINGS.items():
    trained = study_arms.train_arm(
      study, lambda seed, r=ranking: arm(settings, r, seed)
    )
    rows.append(study_arms.row(study, label, trained))
  demo.show(study_arms.finish(study, "SLiC sample-rank", rows))
  return 0
