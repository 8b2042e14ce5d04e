"""A preference that goes round in a circle: Nash-MD against a Bradley-Terry reward.

Paper: Munos et al. 2023 (NLHF), arXiv:2312.00886: no reward explains an intransitive
  preference; a Nash equilibrium of the game is beaten by nobody more often than not.
Command: python experiments/tables/nash.py
  With the same --run-dir it goes on where it was; --show prints what there is, the
  exact part always.
Hardware: 2 CPU cores; the exact part takes seconds, three seeds on text four minutes.
Expected: at equal KL the best answer to the policy wins less often against Nash-MD than
  against the optimum of a Bradley-Terry reward fitted on the start's own answers.
Departs from the paper: exploitability is what the best single answer gains; the paper
  compares head to head, which an equilibrium need not win.
Last result: 2026-11-22. Exact: exploitability of Nash, and of Bradley-Terry at its KL,
  0.043 and 0.044 (0.002 nats), 0.047 and 0.050 (0.015), 0.039 and 0.056 (0.081), 0.015
  and 0.046 (0.190), 0.005 and 0.045 (0.205); the reference has 0.040, so that a strong
  tie makes both worse than it. Head to head Nash wins 50.0 to 50.3 %. On text, three
  seeds, they do not separate: exploitability 0.217 [0.199, 0.234] at the start; Nash-MD
  0.195 [0.171, 0.216], 0.191, 0.199, 0.204 [0.181, 0.227] at 0.25, 0.48, 0.54, 0.55
  nats; RLOO on the reward 0.188 [0.164, 0.211], 0.204, 0.203, 0.213 [0.190, 0.237] at
  0.69, 2.4, 4.8, 9.7.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback
from xpo_jax.feedback import reward_model
from xpo_jax.ops import preference_games
from xpo_jax.report import html
from xpo_jax.studies import demo, find_recipe, synthetic_world
from xpo_jax.studies.frontier import frontier_page, online_frontier
from xpo_jax.studies.multistage import stage_samples, staged

# Rock beats scissors, scissors paper, paper rock: 0.9, 0.7, 0.6; rock is common.
WIN = np.array([[0.5, 0.4, 0.9], [0.6, 0.5, 0.3], [0.1, 0.7, 0.5]])
REFERENCE = np.log([0.6, 0.3, 0.1])
BETAS = (1.0, 0.3, 0.1, 0.03, 0.01)
EVERY = 15  # iterations from one point to the next
# An answer of each kind of praise that `nash_md`'s judge tells apart.
PRAISE = (" good.", " fine.", " warm.")


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs what is left to run; prints the exact table and theirs."""
  args = online_frontier.parser(__doc__, "runs/nash").parse_args(arguments)
  demo.environment()
  study, failed = online_frontier.study(), {}
  if not args.show:
    _ = staged.Lab(study, args.run_dir).start
    planned = {
      f"{label}, seed {seed}": (run, study, args.run_dir, label, seed)
      for seed in range(args.seeds)
      for label in ARMS
      if not online_frontier.done(args.run_dir, label, seed)
    }
    failed = online_frontier.at_once(planned, args.jobs)
  arms = online_frontier.by_arm(online_frontier.read(args.run_dir))
  tables = {"Three answers, exact": exact(), "On text": sampled(arms)}
  frontier_page.show(args.run_dir, "Nash and Bradley-Terry", tables)
  return online_frontier.report(failed)


def exact() -> html.Table:
  """Tabular policies of three answers, no sampling: both at the equilibrium's KL."""
  equilibrium, tilted = jax.jit(_equilibrium), jax.jit(_tilted)
  reward = preference_games.bradley_terry(WIN, REFERENCE)
  rows = []
  for beta in BETAS:
    nash = equilibrium(beta)
    kl = _kl(nash)
    rewarded = tilted(reward, kl)
    gaps = [
      float(preference_games.exploitability(WIN, logp)) for logp in (nash, rewarded)
    ]
    shares = [" ".join(f"{p:.2f}" for p in np.exp(x)) for x in (nash, rewarded)]
    head = float(np.exp(nash) @ WIN @ np.exp(rewarded))
    rows.append(
      [beta, f"{kl:.3f}", *(f"{g:.3f}" for g in gaps), *shares, f"{head:.3f}"]
    )
  start = float(preference_games.exploitability(WIN, REFERENCE))
  header = ["beta", "KL, nats", "Nash", "Bradley-Terry", "Nash plays", "BT plays"]
  caption = (
    "Exploitability, max P(answer > policy) - 1/2, of the equilibrium tied to the "
    "reference by beta and of the Bradley-Terry optimum at the same KL; the reference "
    f"has {start:.3f}. Last: how often Nash beats Bradley-Terry."
  )
  return html.Table([*header, "head to head"], rows, caption)


