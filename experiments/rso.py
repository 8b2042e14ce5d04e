"""RSO: DPO-style losses on pairs drawn by statistical rejection sampling.

Paper: Liu et al. 2023, arXiv:2309.06657: 64 candidates of the SFT policy, 8 accepted by
  statistical rejection sampling, ranked in a first round, sigmoid- or hinge-norm loss.
Command: xpo train rso [--beta 0.5 --gamma 0.05 --ranking tournament]
Hardware: 2 CPU cores, minutes for three seeds.
Expected: accepted pairs give more reward than the first 8 samples (paper, Table 1: RSO
  above sft-sample-rank by 0.2 to 4 points of its proxy); at this size, direction only.
Departs from the paper: the ranking model is the task's true reward, its logit
  reward / temperature; it has no error to overfit to.
Result: RSO - sft-sample-rank, true reward: not separable ({RSO, sigmoid-norm | reward}
  against {sft-sample-rank | reward}), three seeds.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import preference_pairs
from xpo_jax.studies.task import Task


@dataclasses.dataclass(frozen=True)
class Rso:
  """Settings.

  Attributes:
    candidates: samples of the SFT policy for each prompt. Paper: 64.
    accepted: of these. Paper: 8.
    sampling_temperature: of the samples. Paper: 0.7.
    top_k: of the samples. Paper: 40.
    beta: temperature of the sampler's target, in the ranking model's logits; 0 takes
      the best. Paper: 0.5.
    gamma: strength of the loss. Paper: 0.05.
    temperature: reward that is one logit of the ranking model.
    ranking: which of the accepted are compared: "first_round", disjoint neighbours, or
      "tournament". Paper: both.
    task: start, reward and sizes.
  """

  candidates: int = 64
  accepted: int = 8
  sampling_temperature: float = 0.7
  top_k: int = 40
  beta: float = 0.5
  gamma: float = 0.05
  temperature: float = 0.25
  ranking: Literal["first_round", "tournament"] = "first_round"
  task: Task = dataclasses.field(default_factory=Task)

  def __post_init__(self):
    if not 2 <= self.accepted <= self.candidates:
      raise ValueError(
        f"Rso.accepted is {self.accepted} of {self.candidates} candidates; accept 2 at "
        "least, and no more than there are"
      )
    if not self.temperature > 0:
      raise ValueError(f"Rso.temperature is {self.temperature}; it must be > 0")


def experiment(source: str | None = None, policy: str | None = None) -> Rso:
  """The paper's settings on synthetic reviews, or on texts and a policy of your own."""
  return Rso(task=Task(source, policy=policy))


def arm(
  settings: Rso, objective: ObjectiveConfig, *, rejection: bool, seed: int
) -> Experiment:
  """The experiment of an arm.

  Args:
    settings: of the study.
    objective: the loss.
    rejection: accept by rejection sampling; False: the first samples.
    seed: of samples, order and draws.
  """
  task = settings.task
  pairs = tasks.from_start(
    preference_pairs.ranked,
    task,
    seed=seed,
    reward=task.reward,
    candidates=settings.candidates,
    kept=settings.accepted,
    rejection_beta=settings.beta if rejection else None,
    temperature=settings.temperature,
    ranking=settings.ranking,
    sampling_temperature=settings.sampling_temperature,
    top_k=settings.top_k,
  )
  return tasks.on_records(objective, task, pairs, seed=seed)


def variants(settings: Rso) -> dict[str, tuple[ObjectiveConfig, bool]]:
  """Label -> loss, and whether pairs are of accepted samples."""
  sigmoid = ObjectiveConfig("rso", beta=settings.gamma)
  hinge = ObjectiveConfig("rso", beta=settings.gamma, link="hinge")
  return {
    "RSO, sigmoid-norm": (sigmoid, True),
    "RSO, hinge-norm": (hinge, True),
    "sft-sample-rank": (sigmoid, False),
  }


def arms(settings: Rso) -> dict[str, Experiment]:
  """Every run of the study, by label and seed."""
  return {
    f"{label}, seed {seed}": arm(settings, loss, rejection=rejection, seed=seed)
    for label, (loss, rejection) in variants(settings).items()
    for seed in settings.task.seeds
  }


def run(settings: Rso, run_dir: Path) -> int:
  """Trains the three arms and judges them."""
  from xpo_jax.studies import demo
  from xpo_jax.studies.multistage import arms as study_arms

  study = study_arms.open_study(settings, run_dir)
  rows = [study_arms.start_row(study)]
  for label, (loss, rejection) in variants(settings).items():
    trained = study_arms.train_arm(
      study,
      lambda seed, o=loss, r=rejection: arm(settings, o, rejection=r, seed=seed),
    )
    rows.append(study_arms.row(study, label, trained))
  demo.show(study_arms.finish(study, "RSO", rows))
  return 0
