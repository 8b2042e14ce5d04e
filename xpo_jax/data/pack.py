"""Prompt groups packed into rows of one length, rows into steps of one shape.

A group is a prompt once and its K completions after it. An epoch is shuffled, packed
and cut by `plan`, a function of the seed and the epoch alone, so that the step number
is the whole state of the data: `batches[step]`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from flax import struct

from xpo_jax.data import bin_packing
from xpo_jax.data.token_store import Store, store
from xpo_jax.data.tokenise import Example


@struct.dataclass
class Batch:
  """One optimiser step: M microbatches of R rows, and the way back to B x K x T.

  `C` is the room for response tokens in a row. Ids and indices are int32, masks
  float32. T counts tokens that carry loss, so masks have no holes.

  Attributes:
    tokens_MRL: token ids, 0 on padding.
    segment_MRL: 0 on padding, else the number of the group in its row, from 1.
    branch_MRL: 0 on the prompt, k + 1 on completion k.
    position_MRL: position in prompt + completion, the same start for each branch.
    source_MRC: index into L of the position whose output predicts a response token.
    target_MRC: that token.
    valid_MRC: 1 where the two above hold something.
    index_MBKT: flat index into R * C of each response token; R * C on padding.
    mask_MBKT: 1 on response tokens.
    present_MBK: 0 on a column the group does not have.
    weight_MB: 1 on groups, 0 on filler.
    row_MB: number of the example in the data set, -1 on filler.
    fields: data columns named as in `Scored`, each [M, B, K] ("reward_BK"), or
      [M, B, K, T] ("reward_BKT").
    ref: cached statistics named as in `Scored` ("ref_logp_BKT"), each [M, B, K, T].
  """

  tokens_MRL: np.ndarray
  segment_MRL: np.ndarray
  branch_MRL: np.ndarray
  position_MRL: np.ndarray
  source_MRC: np.ndarray
  target_MRC: np.ndarray
  valid_MRC: np.ndarray
  index_MBKT: np.ndarray
  mask_MBKT: np.ndarray
  present_MBK: np.ndarray
  weight_MB: np.ndarray
  row_MB: np.ndarray
  fields: Mapping[str, np.ndarray] = struct.field(default_factory=dict)
  ref: Mapping[str, np.ndarray] = struct.field(default_factory=dict)


class Shape(NamedTuple):
  """The static sizes of a batch: what decides whether a step compiles again.

  Attributes:
    L: tokens in a row.
    B: groups in a microbatch, filler included.
    K: completions of a group.
    T: response tokens of a completion.
    C: response tokens of a row.
  """

  L: int
  B: int
  K: int
  T: int
  C: int


@dataclasses.dataclass(frozen=True)
class Batches:
  """The run's batches by step; a random-access source for `grain.MapDataset`.

  Attributes:
    store: the data set.
    shape: sizes of every batch.
    microbatches: M.
    rows_per_step: M * R.
    row_start: int64, the first group of each row of the run, and the end.
    group: int64, the example of each group of the run.
    epoch_start: int64, the first row of each epoch.
    steps: number of steps; rows beyond them are not used.
  """

  store: Store
  shape: Shape
  microbatches: int
  rows_per_step: int
  row_start: np.ndarray
  group: np.ndarray
  epoch_start: np.ndarray
  steps: int

  def __len__(self) -> int:
    return self.steps

  def epoch_of(self, step: int) -> int:
    """The epoch, from 0, that the first row of a step belongs to."""
    first = step * self.rows_per_step
    return int(np.searchsorted(self.epoch_start, first, "right")) - 1

  def groups_of(self, step: int) -> np.ndarray:
    """The examples of a step, in the order of their rows."""
    return self.group[slice(*self._ends(step))]

  @property
  def tokens_computed(self) -> int:
    """Tokens that go through the model in the run, padding included."""
    return self.steps * self.rows_per_step * self.shape.L

  @property
  def tokens_unique(self) -> int:
    """Tokens of the run's groups: each prompt once, each completion once."""
    return int(self.store.length[self.group[: self._ends(self.steps - 1)[1]]].sum())

  def _ends(self, step: int) -> tuple[int, int]:
    last = len(self.row_start) - 1
    rows = step * self.rows_per_step, (step + 1) * self.rows_per_step
    first, end = (int(self.row_start[min(row, last)]) for row in rows)
    return first, end

  def __getitem__(self, step: int) -> Batch:
    """The batch of a step.

    Raises:
      IndexError: no such step.
    """
    if not 0 <= step < self.steps:
      raise IndexError(f"step {step} is outside the run of {self.steps} steps")
    first_group, end_group = self._ends(step)
    first_row = step * self.rows_per_step
    sizes = np.diff(self.row_start[first_row : first_row + self.rows_per_step + 1])
    row = np.repeat(np.arange(len(sizes)), sizes)
    return _build(self, self.group[first_group:end_group], row)


