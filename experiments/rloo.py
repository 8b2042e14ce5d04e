"""RLOO on the embedded world: REINFORCE with the other samples as baseline.

Paper: Ahmadian et al. 2024, arXiv:2402.14740. Table 1 there is of language models of
  billions of parameters; nothing of it can be rebuilt at this size.
Command: xpo train rloo
Hardware: 2 CPU cores, some minutes.
Expected: the true reward of held-out prompts rises above the start's; no number is
  taken from the paper.
Last result: not run as a whole.
"""

from xpo_jax.recipes import online_world
from xpo_jax.train.experiment import Use
from xpo_jax.train.online_experiment import OnlineExperiment


def experiment() -> OnlineExperiment:
  """Four samples a prompt, one update an iteration, beta of the paper's HH runs."""
  return online_world.run(Use("rloo", beta=0.1))
