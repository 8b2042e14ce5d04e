"""Online methods, offline DPO and best of n on one reward-KL plot.

Paper: Guo et al. 2024 (OAIF), arXiv:2402.04792: online DPO above offline DPO; Ahmadian
  et al. 2024, arXiv:2402.14740: RLOO above RAFT, REINFORCE and PPO.
Command: python experiments/tables/online_frontier.py [--source TEXTS.jsonl]
  With the same --run-dir it goes on where it was; --show draws what there is.
Hardware: 2 CPU cores; three seeds on one of them, beside other jobs and with offline
  DPO's points there: five minutes in the embedded world, ten on movie sentences.
Expected: every method's reward rises with KL and stays below best of n.
Last result: 2026-11-22, three seeds. Embedded world, true reward from 0.099 at 0.25,
  0.5, 1, 2 nats: best of n 0.442, 0.570, 0.721, 0.842; REINFORCE 0.330, 0.435; RLOO
  0.317 [0.284, 0.349], 0.408 [0.368, 0.449]; offline DPO 0.291, 0.304; RAFT 0.243;
  online DPO, whose judge errs on a tenth, 0.208, 0.308, 0.397; PPO 0.249, 0.348, 0.512,
  0.692 [0.669, 0.714]. Paired: RLOO above RAFT by 0.074 [0.027, 0.121] at 0.25, above
  PPO by 0.068 [0.018, 0.124] and 0.060 [0.009, 0.125] at 0.5; RLOO and REINFORCE do not
  separate (-0.013, -0.026); online DPO is below offline DPO at 0.25 (-0.083 [-0.122,
  -0.003]), level at 0.5 (0.004). Movie sentences, from 0.097: best of n 0.192, 0.247,
  0.358, 0.560; RLOO 0.149; REINFORCE 0.131; RAFT 0.122; online DPO 0.120, 0.133, 0.162
  [0.111, 0.208]; offline DPO 0.130 and 0.142 at 0.5 and 1; PPO 0.112, 0.123, 0.191,
  0.288 [0.245, 0.327]. RLOO above RAFT (0.027 [0.006, 0.046]) and PPO (0.037 [0.018,
  0.056]) at 0.25; nothing else separates.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.evaluation import frontier, optimal_policy
from xpo_jax.ops import pairing
from xpo_jax.report import line_chart
from xpo_jax.studies import demo, find_recipe
from xpo_jax.studies.frontier import frontier_page, online_frontier
from xpo_jax.studies.frontier.frontier_page import Claim
from xpo_jax.studies.multistage import stage_samples, staged

# Label -> recipe, judged along its training.
ONLINE = {
  "PPO": "ppo",
  "RLOO": "rloo",
  "REINFORCE": "reinforce",
  "RAFT": "raft",
  "online DPO": "online_dpo",
}
OFFLINE, BETAS = "offline DPO", (0.1, 0.3, 1.0, 3.0)
EVERY = 5  # iterations from one point to the next: KLs are read between neighbours
POOL, BEST_OF = 64, (1, 2, 4, 8, 16, 32)
MATCHED = (0.25, 0.5, 1.0, 2.0)  # nats
CLAIMS = (
  Claim("OAIF, arXiv:2402.04792", "online beats offline", "online DPO", OFFLINE),
  Claim(
    "RLOO, arXiv:2402.14740", "all samples teach more than the best", "RLOO", "RAFT"
  ),
  Claim("RLOO, arXiv:2402.14740", "PPO's machinery is not needed", "RLOO", "PPO"),
  Claim(
    "RLOO, arXiv:2402.14740", "a baseline of the prompt's own", "RLOO", "REINFORCE"
  ),
)


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs what is left to run, draws the plot, prints both tables."""
  parser = online_frontier.parser(__doc__, "runs/online-frontier")
  parser.add_argument("--source", help="texts of your own, as JSONL")
  args = parser.parse_args(arguments)
  demo.environment()
  study, failed = online_frontier.study(args.source), {}
  if args.show:
    online_frontier.read_to_show(args.run_dir)
  lab = staged.Lab(study, args.run_dir)
  pool_PS = lab.judge(lab.start.params, seed=0, samples=POOL).reward_PK
  if not args.show:
    planned = {}
    for seed in range(args.seeds):
      for label in ONLINE:
        planned[f"{label}, seed {seed}"] = (
          run_online,
          study,
          args.run_dir,
          label,
          seed,
        )
      planned[f"{OFFLINE}, seed {seed}"] = (run_offline, study, args.run_dir, seed)
    failed = online_frontier.at_once(planned, args.jobs)
  arms = online_frontier.by_arm(online_frontier.read(args.run_dir))
  best = [
    frontier.Run("best of n", p.strength, 0, p.reward_P, p.kl_P)
    for p in optimal_policy.best_of_n(pool_PS, BEST_OF)
  ]
  series = [frontier_page.curve(label, seeds) for label, seeds in arms.items()]
  kl, reward = [r.kl_P.mean() for r in best], [r.reward_P.mean() for r in best]
  series.append(line_chart.Series("best of n", kl, reward, kind="dashed"))
  note = "Bars: 95 % over prompts and seeds. Offline DPO: a point a beta."
  title = "True reward against KL, along training"
  frontier_page.draw(args.run_dir / "frontier.svg", title, series, note)
  found = {label: frontier_page.runs(seeds) for label, seeds in arms.items()}
  caption = (
    f"True reward, mean [95 %] over {len(pool_PS)} held-out prompts and the seeds; the "
    f"start has {pool_PS.mean():.3f}. Best of n at the bound of its KL, from one pool "
    "of the start's samples: it pays at inference."
  )
  found["best of n"] = best
  tables = {
    "Equal KL": frontier_page.matched(found, MATCHED, caption),
    "Claims": frontier_page.claims(CLAIMS, arms, MATCHED),
  }
  frontier_page.show(args.run_dir, title, tables)
  return online_frontier.report(failed)


def run_online(study, run_dir: Path, label: str, seed: int) -> None:
  """One recipe, one seed, a point every few iterations."""
  lab = staged.Lab(study, run_dir, online_frontier.quiet)
  source = study.world.source
  given = [] if source is None else [f"source={source}"]
  experiment = find_recipe.load(ONLINE[label], given).experiment
  online_frontier.online(lab, label, experiment, seed, every=EVERY)


def run_offline(study, run_dir: Path, seed: int) -> None:
  """DPO on one pair of the start's samples for each asked prompt, a point a beta."""
  lab = staged.Lab(study, run_dir, online_frontier.quiet)

  def stages():
    sampled = lab.sample(lab.start.params, completions=2, seed=seed)
    both = pairing.first_two(sampled.reward_BK, np.ones_like(sampled.reward_BK))
    columns = (both.chosen_B, both.rejected_B, both.keep_B)
    rows = stage_samples.pairs(sampled, *(np.asarray(x)[:, None] for x in columns))
    for number, beta in enumerate(BETAS):
      name = f"dpo-{beta:g}-{seed}"
      yield (
        number,
        lab.stage(name, ObjectiveConfig("dpo", beta=beta), rows, seed=seed).params,
      )

  online_frontier.other(lab, OFFLINE, seed, stages)


if __name__ == "__main__":
  try:
    sys.exit(main())
  except ValueError as error:
    sys.exit(f"{error}")
