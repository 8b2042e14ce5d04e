"""Draw completions of many prompts in a fixed number of slots, refilled as they end.

`sample.sample` decodes until the longest completion of its batch has ended; the places
of the others stand idle. Here a place that falls free takes the next completion, of
whichever prompt. Texts and log-probs are those of `sample.sample`.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from xpo_jax.models import decode_state, kv_cache, token_sampling
from xpo_jax.models import sample as whole
from xpo_jax.models.decode_state import Samples
from xpo_jax.models.transformer import Model
from xpo_jax.types import Array, Params


class Work(NamedTuple):
  """What it took.

  Attributes:
    steps: decode steps, each over all slots.
    idle: share of the slots of these steps that had nothing to continue.
    reads: how often a group of prompts was read.
    refills: how often slots were filled.
  """

  steps: int
  idle: float
  reads: int
  refills: int


def idle(length_BK: Array, steps: int | None = None, slots: int | None = None) -> float:
  """Share of decoded slots that had nothing to continue.

  Args:
    length_BK: tokens of the completions; the first comes from reading the prompt.
    steps: decode steps; None: those of one batch, until its longest has ended.
    slots: in each of them; None: one for each completion.

  Example:
    >>> idle(np.array([[3, 1]]))  # two steps of two slots, one never used
    0.5
  """
  length_BK = np.asarray(length_BK)
  steps = int(length_BK.max()) - 1 if steps is None else steps
  slots = length_BK.size if slots is None else slots
  used = int(np.maximum(length_BK - 1, 0).sum())
  return 1 - used / (steps * slots) if steps else 0.0


@struct.dataclass
class _Read:
  """A group of prompts with the first token of their completions."""

  out: Samples
  prompts: tuple[kv_cache.PromptCache, ...]
  uniform_BKT2: Array


@struct.dataclass
class _Slots:
  """A completion in each slot: B slots, K = 1."""

  held: _Read
  branches: tuple[kv_cache.Branches, ...]


def sample(
  model: Model,
  params: Params,
  prompt_BP: Array,
  length_B: Array,
  *,
  slots: int,
  freed: int = 1,
  completions: int,
  max_completion_tokens: int,
  key: Array,
  row_B: Array,
  stop_ids: Sequence[int],
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  greedy: bool = False,
  mixture: whole.Mixture | None = None,
  exploration_temperature: float | None = None,
) -> tuple[Samples, Work]:
  """Draws K completions of each prompt; any number of prompts, one compile.

  Prompts are read in groups that fill all slots once; a prompt is read once for its
  completions, whose slots hold copies of its cache. Decoding goes on, on the device,
  until enough slots are free; then they are filled. When no completion waits any
  more, it goes on until all have ended.

  Args:
    model, params, prompt_BP, length_B: as in `sample.sample`.
    slots: completions decoded at once; memory and the time of a step grow with it.
    freed: free slots that call for a refill. One leaves fewest slots idle; more ask
      the host less often.
    completions, max_completion_tokens, key, row_B, stop_ids: as in `sample.sample`.
    temperature, top_k, top_p, greedy, mixture, exploration_temperature: as in
      `sample.sample`.

  Returns:
    The completions, on the host, and the work.

  Raises:
    ValueError: as `sample.sample`; `slots` or `freed` outside its range.
  """
  if slots < 1:
    raise ValueError(f"slots is {slots}; it must be at least 1")
  if not 1 <= freed <= slots:
    raise ValueError(f"freed is {freed}; allowed: 1 to {slots} (slots)")
  decoder, prompt_BP, length_B, row_B = whole.checked(
    model,
    params,
    prompt_BP,
    length_B,
    completions=completions,
    max_completion_tokens=max_completion_tokens,
    row_B=row_B,
    stop_ids=stop_ids,
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    greedy=greedy,
    mixture=mixture,
    exploration_temperature=exploration_temperature,
  )
  layers = _layers(decoder)
  B, K, T = len(length_B), completions, max_completion_tokens
  group = min(-(-slots // K), B)
  sizes = {"completions": K, "max_completion_tokens": T}
  done = jax.tree.map(
    lambda x: np.zeros((B * K, *x.shape[2:]), x.dtype),
    jax.eval_shape(lambda: Samples.empty(B, K, T)),
  )

  def keep(out: Samples, places: np.ndarray, numbers: np.ndarray) -> None:
    """Keeps what stands at `places` (of B times K) as completions `numbers`."""
    for kept, x in zip(jax.tree.leaves(done), jax.tree.leaves(out), strict=True):
      kept[numbers] = x.reshape(-1, *x.shape[2:])[places]

  held = np.full(slots, -1)  # the completion in each slot
  waiting = np.zeros(0, np.int32)  # of the group that was read: its places
  start = steps = reads = refills = 0  # start: the first prompt that was not read
  read = state = None
  while True:
    while (held < 0).any() and (len(waiting) or start < B):
      if not len(waiting):
        # The last group is filled up with the last prompt: one shape, one compile.
        rows = np.minimum(np.arange(start, start + group), B - 1)
        read = _read(
          decoder, prompt_BP[rows], length_B[rows], key, row_B[rows], **sizes
        )
        out = jax.device_get(read.out)
        fresh = np.arange(group * K) < (B - start) * K
        first, reads = start * K, reads + 1
        at_once = np.flatnonzero(fresh & ~out.open_BK.reshape(-1))
        keep(out, at_once, first + at_once)
        waiting = np.flatnonzero(fresh & out.open_BK.reshape(-1))
        start += group
        if state is None:
          state = _empty(read, slots)
        continue
      free = np.flatnonzero(held < 0)
      count = min(len(free), len(waiting))
      slot, place = np.zeros((2, slots), np.int32)
      slot[:count], place[:count] = free[:count], waiting[:count]
      state = state.replace(held=_fill(state.held, read, slot, place, count))
      held[slot[:count]] = first + place[:count]
      waiting, refills = waiting[count:], refills + 1
    if (held < 0).all():
      break
    wanted = freed if len(waiting) or start < B else slots
    state, ran = _advance(layers, state, wanted)
    out, steps = jax.device_get(state.held.out), steps + int(ran)
    over = np.flatnonzero((held >= 0) & ~out.open_BK[:, 0])
    keep(out, over, held[over])
    held[over] = -1
  done = jax.tree.map(lambda x: x.reshape(B, K, *x.shape[1:]), done)
  return done, Work(steps, idle(done.length_BK, steps, slots), reads, refills)


@functools.partial(jax.jit, static_argnames=("completions", "max_completion_tokens"))
def _read(
  decoder: decode_state.Decoder,
  prompt_BP: Array,
  length_B: Array,
  key: Array,
  row_B: Array,
  *,
  completions: int,
  max_completion_tokens: int,
) -> _Read:
  uniform_BKT2 = token_sampling.uniform(key, row_B, completions, max_completion_tokens)
  out, prompts = decode_state.begin(decoder, prompt_BP, length_B, uniform_BKT2)
  return _Read(out, prompts, uniform_BKT2)


_layers = jax.jit(decode_state.layers)


@functools.partial(jax.jit, static_argnames="slots")
def _empty(read: _Read, slots: int) -> _Slots:
  """Slots that hold nothing, all of them free."""
  T = read.uniform_BKT2.shape[2]
  out = Samples.empty(slots, 1, T)
  out = out.replace(ended_BK=~out.ended_BK)
  uniform_BKT2 = jnp.zeros((slots, 1, T, 2))
  prompts = tuple(kv_cache.zeros(one, slots) for one in read.prompts)
  branches = decode_state.room(prompts, uniform_BKT2)
  return _Slots(_Read(out, prompts, uniform_BKT2), branches)


@functools.partial(jax.jit, donate_argnums=0)
def _fill(held: _Read, read: _Read, slot: Array, place: Array, count: Array) -> _Read:
  """Copies the first `count` places (b K + k) of what was read into their slots."""
  K = read.uniform_BKT2.shape[1]

  def one(i: Array, held: _Read) -> _Read:
    b, k = place[i] // K, place[i] % K

    def own(old: Array, new: Array) -> Array:
      return old.at[slot[i], 0].set(new[b, k])

    return _Read(
      jax.tree.map(own, held.out, read.out),
      tuple(
        kv_cache.copy(old, slot[i], new, b)
        for old, new in zip(held.prompts, read.prompts, strict=True)
      ),
      own(held.uniform_BKT2, read.uniform_BKT2),
    )

  return jax.lax.fori_loop(0, count, one, held)


@functools.partial(jax.jit, donate_argnums=1)
def _advance(
  decoder: decode_state.Decoder, state: _Slots, wanted: Array
) -> tuple[_Slots, Array]:
  """Decodes until `wanted` slots are free; also the number of steps."""
  held = state.held

  def more(carry: tuple) -> Array:
    _, out, _ = carry
    return (~out.open_BK).sum() < wanted

  def step(carry: tuple) -> tuple:
    ran, out, branches = carry
    out, branches = decode_state.extend(
      decoder, out, held.prompts, branches, held.uniform_BKT2
    )
    return ran + 1, out, branches

  ran, out, branches = jax.lax.while_loop(more, step, (0, held.out, state.branches))
  return _Slots(held.replace(out=out), branches), ran
