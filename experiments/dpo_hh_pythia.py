"""DPO on Anthropic HH with Pythia-2.8B, the paper's setting.

Paper: Rafailov et al. 2023, arXiv:2305.18290, Sec. 6.3, Fig. 3, Appendix B: beta 0.1,
  RMSprop at 1e-6 with 150 steps of warm-up, batches of 64 pairs, policy fine-tuned on
  the chosen completions first. The authors' configuration file has 5e-7, not 1e-6.
Command: xpo train dpo_hh_pythia path=hub:Anthropic/hh-rlhf policy=PYTHIA_SFT_DIR
  policy: a Hugging Face directory of Pythia-2.8B fine-tuned on the chosen completions.
Hardware: 8 accelerators of 32 GB or more; the mesh is fsdp=8.
Expected: the paper has GPT-4 win rates against the chosen completions (a figure), for
  which this recipe has no judge.
Departs from the paper: judged by held-out preference accuracy and KL, not by GPT-4.
Result: not run. Tested in parts: loading of GPT-NeoX checkpoints, the hub reader's
  refusal, sharded steps on 8 virtual devices.
"""

from xpo_jax.config.data import Data, Evaluation
from xpo_jax.config.experiment import Experiment, Loop, MeshShape, Pretrained
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.data.tokenise import Limits


def experiment(path: str, policy: str) -> Experiment:
  """One epoch of DPO."""
  return Experiment(
    objective=ObjectiveConfig("dpo", beta=0.1),
    data=Data(
      path=path,
      bad_rows="drop",
      limits=Limits(prompt=256, completion=256, long_prompt="truncate"),
      rows_per_step=64,
      groups_per_row=1,  # a step is 64 pairs, as in the paper
      microbatches=4,
    ),
    start=Pretrained(policy, compute_dtype="bfloat16"),
    optimizer=Optimizer(
      kind="rmsprop",
      learning_rate=1e-6,
      warmup_steps=150,
      schedule="constant",
      b2=0.99,
      clip=10.0,
    ),
    loop=Loop(eval_every=250, checkpoint_every=250),
    mesh=MeshShape(fsdp=8),
    evaluation=Evaluation(share=0.01),
  )
