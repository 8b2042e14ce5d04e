"""DNO on the embedded world: margins regressed on win rates, in self-play.

Paper: Rosset et al. 2024, arXiv:2404.03715: rounds of samples ranked by a preference;
  the last round's policy is the reference.
Command: xpo train dno [source=FILE]
Hardware: 2 CPU cores; 76 s of CPU time, 37 s of them the start's.
Expected: the true reward of held-out prompts rises with every round; `eval/reward` is
  the win rate against the start.
Departs from the paper: its exact form, on all pairs of four samples; its practical form
  takes pairs far apart and a stronger model's answers, which this world has not. The
  preference is Bradley-Terry of the true reward.
Last result: 2026-11-22, three seeds, intervals over prompts and seeds: true reward of
  128 held-out prompts 0.660 [0.622, 0.698] at 2.40 nats; the start has 0.091 [0.055,
  0.126].
"""

from xpo_jax.config.experiment import Loop, ObjectiveConfig
from xpo_jax.config.on_policy import Configured, Feedback, OnlineExperiment, Sampling
from xpo_jax.feedback import rules
from xpo_jax.studies import synthetic_world
from xpo_jax.studies.multistage.staged_world import World
from xpo_jax.train import pair_construction


def experiment(source: str | None = None) -> OnlineExperiment:
  """Four rounds, each of one pass of 16 updates on 96 pairs."""
  world = World(source)
  judge = Configured(
    rules.bradley_terry, scorer=Configured(rules.synthetic_reward), temperature=0.25
  )
  return synthetic_world.run(
    ObjectiveConfig("dno", beta=0.1),
    world,
    feedback=Feedback(judge, kind="win_rates"),
    sampling=Sampling(
      completions=4, max_completion_tokens=world.longest, prompts_at_once=64
    ),
    arrange=Configured(pair_construction.all_pairs),
    iterations=4,
    prompts_per_iteration=256,
    minibatches=16,
    ref_update_every=1,
    loop=Loop(log_every=1, eval_every=1),
  )
