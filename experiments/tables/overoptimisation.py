"""A misspecified reward model, over-optimised: its score, another's, and the truth.

Paper: Gao et al. 2022, arXiv:2210.10760: the score of a learned reward rises with KL
  while the true reward turns; Bai et al. 2022, arXiv:2204.05862, Sec. 4: a reward model
  of other data ("test") parts from the one that is trained on ("train").
Command: python experiments/tables/overoptimisation.py
  With the same --run-dir it goes on where it was; --show draws what there is.
Hardware: 2 CPU cores; eight minutes on one of them for three seeds, beside other jobs.
Expected: the train score rises throughout; the fewer the labels, the further the test
  score and the true reward stay behind it, or turn; where the labels like long answers
  both scores rise together and the true reward does not follow: what both halves of
  the labels have wrong, holding half of them out does not show.
Departs from the paper: the misspecifications are stated, few labels in two arms, a
  liking for length in the third; RLOO with next to no tie to the start, not PPO.
Last result: 2026-11-22, three seeds, intervals over prompts and seeds; the start's true
  reward: 0.091. After 120 iterations, KL, train score, test score, true reward: 200
  labels 11 nats [6, 15], 3.15 [1.41, 4.09], 3.12 [0.13, 8.16], 0.108 [0.055, 0.163];
  400 labels 17 [9, 23], 3.03 [1.61, 4.66], 1.68 [0.45, 3.90], 0.344 [0.146, 0.618];
  labels that like length 13 [5, 23], 2.06 [1.38, 2.48], 1.33 [0.93, 1.55], 0.182
  [0.139, 0.226], at 14 tokens in place of 8. The score goes up by deviations and the
  true reward hardly moves, but it does not turn: that claim does not reproduce on
  average. (One seed of 60 labels at twice the rate fell to -0.28; three did not.) The
  train score leaves the test score behind with 400 labels, by 1.35 [0.77, 2.17]; with
  200 the seeds are too far apart to tell. What the labels have wrong both scores have
  wrong: where they like length the test score stays near the train score.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import special

from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback
from xpo_jax.evaluation import bootstrap
from xpo_jax.feedback import reward_model
from xpo_jax.report import html, line_chart
from xpo_jax.studies import demo, synthetic_world
from xpo_jax.studies.frontier import frontier_page, online_frontier
from xpo_jax.studies.multistage import stage_samples, staged

TEMPERATURE = 0.25  # reward that is one logit of a label
# Label -> pairs of each half, at most (one seed makes 799, not 800); logits of a label
# for each word the answer is longer.
ARMS = {
  "200 labels": (200, 0.0),
  "400 labels": (400, 0.0),
  "labels like length": (400, 1.0),
}
ITERATIONS, EVERY = 120, 15
NAMES = ("train score", "test score")


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs what is left to run, draws both arms, prints the table."""
  args = online_frontier.parser(__doc__, "runs/overoptimisation").parse_args(arguments)
  demo.environment()
  study = online_frontier.study()
  if args.show:
    online_frontier.read_to_show(args.run_dir)
  else:
    _ = staged.Lab(study, args.run_dir).start
  planned = {
    f"{label}, seed {seed}": (run, study, args.run_dir, label, seed)
    for seed in range(args.seeds)
    for label in ARMS
    if not online_frontier.done(args.run_dir, label, seed)
  }
  failed = {} if args.show else online_frontier.at_once(planned, args.jobs)
  arms = online_frontier.by_arm(online_frontier.read(args.run_dir))
  for label, seeds in arms.items():
    path = args.run_dir / f"{label.replace(' ', '_')}.svg"
    path.write_text(
      line_chart.svg(figure(label, seeds), standalone=True), encoding="utf-8"
    )
  tables = {"Along training": table(arms), "Claims": claims(arms)}
  frontier_page.show(args.run_dir, "Overoptimisation", tables)
  return online_frontier.report(failed)


