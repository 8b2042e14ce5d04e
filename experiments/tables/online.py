"""Every recipe that learns from samples, from one start: claim, ours, verdict.

Paper: Ahmadian et al. 2024, arXiv:2402.14740, Table 1, and the papers that the claims
  below name. Theirs are models of billions of parameters, ours has some 170 thousand.
Command: python experiments/tables/online.py [--seeds 3 --jobs 2 --only rloo,ppo]
  With the same --run-dir it goes on where it was, recipes with stages with as many
  seeds as they began with; --show prints what there is, tables.md keeps it.
Hardware: 2 CPU cores; the 18 loops took 26 minutes on one of them, beside other jobs.
Expected: more true reward than the start's for every recipe; nothing is claimed of
  which recipe is best: their strengths are not matched.
Last result: 2026-11-22, three seeds. True reward, start 0.091: PPO 0.837 at 2.8 nats,
  GSPO and DAPO 0.73 at 4.6 and 4.5, Dr. GRPO 0.72 at 7.0, GRPO 0.69 at 3.4, DNO 0.66 at
  2.4, SPPO 0.65 at 1.8, REINFORCE 0.62 at 1.0, RLOO 0.59 at 0.9, XPO 0.58 at 3.8,
  direct RLAIF 0.54 at 0.8, online DPO 0.47 at 1.3, iterative CRINGE and DPO 0.44 and
  0.43 at 2.2 and 1.0, ReMax 0.42 at 0.6, PPO-ptx 0.40 at 0.3, Nash-MD 0.32 at 0.5, RAFT
  0.30 at 0.5; intervals within 0.05 of the means. Recipes with stages: see their own
  files. Claims: RLOO above RAFT, DAPO and GSPO above GRPO, XPO and SPPO above iterative
  DPO as their papers say; RLOO above REINFORCE and above PPO the other way round (the
  KLs differ: 0.9 and 2.8); GRPO's longer answers not separable.
"""

import contextlib
import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from xpo_jax.config.experiment import Rollouts
from xpo_jax.evaluation import bootstrap
from xpo_jax.report import html
from xpo_jax.studies import demo, find_recipe, synthetic_world
from xpo_jax.studies.frontier import frontier_page, online_frontier
from xpo_jax.studies.multistage import staged
from xpo_jax.studies.multistage.staged_world import World

