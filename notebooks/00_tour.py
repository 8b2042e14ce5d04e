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
# # A tour
#
# An objective is a value, built by a factory named after its paper. It maps a record of
# log-probabilities, a `Scored`, to a loss. It calls no model and reads no
# configuration, so everything below runs on a CPU.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

from xpo_jax import objectives, scored

# %%
pairs = scored.from_sequence_logps([[-12.0, -15.0]], [[8, 10]], [[-13.0, -14.0]])
scored.evaluate(objectives.dpo(beta=0.1), pairs)

# %% [markdown]
# Column 0 is the chosen completion, column 1 the rejected one. `loss` is minimised,
# `metrics` are logged; `state` is used by methods with state between batches.
#
# The same record works with any objective of the same layout, and everything can be
# compiled. If the record lacks something, the error names it.

# %%
for name in ("sft", "simpo", "orpo"):
  compiled = jax.jit(functools.partial(scored.evaluate, objectives.get(name)()))
  print(f"{name:8s} {compiled(pairs).loss:.4f}")

try:
  scored.evaluate(objectives.bradley_terry(), pairs)
except ValueError as error:
  print(error)

# %% [markdown]
# ## From logits
#
# `policy_logits[b, k, t]` predicts token `t` of completion `k` of prompt `b`. Padding
# is masked and reaches neither loss nor gradient.

# %%
key = jax.random.key(0)
logits = jax.random.normal(key, (4, 2, 6, 50))
ref_logits = jax.random.normal(jax.random.fold_in(key, 1), logits.shape)
tokens = jax.random.randint(jax.random.fold_in(key, 2), (4, 2, 6), 0, 50)
length = jnp.array([[6, 3], [1, 2], [4, 4], [5, 6]])
mask = jnp.arange(6) < length[..., None]


def loss(logits):
  record = scored.from_logits(logits, tokens, mask, ref_logits)
  return scored.evaluate(objectives.dpo(beta=0.1), record).loss


value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
print(f"loss {value:.4f}, gradient norm {jnp.linalg.norm(gradient):.4f}")

# %% [markdown]
# ## A method with state
#
# beta-DPO keeps moving statistics of the batch and samples the pairs it trains on. Such
# a method takes its state and a PRNG key, and returns the state after the batch.

# %%
o = objectives.beta_dpo(beta=0.1)
record = jax.jit(scored.from_logits)(logits, tokens, mask, ref_logits)
compiled = jax.jit(functools.partial(scored.evaluate, o))
out = compiled(record, o.init(), jax.random.key(0))
print(f"loss {out.loss:.4f}, beta used {out.metrics['beta']:.4f}")
print("state after the batch:", {name: float(x) for name, x in out.state.items()})

# %% [markdown]
# ## Loss and gradient over the margin
#
# Loss and gradient of one pair as the log-probability of the chosen completion rises
# and that of the rejected one falls: two tokens each, so that log-ratio and average
# log-probability change together.

# %%
gain = jnp.linspace(-1.9, 1.9, 200)  # of the chosen completion's log-probability, nats


def pair_loss(objective, gain):
  logp = jnp.stack([gain - 2.0, -2.0 - gain])[None]
  record = scored.from_sequence_logps(logp, [[2, 2]], [[-2.0, -2.0]])
  return scored.evaluate(objective, record).loss


shown = {
  "dpo, beta 1": objectives.dpo(beta=1.0),
  "dpo, beta 1, label smoothing 0.2": objectives.dpo(beta=1.0, label_smoothing=0.2),
  "simpo, beta 2, gamma 0.5": objectives.simpo(beta=2.0, gamma=0.5),
  "orpo's odds ratio, weight 1": objectives.odds_ratio(weight=1.0),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for label, objective in shown.items():
  curve = jax.value_and_grad(functools.partial(pair_loss, objective))
  values, slopes = jax.jit(jax.vmap(curve))(gain)
  left.plot(2 * gain, values, label=label)
  right.plot(2 * gain, slopes)
left.set(xlabel="log-probability of chosen minus rejected (nats)", ylabel="loss")
right.set(xlabel="log-probability of chosen minus rejected (nats)", ylabel="gradient")
left.axvline(0, color="0.8", zorder=0)
right.axhline(0, color="0.8", zorder=0)
left.legend(frameon=False, fontsize=8)
_ = figure.suptitle("One pair: loss, and its gradient with respect to the gain")

# %% [markdown]
# DPO's gradient vanishes for a large positive margin; with label smoothing it changes
# sign where the odds reach those of the noise. SimPO's curve is DPO's at its own beta,
# shifted to the right by its target margin: its gradient at a tie is larger. ORPO's
# odds grow without bound as a completion becomes certain, so that its gradient is
# largest where the rejected completion is almost certain.