def run(study, run_dir: Path, label: str, seed: int) -> None:
  """Two reward models on disjoint halves of the labels, RLOO on the first."""
  lab = staged.Lab(study, run_dir, online_frontier.quiet)
  halves = _labelled(lab, *ARMS[label], seed)
  directories = [
    lab.reward(f"{label}-{name}-{seed}", rows, seed=seed, epochs=4)
    for name, rows in zip(("train", "test"), halves, strict=True)
  ]
  scorers = [Configured(reward_model.scorer, directory=str(d)) for d in directories]
  experiment = synthetic_world.run(
    ObjectiveConfig("rloo", beta=0.01),
    study.world,
    feedback=Feedback(scorers[0]),
    iterations=ITERATIONS,
    optimizer=Optimizer(learning_rate=5e-4, schedule="constant"),
  )
  ask = {name: s.build() for name, s in zip(NAMES, scorers, strict=True)}
  online_frontier.online(lab, label, experiment, seed, every=EVERY, ask=ask)


def _labelled(lab: staged.Lab, pairs: int, liking: float, seed: int):
  """Pairs of the start's samples with drawn labels: those of the two halves."""
  drawn = lab.sample(lab.start.params, completions=2, seed=seed)
  words_BK = np.array([[len(y.split()) for y in ys] for ys in drawn.texts_BK])
  logit_BK = drawn.reward_BK / TEMPERATURE + liking * words_BK
  p_B = special.expit(logit_BK[:, 0] - logit_BK[:, 1])
  rows = stage_samples.labelled(drawn, p_B, np.random.default_rng((seed, 7)))
  return rows[::2][:pairs], rows[1::2][:pairs]


def figure(label: str, seeds: Mapping) -> line_chart.Figure:
  """Scores and true reward of an arm against sqrt(KL)."""
  steps = list(zip(*seeds.values(), strict=True))
  root = [online_frontier.mean(step, "kl").mean ** 0.5 for step in steps]
  series = []
  for name in ("reward", *NAMES):
    found = [online_frontier.mean(step, name) for step in steps]
    low, high = [x.low for x in found], [x.high for x in found]
    shown = "true reward" if name == "reward" else name
    y = [x.mean for x in found]
    series.append(line_chart.Series(shown, root, y, low, high, kind="both"))
  note = "Scores: 0 on the start's samples, in their deviations; true reward: VADER."
  return line_chart.Figure(label, "square root of KL, nats", "score", series, note=note)


def table(arms: frontier_page.Arms) -> html.Table:
  """A row a point: what is optimised, what is held out, what is true."""
  rows = []
  for label, seeds in arms.items():
    for step in zip(*seeds.values(), strict=True):
      cells = [
        online_frontier.mean(step, x) for x in ("kl", *NAMES, "reward", "length")
      ]
      rows.append([label, step[0].iteration, *map(str, cells)])
  header = ["arm", "iteration", "KL, nats", *NAMES, "true reward", "tokens"]
  caption = (
    "Mean [95 %] over held-out prompts and the seeds; scores in deviations of the "
    "start's samples."
  )
  return html.Table(header, rows, caption)


def claims(arms: frontier_page.Arms) -> html.Table:
  """Whether the score went on where the truth did not, and left the other behind."""
  rows = []
  for label, seeds in arms.items():
    best = max(
      range(len(next(iter(seeds.values())))),
      key=lambda i: online_frontier.mean([p[i] for p in seeds.values()], "reward").mean,
    )
    at, last = ([p[i] for p in seeds.values()] for i in (best, -1))
    score, true = (online_frontier.gap(last, at, x) for x in (NAMES[0], "reward"))
    ours = (
      f"from iteration {at[0].iteration}, where it is best, to {last[0].iteration}: "
      f"train score {score}, true reward {true}"
    )
    claim, turns = f"{label}: score up, true reward down", score.low > 0 > true.high
    rows.append(["arXiv:2210.10760", claim, ours, _verdict(turns)])
    ahead_SP = np.stack([p.column(NAMES[0]) - p.column(NAMES[1]) for p in last])
    ahead = bootstrap.bootstrap_seeds(ahead_SP)
    claim = f"{label}: the train score leaves the test score behind"
    ours = f"by {ahead} at iteration {last[0].iteration}"
    rows.append(["arXiv:2204.05862", claim, ours, _verdict(ahead.low > 0)])
  caption = "Paired over prompts and seeds; the best point is chosen on these prompts."
  return html.Table(["paper", "claim", "ours", "verdict"], rows, caption)


def _verdict(holds: bool) -> str:
  return "reproduces" if holds else "does not separate here"


if __name__ == "__main__":
  try:
    sys.exit(main())
  except ValueError as error:
    sys.exit(f"{error}")
