# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your model
#
# A pretrained chat model, DPO with LoRA on a few conversations, and every pairwise
# objective on one of them. The model is a Hugging Face directory, `hub:ORG/NAME` or a
# GGUF file. `python experiments/fetch_smollm2.py smollm2` makes the directory of
# SmolLM2-135M-Instruct; without one, a model of random weights stands in: its text is
# noise, everything else is the same.

# %%
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

from xpo_jax import objectives, scored
from xpo_jax.config.data import Data
from xpo_jax.config.experiment import Experiment, Loop, MeshShape, Pretrained
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.data import audit, pack, sources, synthetic_reviews, tokenise
from xpo_jax.data.records import Turn
from xpo_jax.evaluation import evaluate_run
from xpo_jax.models import hf_checkpoint, score, transformer
from xpo_jax.models.config import Config
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.models.lora import Adapter
from xpo_jax.train import loop, metrics
from xpo_jax.types import Layout

folder = Path(tempfile.mkdtemp(prefix="xpo_"))


def random_model(directory):
  """Writes a tiny model of random weights, whose tokenizer has a chat template."""
  texts = [prompt + text for prompt, text in synthetic_reviews.generate(60, seed=0)]
  tokenizer = synthetic_reviews.train_bpe(texts, 300)
  tokenizer.chat_template = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{{ eos_token if m.role == 'assistant' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
  )
  config = Config(
    vocab=300, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=32
  )
  params = {"lm": transformer.model(config).init(jax.random.key(0))}
  return hf_checkpoint.save(directory, config, params, tokenizer=tokenizer)


# Name your own here: "my_model", "hub:ORG/NAME" or "model.gguf".
MODEL = "smollm2" if Path("smollm2").is_dir() else str(random_model(folder / "random"))
print(MODEL)

# %% [markdown]
# ## Data, as the model sees them
#
# Chosen and rejected replies to a question. The tokenizer's chat template renders them;
# what carries loss is read back from the indices that training gathers by.

# %%
replies = {
  "What is the capital of France?": ("Paris.", "It is a large city in Europe."),
  "What is 2 + 3?": ("5.", "That is the sum of two numbers."),
  "Who wrote Hamlet?": ("Shakespeare.", "A writer whom many people know."),
  "Which planet is the largest?": ("Jupiter.", "There are several large planets."),
  "What colour is snow?": ("White.", "Snow has a colour that one can see."),
  "How many legs has a spider?": ("Eight.", "A spider has a number of legs."),
  "What do bees make?": ("Honey.", "Bees make something that people eat."),
  "What is the opposite of hot?": ("Cold.", "The opposite is another temperature."),
}
rows = [
  {
    "prompt": [{"role": "user", "content": question}],
    "chosen": [{"role": "assistant", "content": chosen}],
    "rejected": [{"role": "assistant", "content": rejected}],
  }
  for question, (chosen, rejected) in replies.items()
]
pairs = sources.from_dicts(rows, "replies").records
tokenizer = hf_checkpoint.read_tokenizer(MODEL)
examples = tokenise.tokenise(pairs, tokenizer)
batch = pack.eval_batches(examples[:1], pack.PackSizes(rows_per_step=1))[0]
audit.inspect_tokens(batch, tokenizer)

# %% [markdown]
# ## Before


# %%
def answer(model):
  """Prints the model's likeliest replies."""
  prompts = [(Turn("user", question),) for question in replies]
  config = GenerationConfig(max_completion_tokens=24, greedy=True)
  texts = evaluate_run.generate(model, prompts[:3], config)
  for question, (text,) in zip(replies, texts, strict=False):
    print(f"{question:32s} {text!r}")


answer(MODEL)

# %% [markdown]
# ## DPO with LoRA
#
# The start is frozen and is the reference too; what is trained is adapters of rank 8.
# The implicit reward is beta times the log-ratio of policy and reference; DPO fits its
# difference alone, so look at which side moves. Eight pairs show how a run is made, not
# what it can reach. The same in a shell:
# `xpo train dpo --model smollm2 --data replies.jsonl --adapter.rank 8`.

# %%
experiment = Experiment(
  ObjectiveConfig("dpo", beta=0.1),
  Data("replies", rows_per_step=8, groups_per_row=1, epochs=10),
  Pretrained(MODEL),
  Optimizer(learning_rate=1e-3),
  Loop(log_every=1),
  MeshShape(data=1),  # one device
  adapter=Adapter(rank=8),
)
run = folder / "run"
trained = loop.train(experiment, run, datasets={"replies": pairs}, say=lambda _: None)
lines = metrics.read(run)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
steps = [line["step"] for line in lines]
left.plot(steps, [line["loss"] for line in lines])
for side in ("chosen", "rejected"):
  right.plot(steps, [line[f"reward_{side}"] for line in lines], label=side)
right.legend(frameon=False)
left.set(xlabel="step", ylabel="DPO loss")
_ = right.set(xlabel="step", ylabel="implicit reward")

# %% [markdown]
# ## After
#
# The run's directory holds the adapters in PEFT's format, which stand for the policy
# wherever a directory of weights is named. `xpo export RUN DIR --merged` makes a whole
# model of them.

# %%
answer(run)

# %% [markdown]
# ## Every pairwise objective on one pair
#
# Log-probabilities of the pair above by the trained policy and by the reference, token
# by token; then the loss of each objective with its own default hyperparameters, and
# the gradient with respect to these log-probabilities, divided by its largest entry.
# Blue tokens are made likelier, red ones less likely; a white row has no gradient here,
# as where a hinge or a clip is reached. IPO regresses the margin to a target: beyond it
# the colours are reversed.

# %%
start = hf_checkpoint.load(MODEL)
shown = {
  name: o
  for name, o in ((name, objectives.build(name)) for name in objectives.NAMES)
  if o.layout is Layout.PAIR
  and {role for stat in o.stats for role in stat.roles} <= {"policy", "ref"}
  and not o.columns
}
record = score.score(
  {"policy": trained.model, "ref": transformer.model(start.config)},
  jax.device_put({"policy": trained.params, "ref": start.params}),
  frozenset().union(*(o.stats for o in shown.values())),
  jax.tree.map(lambda x: x[0], batch),
)


@jax.jit
def evaluate(logp_BKT):
  """Loss of every objective, and its gradient."""

  def loss(logp_BKT, o):
    moved = record.replace(logp_BKT=logp_BKT)
    return scored.evaluate(o, moved, o.init(), jax.random.key(0)).loss

  return {name: jax.value_and_grad(loss)(logp_BKT, o) for name, o in shown.items()}


evaluated = evaluate(record.logp_BKT)
losses = {name: float(value) for name, (value, _) in evaluated.items()}
there = np.asarray(record.mask_BKT, bool)
slopes = np.stack([np.asarray(slope)[there] for _, slope in evaluated.values()])
largest = np.abs(slopes).max(1, keepdims=True)
tokens = [tokenizer.decode([token]) for ids in examples[0].completions for token in ids]
figure, (left, right) = plt.subplots(
  1, 2, figsize=(11, 7), layout="constrained", sharey=True, width_ratios=(1, 2)
)
left.barh(list(losses), list(losses.values()))
left.set(xscale="symlog", xlabel="loss")
left.tick_params(labelsize=7)
left.axvline(0, color="0.5", linewidth=0.8)
right.imshow(
  slopes / np.where(largest > 0, largest, 1),
  cmap="RdBu_r",
  vmin=-1,
  vmax=1,
  aspect="auto",
)
right.axvline(len(examples[0].completions[0]) - 0.5, color="black")
right.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
_ = right.set_xlabel("tokens of the chosen completion | of the rejected one")
