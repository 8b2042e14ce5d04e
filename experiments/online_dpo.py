"""Online DPO with AI feedback (OAIF): two samples of the policy, a judge, one update.

Paper: Guo et al. 2024 (OAIF), arXiv:2402.04792: a language model says which of two
  fresh samples is better.
Command: xpo train online_dpo [source=FILE] [--feedback.source.error 0.1]
Hardware: 2 CPU cores; 87 s of CPU time, 37 s of them the start's.
Expected: the true reward of held-out prompts rises above the start's, less so the more
  the judge errs; `eval/reward` is the judge's own win rate against the start.
Departs from the paper: no model of this size can judge, a scripted judge stands in for
  it: it knows which is better and says the contrary on a tenth of the pairs.
Last result: 2026-11-22, three seeds, intervals over prompts and seeds: true reward of
  128 held-out prompts 0.474 [0.438, 0.509] at 1.27 nats; the start has 0.091 [0.055,
  0.126].
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.feedback import noisy_judge
from xpo_jax.studies import synthetic_world
from xpo_jax.studies.multistage.staged_world import World


def experiment(source: str | None = None) -> Experiment:
  """Two samples a prompt; as many samples an iteration as `rloo`."""
  world = World(source)
  return synthetic_world.run(
    ObjectiveConfig("online_dpo", beta=0.1),
    world,
    feedback=Feedback(Configured(noisy_judge.preference, error=0.1), kind="win_rates"),
    sampling=Sampling(completions=2, max_completion_tokens=world.longest),
    prompts_per_iteration=64,
  )
