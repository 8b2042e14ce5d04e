"""A judge that errs: what AI feedback costs in true reward, at equal KL.

Paper: Lee et al. 2023 (RLAIF), arXiv:2309.00267: a judge that agrees with people on
  about three quarters of pairs trains a policy people like as well as RLHF's; Guo et
  al. 2024 (OAIF), arXiv:2402.04792, asks the judge about the policy's own samples.
Command: python experiments/tables/noisy_judge.py [--source TEXTS.jsonl]
  With the same --run-dir it goes on where it was; --show draws what there is.
Hardware: 2 CPU cores; seven minutes on one of them for three seeds, beside another job.
Expected: an error rate that is the same on every pair shrinks the expected gradient by
  1 - 2 error and turns it nowhere: the way to a KL is longer, reward at it little less,
  until at one half there is nothing to learn.
Departs from the paper: the judge is scripted; it errs at random, not on hard pairs.
Last result: 2026-11-22, embedded world, three seeds; true reward from 0.091. After 60
  iterations, wrong on none, 10, 25, 40 % of the pairs: 0.563 [0.535, 0.590] at 1.59
  nats, 0.481 [0.437, 0.526] at 1.05, 0.324 [0.285, 0.364] at 0.43, 0.201 [0.159, 0.241]
  at 0.37. At equal KL errors cost nothing that these seeds can tell: 10 % -0.005
  [-0.055, 0.019] at 0.25 nats and -0.011 [-0.067, 0.052] at 0.5, 25 % -0.018 [-0.043,
  0.027] at 0.25; at 40 % the curve lies below the others.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from xpo_jax.config.factories import Configured
from xpo_jax.config.sampling import Feedback
from xpo_jax.feedback import noisy_judge
from xpo_jax.studies import demo, find_recipe
from xpo_jax.studies.frontier import frontier_page, online_frontier
from xpo_jax.studies.frontier.frontier_page import Claim
from xpo_jax.studies.multistage import staged

ERRORS = (0.0, 0.1, 0.25, 0.4)
EVERY = 10  # iterations from one point to the next
MATCHED = (0.25, 0.5, 1.0)  # nats


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs what is left to run, draws the plot, prints both tables."""
  parser = online_frontier.parser(__doc__, "runs/noisy-judge")
  parser.add_argument("--source", help="texts of your own, as JSONL")
  args = parser.parse_args(arguments)
  demo.environment()
  study = online_frontier.study(args.source)
  if args.show:
    online_frontier.read_to_show(args.run_dir)
  else:
    _ = staged.Lab(study, args.run_dir).start
  planned = {
    f"{arm(error)}, seed {seed}": (run, study, args.run_dir, error, seed)
    for seed in range(args.seeds)
    for error in ERRORS
  }
  failed = {} if args.show else online_frontier.at_once(planned, args.jobs)
  arms = online_frontier.by_arm(online_frontier.read(args.run_dir))
  series = [frontier_page.curve(label, seeds) for label, seeds in arms.items()]
  title = "Online DPO by judges that err, along training"
  note = "Bars: 95 % over prompts and seeds."
  frontier_page.draw(args.run_dir / "noisy_judge.svg", title, series, note)
  found = {label: frontier_page.runs(seeds) for label, seeds in arms.items()}
  caption = "True reward, mean [95 %] over held-out prompts and the seeds."
  claims = [
    Claim("RLAIF, arXiv:2309.00267", "clean labels are no better", arm(error), arm(0.0))
    for error in ERRORS[1:]
  ]
  tables = {
    "Equal KL": frontier_page.matched(found, MATCHED, caption),
    "Claims": frontier_page.claims(claims, arms, MATCHED),
  }
  frontier_page.show(args.run_dir, title, tables)
  return online_frontier.report(failed)


def arm(error: float) -> str:
  """Its label."""
  return f"error {error:.0%}"


def run(study, run_dir: Path, error: float, seed: int) -> None:
  """Online DPO by a judge that errs on a share of the pairs."""
  lab = staged.Lab(study, run_dir, online_frontier.quiet)
  judge = Configured(noisy_judge.preference, error=error, seed=seed)
  feedback = Feedback(judge, kind="win_rates")
  experiment = find_recipe.load("online_dpo").experiment
  experiment = dataclasses.replace(experiment, feedback=feedback)
  online_frontier.online(lab, arm(error), experiment, seed, every=EVERY)


if __name__ == "__main__":
  try:
    sys.exit(main())
  except ValueError as error:
    sys.exit(f"{error}")
