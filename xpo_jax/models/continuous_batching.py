"""Draw completions of many prompts in a fixed number of slots, refilled as they end.

`sample.sample` decodes until the longest completion of its batch has ended; the slots
of the others are idle until then. Here a slot whose completion has ended takes the next
one, of whichever prompt. Texts and log-probs are those of `sample.sample`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from xpo_jax.models import decode_state, kv_cache, token_sampling
from xpo_jax.models import sample as batch_sampler
from xpo_jax.models.decode_state import Samples
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.models.sample import PromptBatch
from xpo_jax.models.transformer import Model
from xpo_jax.sharding import distributed, place, rules
from xpo_jax.sharding import mesh as meshes
from xpo_jax.types import Array, Params


class Work(NamedTuple):
  """What a call of `sample` computed.

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
class _Sequences:
  """Completions so far with what their next tokens are drawn from, B prompts by K."""

  out: Samples
  prompts: tuple[kv_cache.PromptCache, ...]
  uniform_BKT2: Array


@struct.dataclass
class _Slots:
  """A completion in each slot: B slots, K = 1."""

  sequences: _Sequences
  branches: tuple[kv_cache.Branches, ...]


def sample(
  model: Model,
  params: Params,
  prompts: PromptBatch,
  *,
  config: GenerationConfig,
  key: Array,
  slots: int,
  freed: int = 1,
  mesh: Mesh | None = None,
) -> tuple[Samples, Work]:
  """Draws K completions of each prompt; any number of prompts, one compile.

  Prompts are read in groups that fill all slots once; a prompt is read once for its
  completions, whose slots hold copies of its cache. Decoding goes on, on the device,
  until enough slots are free; then they are filled. When no completion waits any
  more, it goes on until all have ended.

  Args:
    model, params, prompts, config, key: as in `sample.sample`.
    slots: completions decoded at once; memory and the time of a step grow with it.
    freed: free slots that call for a refill. One leaves fewest slots idle; more ask
      the host less often.
    mesh: devices that the slots are split over, as the rows of `sample.sample`.

  Returns:
    The completions, on the host, and the work.

  Raises:
    ValueError: as `sample.sample`; `slots` or `freed` outside its range.
  """
  shards = 1 if mesh is None else meshes.row_shards(mesh)
  if slots < 1:
    raise ValueError(f"slots is {slots}; it must be at least 1")
  if slots % shards:
    raise ValueError(
      f"slots is {slots}; the mesh splits them into {shards} parts, give a multiple"
    )
  if not 1 <= freed <= slots:
    raise ValueError(f"freed is {freed}; allowed: 1 to {slots} (slots)")
  decoder, prompts = batch_sampler.prepare(
    model, params, prompts, config=config, mesh=mesh
  )
  B, K, T = len(prompts.length_B), config.completions, config.max_completion_tokens
  group = meshes.padded_rows(mesh, min(-(-slots // K), B))
  completed = jax.tree.map(
    lambda x: np.zeros((B * K, *x.shape[2:]), x.dtype),
    jax.eval_shape(lambda: Samples.empty(B, K, T)),
  )

  def store(out: Samples, places: np.ndarray, numbers: np.ndarray) -> None:
    """Stores what stands at `places` (of B times K) as completions `numbers`."""
    for all_x, x in zip(jax.tree.leaves(completed), jax.tree.leaves(out), strict=True):
      all_x[numbers] = x.reshape(-1, *x.shape[2:])[places]

  number_of_slot = np.full(slots, -1)  # of its completion; -1: the slot is free
  waiting = np.zeros(0, np.int32)  # places of the group whose completions have no slot
  start = steps = reads = refills = 0  # start: the first prompt that was not read
  group_sequences = state = None
  while True:
    while (number_of_slot < 0).any() and (len(waiting) or start < B):
      if not len(waiting):
        # The last group is filled up with the last prompt: one shape, one compile.
        rows = np.minimum(np.arange(start, start + group), B - 1)
        group_prompts = PromptBatch(*(x[rows] for x in prompts))
        if mesh is not None:
          group_prompts = place.place_rows(mesh, group_prompts)
        group_sequences = _read(
          decoder,
          group_prompts,
          key,
          completions=K,
          max_completion_tokens=T,
        )
        out = distributed.to_host(group_sequences.out)
        fresh = np.arange(group * K) < (B - start) * K
        first, reads = start * K, reads + 1
        at_once = np.flatnonzero(fresh & ~out.open_BK.reshape(-1))
        store(out, at_once, first + at_once)
        waiting = np.flatnonzero(fresh & out.open_BK.reshape(-1))
        start += group
        if state is None:
          state = _empty(group_sequences, slots, mesh)
        continue
      free = np.flatnonzero(number_of_slot < 0)
      count = min(len(free), len(waiting))
      slot, source = np.zeros((2, slots), np.int32)
      slot[:count], source[:count] = free[:count], waiting[:count]
      state = state.replace(
        sequences=_fill(state.sequences, group_sequences, slot, source, count, mesh)
      )
      number_of_slot[slot[:count]] = first + source[:count]
      waiting, refills = waiting[count:], refills + 1
    if (number_of_slot < 0).all():
      break
    wanted = freed if len(waiting) or start < B else slots
    state, ran = _advance(decoder, state, wanted)
    out, steps = distributed.to_host(state.sequences.out), steps + int(ran)
    ended = np.flatnonzero((number_of_slot >= 0) & ~out.open_BK[:, 0])
    store(out, ended, number_of_slot[ended])
    number_of_slot[ended] = -1
  completed = jax.tree.map(lambda x: x.reshape(B, K, *x.shape[1:]), completed)
  return completed, Work(steps, idle(completed.length_BK, steps, slots), reads, refills)


@functools.partial(jax.jit, static_argnames=("completions", "max_completion_tokens"))
def _read(
  decoder: decode_state.Decoder,
  prompts: PromptBatch,
  key: Array,
  *,
  completions: int,
  max_completion_tokens: int,
) -> _Sequences:
  uniform_BKT2 = token_sampling.uniform(
    key, prompts.row_B, completions, max_completion_tokens
  )
  out, caches = decode_state.begin(
    decoder, prompts.prompt_BP, prompts.length_B, uniform_BKT2
  )
  return _Sequences(out, caches, rules.pin_rows(decoder.mesh, uniform_BKT2))


@functools.partial(jax.jit, static_argnames=("slots", "mesh"))
def _empty(read: _Sequences, slots: int, mesh: Mesh | None) -> _Slots:
  """Slots that hold nothing, all of them free."""
  T = read.uniform_BKT2.shape[2]
  out = Samples.empty(slots, 1, T)
  out = out.replace(ended_BK=~out.ended_BK)
  uniform_BKT2 = jnp.zeros((slots, 1, T, 2))
  prompts = tuple(kv_cache.zeros(one, slots) for one in read.prompts)
  branches = decode_state.room(prompts, uniform_BKT2, mesh)
  return _Slots(_pinned(mesh, _Sequences(out, prompts, uniform_BKT2)), branches)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="mesh")
def _fill(
  sequences: _Sequences,
  read: _Sequences,
  slot: Array,
  source: Array,
  count: Array,
  mesh: Mesh | None,
) -> _Sequences:
  """Copies the first `count` sources (b K + k) of what was read into their slots."""
  K = read.uniform_BKT2.shape[1]

  def one(i: Array, sequences: _Sequences) -> _Sequences:
    b, k = source[i] // K, source[i] % K

    def own(old: Array, new: Array) -> Array:
      return old.at[slot[i], 0].set(new[b, k])

    return _Sequences(
      jax.tree.map(own, sequences.out, read.out),
      tuple(
        kv_cache.copy(old, slot[i], new, b)
        for old, new in zip(sequences.prompts, read.prompts, strict=True)
      ),
      own(sequences.uniform_BKT2, read.uniform_BKT2),
    )

  return _pinned(mesh, jax.lax.fori_loop(0, count, one, sequences))


def _pinned(mesh: Mesh | None, sequences: _Sequences) -> _Sequences:
  """Sequences that are split by rows, their caches by heads too."""
  rows = rules.pin_rows(mesh, (sequences.out, sequences.uniform_BKT2))
  return _Sequences(rows[0], kv_cache.pin(mesh, sequences.prompts), rows[1])


@functools.partial(jax.jit, donate_argnums=1)
def _advance(
  decoder: decode_state.Decoder, state: _Slots, wanted: Array
) -> tuple[_Slots, Array]:
  """Decodes until `wanted` slots are free; also the number of steps."""
  sequences = state.sequences

  def more(carry: tuple) -> Array:
    _, out, _ = carry
    return (~out.open_BK).sum() < wanted

  def step(carry: tuple) -> tuple:
    ran, out, branches = carry
    out, branches = decode_state.extend(
      decoder, out, sequences.prompts, branches, sequences.uniform_BKT2
    )
    return ran + 1, out, branches

  ran, out, branches = jax.lax.while_loop(
    more, step, (0, sequences.out, state.branches)
  )
  return _Slots(sequences.replace(out=out), branches), ran
