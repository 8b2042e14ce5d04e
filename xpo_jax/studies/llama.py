"""Configures runs on Llama 3 at the sizes of its papers, for recipes and their checks.

Without a policy a recipe starts from random weights of the architecture, so that
`xpo check RECIPE --topology SLICE` needs no download.
"""

from xpo_jax.config.data import Data, Prompts
from xpo_jax.config.experiment import (
  Experiment,
  Loop,
  MeshShape,
  Pretrained,
  Rollouts,
  Scratch,
  Start,
)
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer, Precision
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.data.tokenise import Limits
from xpo_jax.feedback import rules
from xpo_jax.models.config import Config, Llama3Scaling, Rotary

# Weights in float32, moments in bfloat16: 8 bytes a parameter.
AT_SCALE = Precision(moments="bfloat16")
EVERY_CHIP = MeshShape(fsdp=None)
# The 8B samples on groups of 8 chips, as many as it has key heads.
TO_SAMPLE = MeshShape(tensor=8)


def config(size: str) -> Config:
  """The decoder of Llama 3, of its config.json.

  Grattafiori et al. 2024, arXiv:2407.21783, Table 3; the 1B is Llama 3.2's.

  Args:
    size: "1B", "8B" or "70B".

  Raises:
    ValueError: another size.
  """
  sizes = {
    "1B": (2048, 16, 32, 64, 8192, 32.0),
    "8B": (4096, 32, 32, 128, 14336, 8.0),
    "70B": (8192, 80, 64, 128, 28672, 8.0),
  }
  if size not in sizes:
    raise ValueError(f"size is {size!r}; allowed: {', '.join(sizes)}")
  width, layers, heads, head_dim, mlp_width, factor = sizes[size]
  return Config(
    vocab=128_256,
    width=width,
    layers=layers,
    heads=heads,
    kv_heads=8,
    head_dim=head_dim,
    mlp_width=mlp_width,
    positions=131_072,
    rotary=Rotary(500_000.0, llama3=Llama3Scaling(factor, 1.0, 4.0, 8192)),
    tied=size == "1B",
    compute_dtype="bfloat16",
  )


def start(size: str, policy: str | None, tokenizer: str | None = None) -> Start:
  """The start of a recipe: a directory or "hub:ORG/NAME", else random weights."""
  if policy is None:
    return Scratch(config(size), tokenizer)
  return Pretrained(policy, compute_dtype="bfloat16")


def dpo(size: str, path: str, policy: str | None, rows: int) -> Experiment:
  """DPO on pairs of up to 1024 + 2 x 1024 tokens, one in a row.

  Args:
    size: see `config`.
    path: of the pairs, see `Data`.
    policy: see `start`.
    rows: of a step, a pair in each at the limits.
  """
  return Experiment(
    objective=ObjectiveConfig("dpo", beta=0.1),
    data=Data(
      path=path,
      bad_rows="drop",
      limits=Limits(prompt=1024, completion=1024, long_prompt="truncate"),
      row_length=3072,
      rows_per_step=rows,
    ),
    start=start(size, policy),
    optimizer=Optimizer(learning_rate=5e-7, warmup_steps=50, schedule="cosine"),
    loop=Loop(checkpoint_every=200),
    mesh=EVERY_CHIP,
    precision=AT_SCALE,
  )


def on_rollouts(
  objective: ObjectiveConfig,
  path: str,
  policy: str | None,
  *,
  completions: int,
  prompts: int,
  minibatches: int,
) -> Experiment:
  """The 8B on its own samples of 1024 tokens.

  Args:
    objective: what is minimised.
    path: of the prompts, see `Prompts`.
    policy: see `start`.
    completions: of each prompt.
    prompts: of an iteration.
    minibatches: updates of an iteration.
  """
  return Experiment(
    objective=objective,
    data=Rollouts(
      prompts=Prompts(
        path=path,
        bad_rows="drop",
        limits=Limits(prompt=1024, long_prompt="truncate"),
      ),
      feedback=Feedback(Configured(rules.synthetic_reward)),
      sampling=Sampling(
        completions=completions,
        max_completion_tokens=1024,
        weights_dtype="bfloat16",
        mesh=TO_SAMPLE,
      ),
      iterations=500,
      prompts_per_iteration=prompts,
      minibatches=minibatches,
    ),
    start=start("8B", policy),
    optimizer=Optimizer(learning_rate=1e-6, warmup_steps=10, schedule="constant"),
    mesh=EVERY_CHIP,
    precision=AT_SCALE,
  )
