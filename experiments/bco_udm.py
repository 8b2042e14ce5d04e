"""BCO with underlying distribution matching on thumbs whose prompts differ.

Paper: Jung et al. 2024, arXiv:2404.04656: a classifier of prompts weights thumbs down.
Command: xpo train bco_udm [source=FILE policy=DIR --objective bco]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's; the weights of thumbs
  down, clipped to 0.5 and 10, spread around 1 (`prompt_weight_rejected`).
Departs from the paper: the classifier reads the tokens of the prompt, not a text
  embedding; of long prompts four in five thumbs down are lost, of short ones thumbs
  up, so that the prompts of the two classes differ.
Result: true reward {BCO-UDM | reward} at {BCO-UDM | kl | 2} nats, from {SFT | reward};
  one seed.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import samples
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """BCO with UDM on thumbs of the start's samples, four in five of some kinds lost."""
  task = Task(source, policy=policy)
  thumbs = tasks.from_start(
    samples.skewed_thumbs, task, seed=0, reward=task.reward, skew=0.8
  )
  return tasks.on_records(
    ObjectiveConfig("bco_udm"),
    task,
    thumbs,
    transform="xpo_jax.data.transforms.prompt_matching:weighted",
  )
