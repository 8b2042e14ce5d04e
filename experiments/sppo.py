"""SPPO on the embedded world: log-ratios regressed on win rates, in self-play.

Paper: Wu et al. 2024, arXiv:2405.00675: three rounds, five samples a prompt, the best
  and the worst by win rate; the last round's policy is the reference.
Command: xpo train sppo [source=FILE]
Hardware: 2 CPU cores; 53 s of CPU time, 37 s of them the start's.
Expected: the true reward of held-out prompts rises with every round; `eval/reward` is
  the win rate against the start.
Departs from the paper: eta is 5, not 1000, whose target of hundreds of nats no update
  of this size comes near; the preference is Bradley-Terry of the true reward in place
  of a trained one (theirs is made of scores too).
Last result: 2026-11-22, three seeds, intervals over prompts and seeds: true reward of
  128 held-out prompts 0.647 [0.606, 0.690] at 1.85 nats; the start has 0.091 [0.055,
  0.126].
"""

from xpo_jax.config.experiment import Loop, ObjectiveConfig
from xpo_jax.config.on_policy import Configured, Feedback, OnlineExperiment, Sampling
from xpo_jax.feedback import rules
from xpo_jax.studies import synthetic_world
from xpo_jax.studies.multistage.staged_world import World


def experiment(source: str | None = None) -> OnlineExperiment:
  """Four rounds, each of two passes of 8 updates."""
  world = World(source)
  judge = Configured(
    rules.bradley_terry, scorer=Configured(rules.synthetic_reward), temperature=0.25
  )
  return synthetic_world.run(
    ObjectiveConfig("sppo", beta=0.2),
    world,
    feedback=Feedback(judge, kind="win_rates"),
    sampling=Sampling(
      completions=5, max_completion_tokens=world.longest, prompts_at_once=64
    ),
    iterations=4,
    prompts_per_iteration=256,
    minibatches=8,
    ppo_epochs=2,
    ref_update_every=1,
    loop=Loop(log_every=1, eval_every=2),
  )
