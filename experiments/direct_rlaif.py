"""Direct RLAIF on the embedded world: a rater's points as the reward, no reward model.

Paper: Lee et al. 2023, arXiv:2309.00267: a language model rates each sample from 1 to
  10, its expected rating is the reward of REINFORCE; samples at temperature 0.9.
Command: xpo train direct_rlaif [source=FILE] [--feedback.source.error 0.1]
Hardware: 2 CPU cores; 70 s of CPU time, 37 s of them the start's.
Expected: the true reward of held-out prompts rises above the start's, less so the more
  the rater errs; `eval/reward` is the rater's mean rating.
Departs from the paper: no model of this size can rate, a scripted rater stands in for
  it: it rates the truth from 0 to 5 in whole points, a tenth of them wrong. The
  baseline is the mean of past rewards, not a learned value.
Last result: 2026-11-22, three seeds, intervals over prompts and seeds: true reward of
  128 held-out prompts 0.544 [0.514, 0.575] at 0.79 nats; the start has 0.091 [0.055,
  0.126].
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.feedback import noisy_judge
from xpo_jax.studies import synthetic_world
from xpo_jax.studies.multistage.staged_world import World


def experiment(source: str | None = None) -> Experiment:
  """As `reinforce`: a point is 0.4 of true reward, so beta 0.25 is its 0.1."""
  world = World(source)
  return synthetic_world.run(
    ObjectiveConfig("reinforce", beta=0.25),
    world,
    feedback=Feedback(
      Configured(noisy_judge.scorer, error=0.1), missing_eos=world.missing_eos(1.0)
    ),
    sampling=Sampling(
      completions=1, max_completion_tokens=world.longest, temperature=0.9
    ),
    prompts_per_iteration=128,
  )