STAGED = "staged"  # a directory for each recipe that has stages of its own
START = "SFT"
# Paper; claim; the recipe that has more; than which; of what.
CLAIMS = (
  (
    "RLOO, arXiv:2402.14740, Table 1",
    "learning from all samples wins more often than from the best",
    "rloo",
    "raft",
    "reward",
  ),
  (
    "RLOO, arXiv:2402.14740, Table 1",
    "the others of the prompt are a better baseline than a mean over time",
    "rloo",
    "reinforce",
    "reward",
  ),
  (
    "RLOO, arXiv:2402.14740, Table 1",
    "REINFORCE with leave-one-out wins more often than PPO",
    "rloo",
    "ppo",
    "reward",
  ),
  (
    "Dr. GRPO, arXiv:2503.20783",
    "GRPO's division by length makes longer answers",
    "grpo",
    "dr_grpo",
    "length",
  ),
  (
    "DAPO, arXiv:2503.14476",
    "more reward than GRPO in as many steps",
    "dapo",
    "grpo",
    "reward",
  ),
  (
    "GSPO, arXiv:2507.18071",
    "ratios of sequences learn more than ratios of tokens",
    "gspo",
    "grpo",
    "reward",
  ),
  (
    "XPO, arXiv:2405.21046",
    "an exploration bonus adds to iterative DPO",
    "exploratory_dpo",
    "iterative_dpo",
    "reward",
  ),
  (
    "SPPO, arXiv:2405.00675",
    "self-play on win rates does better than iterative DPO",
    "sppo",
    "iterative_dpo",
    "reward",
  ),
)


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs what is left to run, prints both tables; 1 where a recipe failed."""
  parser = online_frontier.parser(__doc__, "runs/tables-online")
  parser.add_argument("--only", help="recipes, with commas between; default: all")
  args = parser.parse_args(arguments)
  demo.environment()
  study, failed = online_frontier.study(), {}
  chosen = recipes(args.only.split(",") if args.only else None)
  if args.show:
    online_frontier.read_to_show(args.run_dir)
  else:
    # Both the lab and the tokenizer belong to the start: made before any job.
    _ = staged.Lab(study, args.run_dir).start
    planned = tasks(study, args.run_dir, chosen, range(args.seeds))
    failed = online_frontier.at_once(planned, args.jobs)
  points = online_frontier.by_arm(online_frontier.read(args.run_dir))
  last = {arm: [p[-1] for p in seeds.values()] for arm, seeds in points.items()}
  tables = {"Recipes": results(last, study.world, args.run_dir), "Claims": claims(last)}
  frontier_page.show(args.run_dir, "Every recipe that learns from samples", tables)
  return online_frontier.report(failed)


def recipes(only: Sequence[str] | None = None) -> dict[str, find_recipe.Recipe]:
  """The recipes of `experiments/` that run in the embedded world, by name.

  Raises:
    ValueError: one of `only` is none of them.
  """
  found = {}
  for name in find_recipe.names():
    if find_recipe.required(name):  # a file of one's own
      continue
    recipe = find_recipe.load(name)
    if isinstance(vars(recipe.experiment).get("data"), Rollouts) or _world_of(recipe):
      found[name] = recipe
  unknown = sorted(set(only or ()) - set(found))
  if unknown:
    raise ValueError(f"--only {unknown[0]}: recipes are {', '.join(found)}")
  return {name: recipe for name, recipe in found.items() if not only or name in only}


def _world_of(recipe: find_recipe.Recipe) -> World | None:
  """The world of a recipe with stages; None where it is something else."""
  world = recipe.run and vars(recipe.experiment).get("world")
  return world if isinstance(world, World) else None


def tasks(
  study, run_dir: Path, chosen: Mapping[str, find_recipe.Recipe], seeds
) -> dict:
  """What is to be done, the first seed of all before the second of any."""
  planned = {}
  loops = [name for name, recipe in chosen.items() if recipe.run is None]
  for seed in seeds:
    planned[f"{START}, seed {seed}"] = (judge_start, study, run_dir, seed)
    for name in loops:
      planned[f"{name}, seed {seed}"] = (run_loop, study, run_dir, name, seed)
  for name in chosen:
    if name not in loops:
      planned[name] = (run_stages, study, run_dir, name, tuple(seeds))
  return planned


def judge_start(study, run_dir: Path, seed: int) -> None:
  """The row of the start."""
  lab = staged.Lab(study, run_dir, online_frontier.quiet)
  online_frontier.other(lab, START, seed, lambda: [(0, lab.start.params)])


def run_loop(study, run_dir: Path, name: str, seed: int) -> None:
  """One recipe that is an online experiment, one seed."""
  lab = staged.Lab(study, run_dir, online_frontier.quiet)
  online_frontier.online(lab, name, find_recipe.load(name).experiment, seed)


def run_stages(study, run_dir: Path, name: str, seeds: tuple[int, ...]) -> None:
  """One recipe of several stages, all seeds; where its start is the study's, a copy."""
  recipe, directory = find_recipe.load(name), run_dir / STAGED / name
  world = dataclasses.replace(_world_of(recipe), seeds=seeds)
  settings = dataclasses.replace(recipe.experiment, world=world)
  _ = staged.Lab(
    settings, directory, online_frontier.quiet
  )  # the directory's, or refused
  same = synthetic_world.writer(world) == synthetic_world.writer(study.world)
  if same and not (directory / staged.SFT).exists():
    half = directory / f"{staged.SFT}.part"
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(run_dir / staged.SFT, half)
    half.replace(directory / staged.SFT)
  if not (directory / staged.RESULTS).exists():
    with (directory / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
      recipe.run(settings, directory)


def results(last: Mapping, world: World, run_dir: Path):
  """A row a recipe; of a recipe with stages, a row for each of its arms."""
  header = ["recipe", "true reward", "over SFT", "KL, nats", "tokens", "seconds"]
  rows = []
  for label, points in last.items():
    change = online_frontier.gap(points, last.get(START, ()), "reward")
    columns = ("reward", "kl", "length")
    reward, kl, length = (online_frontier.mean(points, column) for column in columns)
    cells = [reward, "" if label == START else change, kl, length]
    spent = sum(p.seconds for p in points) / len(points)
    seeds = "" if len(points) == len(world.seeds) else f" ({len(points)} seeds)"
    rows.append([label + seeds, *cells, f"{spent:.0f}"])
  for file in sorted((run_dir / STAGED).glob("*/results.json")):
    for row in json.loads(file.read_text(encoding="utf-8")):
      if row["label"] != START:
        measured = [row.get(x) for x in ("reward", "change", "kl", "length")]
        label = f"{file.parent.name}: {row['label']}"
        rows.append([label, *map(_cell, measured), f"{row['seconds']:.0f}"])
  caption = (
    f"Mean [95 %] over {world.prompts} held-out prompts x {world.samples} samples and "
    "the seeds; reward: VADER; over SFT: paired; KL to SFT; seconds of a seed's run on "
    "one of the processes, of stages all seeds together."
  )
  return html.Table(header, rows, caption)


def _cell(x) -> str:

  if x is None:
    return ""
  return str(bootstrap.Interval(**x)) if isinstance(x, dict) else f"{x:.3g}"


def claims(last: Mapping):
  """Papers' claims beside ours, where both recipes have been run."""
  rows = []
  for source, claim, more, less, column in CLAIMS:
    if more in last and less in last:
      found = online_frontier.gap(last[more], last[less], column)
      kl = [online_frontier.mean(last[x], "kl").mean for x in (more, less)]
      ours = f"{column}, {more} - {less}: {found}; {kl[0]:.2f} and {kl[1]:.2f} nats"
      rows.append([source, claim, ours, verdict(found)])
  caption = (
    "Of the policies after the last iteration, paired over prompts and seeds, at the "
    "recipes' own strengths: where the KLs differ, so may the verdict at equal KL. "
    "Steps, samples and hyperparameters were not tuned method by method."
  )
  return html.Table(["paper", "claim", "ours", "verdict"], rows, caption)


def verdict(found) -> str:
  """What a difference says of the claim that it is positive."""
  if found is None:
    return "cannot be compared: no seed that both have"
  if found.low > 0:
    return "the same way here"
  return "the other way here" if found.high < 0 else "not separable here"


if __name__ == "__main__":
  try:
    sys.exit(main())
  except ValueError as error:
    sys.exit(f"{error}")