def plan(
  examples: Sequence[Example],
  *,
  rows_per_step: int,
  microbatches: int = 1,
  row_length: int | None = None,
  seed: int = 0,
  epochs: int = 1,
  steps: int | None = None,
  shuffle: bool = True,
  groups_per_row: int | None = None,
  shape: Shape | None = None,
) -> Batches:
  """Packs every epoch of a run into rows, and rows into steps.

  Each epoch is shuffled, packed by best fit over whole groups taken by falling length
  (first fit with the tightest row that has room), and its rows are shuffled again, so
  that lengths do not decide which groups meet in a step. Epochs follow each other
  without a gap; the last step of the run is filled with empty rows.

  Args:
    examples: the data set, of one layout.
    rows_per_step: rows of an optimiser step, over all microbatches and devices.
    microbatches: M; divides rows_per_step.
    row_length: L, in tokens. None: the longest group.
    seed: with the epoch number, all that the order depends on.
    epochs: passes over the data, >= 1.
    steps: stop after so many steps. None: after the last epoch.
    shuffle: False keeps rows in the order of their first example.
    groups_per_row: most groups in a row. None: as many as fit. 1: a batch is counted
      in groups.
    shape: sizes to use instead of the smallest that hold the run, so that runs over
      different data or seeds share one compiled step.

  Returns:
    The batches by step.

  Raises:
    ValueError: no examples, a size that is not positive, rows that do not divide,
      a group longer than a row, an empty prompt or completion, or a shape too small.
  """
  _check_positive(
    rows_per_step=rows_per_step,
    microbatches=microbatches,
    row_length=row_length,
    epochs=epochs,
    steps=steps,
    groups_per_row=groups_per_row,
  )
  if rows_per_step % microbatches:
    raise ValueError(
      f"microbatches: {microbatches} does not divide rows_per_step {rows_per_step}"
    )
  data = store(examples)
  L = int(data.length.max()) if row_length is None else row_length
  _check_fits(examples, data, L)
  rows, epoch_start = [], []
  for epoch in range(epochs):
    epoch_start.append(len(rows))
    rng = np.random.default_rng((seed, epoch)) if shuffle else None
    rows += bin_packing.best_fit(data.length, L, groups_per_row, rng)
  row_start = np.cumsum([0, *map(len, rows)])
  available = -(-len(rows) // rows_per_step)
  if steps is not None and steps > available:
    raise ValueError(
      f"steps: {steps} asked, {epochs} epochs make {available}; raise epochs"
    )
  batches = Batches(
    store=data,
    shape=Shape(L, 0, 0, 0, 0),
    microbatches=microbatches,
    rows_per_step=rows_per_step,
    row_start=row_start,
    group=np.concatenate(rows),
    epoch_start=np.array(epoch_start),
    steps=available if steps is None else steps,
  )
  needed = _smallest_shape(batches)
  if shape is None:
    shape = needed
  elif shape.L != needed.L or any(a < b for a, b in zip(shape, needed, strict=True)):
    raise ValueError(f"shape: {shape} does not hold the run, which needs {needed}")
  return dataclasses.replace(batches, shape=shape)


def eval_batches(
  examples: Sequence[Example],
  *,
  rows_per_step: int,
  microbatches: int = 1,
  row_length: int | None = None,
  groups_per_row: int | None = None,
  shape: Shape | None = None,
) -> Batches:
  """One pass over every example, unshuffled; arguments as in `plan`."""
  return plan(
    examples,
    rows_per_step=rows_per_step,
    microbatches=microbatches,
    row_length=row_length,
    shuffle=False,
    groups_per_row=groups_per_row,
    shape=shape,
  )


def _check_fits(examples: Sequence[Example], data: Store, row_length: int) -> None:
  long = np.flatnonzero(data.length > row_length)
  if long.size:
    worst = int(data.length.argmax())
    raise ValueError(
      f"row_length: {row_length} is shorter than {long.size} groups (prompt and "
      f"completions together), the longest {examples[worst].uid} with "
      f"{data.length[worst]} tokens; raise row_length or lower the token limits"
    )


def _check_positive(**sizes: int | None) -> None:
  for name, size in sizes.items():
    if size is not None and size < 1:
      raise ValueError(f"{name}: {size} is not a positive whole number")


def _smallest_shape(batches: Batches) -> Shape:
  data = batches.store
  rows = min(batches.steps * batches.rows_per_step, len(batches.row_start) - 1)
  row_start = batches.row_start[: rows + 1]
  groups = batches.group[: row_start[-1]]
  per_microbatch = batches.rows_per_step // batches.microbatches
  edges = np.append(row_start[:-1:per_microbatch], row_start[-1])
  return Shape(
    L=batches.shape.L,
    B=int(np.diff(edges).max()),
    K=int(np.diff(data.group_start).max()) - 1,
    T=data.T,
    C=int(np.add.reduceat(data.responses[groups], row_start[:-1]).max()),
  )


def _ragged(start: np.ndarray, size: np.ndarray) -> np.ndarray:
  """`concatenate([arange(s, s + n) for s, n in zip(start, size)])`."""
  ends = size.cumsum()
  return np.arange(ends[-1]) + np.repeat(start - ends + size, size)


def _within(count: np.ndarray) -> np.ndarray:
  """`concatenate([arange(n) for n in count])`."""
  return _ragged(np.zeros_like(count), count)


def _build(batches: Batches, group: np.ndarray, row: np.ndarray) -> Batch:
  """Lays groups (examples, with the row of each) out as a batch.

  Three levels of ragged arrays, each in the order of the rows: groups, their pieces,
  the pieces' tokens; then the tokens with loss. A `_p` holds one entry per piece, a
  `_t` one per token, a `_q` one per token with loss.
  """
  data, (L, B, K, T, C), M = batches.store, batches.shape, batches.microbatches
  rows = batches.rows_per_step
  R = rows // M
  # Groups: where each lands.
  size = data.length[group]
  groups_in_row = np.bincount(row, minlength=rows)
  segment = _within(groups_in_row) + 1
  tokens_in_row = np.bincount(row, size, minlength=rows).astype(np.int64)
  row_origin = tokens_in_row.cumsum() - tokens_in_row
  column = size.cumsum() - size - row_origin[row]
  slot = _within(np.bincount(row // R, minlength=M))  # b of each group
  # Pieces: prompt, completion 0, completion 1, ...
  first_piece = data.group_start[group]
  pieces = data.group_start[group + 1] - first_piece
  piece_p = _ragged(first_piece, pieces)
  group_p = np.repeat(np.arange(len(group)), pieces)
  branch_p = _within(pieces)
  start_p = data.piece_start[piece_p]
  size_p = data.piece_start[piece_p + 1] - start_p
  prompt = size_p[branch_p == 0]
  # Tokens.
  piece_t = np.repeat(np.arange(len(piece_p)), size_p)
  group_t = group_p[piece_t]
  from_t = _ragged(start_p, size_p)
  within_t = _within(size_p)
  column_t = np.arange(len(from_t)) - row_origin[row[group_t]]
  branch_t = branch_p[piece_t]
  at_t = row[group_t] * L + column_t
  tokens_t = data.tokens[from_t]
  # Tokens with loss: each is predicted at the token before it in its branch, the first
  # of a completion at the last of the prompt.
  loss_t = data.loss[from_t]
  group_q, within_q = group_t[loss_t], within_t[loss_t]
  row_q = row[group_q]
  last_of_prompt = column + prompt - 1
  source_q = np.where(within_q == 0, last_of_prompt[group_q], column_t[loss_t] - 1)
  room_q = _within(np.bincount(row_q, minlength=rows))  # c of each
  step_q = _within(np.bincount(piece_t[loss_t], minlength=len(piece_p)))  # t of each
  at_q = row_q * C + room_q
  microbatch_q = row_q // R
  cell = (microbatch_q, slot[group_q], branch_t[loss_t] - 1, step_q)

  def scatter(shape, at, values, dtype=np.int32, fill=0):
    array = np.full(shape, fill, dtype)
    array.reshape(-1)[at] = values
    return array

  index_MBKT = np.full((M, B, K, T), R * C, np.int32)
  index_MBKT[cell] = (row_q % R) * C + room_q
  mask_MBKT = (index_MBKT != R * C).astype(np.float32)
  at_group = (row // R) * B + slot
  present_MBK = np.zeros((M, B, K), np.float32)
  present_MBK.reshape(-1, K)[at_group] = np.arange(K) < (pieces - 1)[:, None]
  fields = {}
  for name, column_NK in data.fields.items():
    fields[f"{name}_BK"] = np.zeros((M, B, K), np.float32)
    fields[f"{name}_BK"].reshape(-1, K)[at_group] = column_NK[group]
  for name, value in data.token_fields.items():
    fields[f"{name}_BKT"] = np.zeros((M, B, K, T), np.float32)
    fields[f"{name}_BKT"][cell] = value[from_t[loss_t]]
  return Batch(
    tokens_MRL=scatter((M, R, L), at_t, tokens_t),
    segment_MRL=scatter((M, R, L), at_t, segment[group_t]),
    branch_MRL=scatter((M, R, L), at_t, branch_t),
    position_MRL=scatter(
      (M, R, L), at_t, within_t + np.where(branch_t == 0, 0, prompt[group_t])
    ),
    source_MRC=scatter((M, R, C), at_q, source_q),
    target_MRC=scatter((M, R, C), at_q, tokens_t[loss_t]),
    valid_MRC=scatter((M, R, C), at_q, 1, np.float32),
    index_MBKT=index_MBKT,
    mask_MBKT=mask_MBKT,
    present_MBK=present_MBK,
    weight_MB=scatter((M, B), at_group, 1, np.float32),
    row_MB=scatter((M, B), at_group, group, fill=-1),
    fields=fields,
  )
