"""Online methods, offline DPO and best of n: true reward at equal KL.

Paper: Ahmadian et al. 2024, arXiv:2402.14740: RLOO above RAFT, REINFORCE and PPO; Guo
  et al. 2024 (OAIF), arXiv:2402.04792: online DPO above offline DPO.
Command: xpo train ahmadian2024_frontier [source=TEXTS.jsonl policy=DIR] [--jobs 2]
  The same command goes on with an interrupted run; --show draws the points there are.
Hardware: 2 CPU cores, with offline DPO's points there minutes on synthetic reviews, a
  quarter of an hour on movie sentences.
Expected: every method's reward rises with KL and stays below best of n.
Result: RLOO - RAFT, true reward at 0.25 nats: {RLOO - RAFT, synthetic reviews, at 0.25
  nats | reward}, three seeds.
"""

import dataclasses
from pathlib import Path

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.evaluation import optimal_policy
from xpo_jax.studies import find_recipe
from xpo_jax.studies import task as tasks
from xpo_jax.studies.frontier import frontier_page, online_frontier, processes
from xpo_jax.studies.frontier.frontier_page import OrderingClaim
from xpo_jax.studies.frontier.online_frontier import JudgedRun
from xpo_jax.studies.multistage import arms as study_arms
from xpo_jax.studies.multistage import preference_pairs
from xpo_jax.studies.task import Task

# Label -> recipe, judged along training.
ONLINE = {
  "PPO": "ppo",
  "RLOO": "rloo",
  "REINFORCE": "reinforce",
  "RAFT": "raft",
  "online DPO": "online_dpo",
}
OFFLINE = "offline DPO"
RLOO, OAIF = "RLOO, arXiv:2402.14740", "OAIF, arXiv:2402.04792"
CLAIMS = (
  OrderingClaim(OAIF, "online beats offline", "online DPO", OFFLINE),
  OrderingClaim(RLOO, "all samples teach more than the best", "RLOO", "RAFT"),
  OrderingClaim(RLOO, "PPO's machinery is not needed", "RLOO", "PPO"),
  OrderingClaim(RLOO, "a baseline of the prompt's own", "RLOO", "REINFORCE"),
)


@dataclasses.dataclass(frozen=True)
class OnlineFrontier:
  """Settings.

  Attributes:
    every: iterations between two judged policies of an online run; rewards at a KL are
      interpolated between them.
    betas: of offline DPO, a run each.
    pool: samples of the start for each prompt, of which best of n is computed.
    best_of: values of n; at most `pool`.
    matched_kl: nats at which arms are compared.
    task: start, reward and sizes.
    jobs: processes at once.
    show: train nothing, show the points there are.
  """

  every: int = 5
  betas: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
  pool: int = 64
  best_of: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
  matched_kl: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
  task: Task = dataclasses.field(default_factory=Task)
  jobs: int = 2
  show: bool = False


def experiment(source: str | None = None, policy: str | None = None) -> OnlineFrontier:
  """Six methods on synthetic reviews, or on texts and a policy of your own."""
  return OnlineFrontier(task=Task(source, policy=policy))


def judged_runs(settings: OnlineFrontier) -> list[JudgedRun]:
  """Every online recipe and offline DPO over its betas, seed by seed."""
  source = settings.task.source
  words = [] if source is None else [f"source={source}"]
  recipes = {x: find_recipe.load(name, words).experiment for x, name in ONLINE.items()}
  runs = []
  for seed in settings.task.seeds:
    for label, recipe in recipes.items():
      one = online_frontier.on_task(recipe, settings.task, seed=seed)
      one = online_frontier.with_checkpoints(one, settings.every)
      runs.append(JudgedRun(label, seed, one))
    for beta in settings.betas:
      one = offline_dpo(settings.task, beta, seed)
      runs.append(JudgedRun(OFFLINE, seed, one, strength=beta))
  return runs


def offline_dpo(task: Task, beta: float, seed: int) -> Experiment:
  """DPO on one pair of the start's samples for each prompt."""
  pairs = tasks.from_start(
    preference_pairs.ranked,
    task,
    seed=seed,
    reward=task.reward,
    candidates=2,
    kept=2,
    rejection_beta=None,
  )
  return tasks.on_records(ObjectiveConfig("dpo", beta=beta), task, pairs, seed=seed)


def arms(settings: OnlineFrontier) -> dict[str, Experiment]:
  """Every run of the study, by label and seed."""
  return online_frontier.run_names(judged_runs(settings))


def run(settings: OnlineFrontier, run_dir: Path) -> int:
  """Trains and judges what is missing, draws the plot, prints both tables."""
  runs = judged_runs(settings)
  study, failed = online_frontier.measure_missing(settings, run_dir, runs)
  start = study_arms.start(study).params
  pool_PS = study_arms.judge(study, start, seed=0, eval_samples=settings.pool).reward_PK
  caption = (
    f"True reward, mean [95 %] over {len(pool_PS)} held-out prompts and the seeds; the "
    f"start has {pool_PS.mean():.3f}. Best of n at the bound of its KL, from one pool "
    "of the start's samples: it needs n samples at inference."
  )
  frontier_page.show_frontier(
    run_dir,
    "True reward against KL, along training",
    online_frontier.read(study, runs),
    CLAIMS,
    settings.matched_kl,
    caption=caption,
    note="Bars: 95 % over prompts and seeds. Offline DPO: a point a beta.",
    best_of_n=optimal_policy.best_of_n(pool_PS, settings.best_of),
  )
  return processes.exit_code(failed)