def _equilibrium(beta):
  """Nash-MD's last iterate."""

  def step(logp, t):
    eta = 2 / (beta * (t + 2))
    return preference_games.nash_md_step(logp, REFERENCE, WIN, beta, eta), None

  return jax.lax.scan(step, jnp.asarray(REFERENCE), jnp.arange(20_000.0))[0]


def _tilted(reward, kl):
  """ref exp(strength reward) / Z at a KL, the strength found by halving."""

  def at(strength):
    return jax.nn.log_softmax(REFERENCE + strength * reward)

  def halve(_, ends):
    middle = ends.mean()
    less = _kl(at(middle)) < kl
    return jnp.where(less, ends.at[0].set(middle), ends.at[1].set(middle))

  return at(jax.lax.fori_loop(0, 50, halve, jnp.array([0.0, 100.0])).mean())


def _kl(logp):
  return (jnp.exp(logp) * (logp - REFERENCE)).sum()


def _win_rates(lab: staged.Lab, seed: int) -> Feedback:
  """The judge itself, about the policy's own samples."""
  del lab, seed
  return find_recipe.load("nash_md").experiment.feedback


def _rewards(lab: staged.Lab, seed: int) -> Feedback:
  """A reward model of pairs of the start's samples, labelled by the judge."""
  judge = _win_rates(lab, seed).source.build()
  drawn = lab.sample(lab.start.params, completions=2, seed=seed)
  first, second = zip(*drawn.texts_BK, strict=True)
  p_B = judge(drawn.prompts, first, second).value_N
  rows = stage_samples.labelled(drawn, p_B, np.random.default_rng((seed, 6)))
  directory = lab.reward(f"reward-{seed}", rows, seed=seed, epochs=3)
  return Feedback(Configured(reward_model.scorer, directory=str(directory)))


# Label -> objective, how it is judged; both learn from as many samples.
ARMS = {
  "Nash-MD": (ObjectiveConfig("nash_md", beta=0.05), _win_rates),
  "RLOO, Bradley-Terry": (ObjectiveConfig("rloo", beta=0.05), _rewards),
}


def run(study, run_dir: Path, label: str, seed: int) -> None:
  """One arm, one seed; at each point every kind of praise plays against the policy."""
  lab = staged.Lab(study, run_dir, online_frontier.quiet)
  objective, feedback = ARMS[label]
  sampling = find_recipe.load("nash_md").experiment.sampling
  judged = feedback(lab, seed)
  if judged.kind == "scores":
    sampling = find_recipe.load("rloo").experiment.sampling
  experiment = synthetic_world.run(
    objective, study.world, feedback=judged, sampling=sampling
  )
  judge = _win_rates(lab, seed).source.build()
  ask = {text: functools.partial(_plays, judge, text) for text in PRAISE}
  online_frontier.online(lab, label, experiment, seed, every=EVERY, ask=ask)


def _plays(judge, text: str, prompts, completions):
  """How an answer fares against the policy's completions."""
  return judge(prompts, [text] * len(prompts), completions)


def sampled(arms) -> html.Table:
  """The loop's policies on text: KL, and what the best kind of praise gains."""
  rows = []
  for label, seeds in arms.items():
    for step in zip(*seeds.values(), strict=True):
      wins = [online_frontier.mean(step, text) for text in PRAISE]
      best = max(wins, key=lambda one: one.mean)
      gain = f"{best.mean - 0.5:.3f} [{best.low - 0.5:.3f}, {best.high - 0.5:.3f}]"
      kl = online_frontier.mean(step, "kl")
      rows.append(
        [label, step[0].iteration, str(kl), gain, *(f"{w.mean:.3f}" for w in wins)]
      )
  header = ["arm", "iteration", "KL, nats", "exploitability", *PRAISE]
  caption = (
    "Mean [95 %] over held-out prompts and the seeds; exploitability: the best kind's "
    "win rate against the policy, less 1/2 (the interval is of that kind alone); then "
    "each kind's win rate."
  )
  return html.Table(header, rows, caption)


if __name__ == "__main__":
  try:
    sys.exit(main())
  except ValueError as error:
    sys.exit(f"{error}")
