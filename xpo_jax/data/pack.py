"""Packs prompt groups into rows of one length, and rows into steps of one shape.

A group is a prompt, stored once, followed by its K completions. `plan` shuffles, packs
and cuts each epoch by the seed and the epoch's number alone, so the step number is the
only state of the data pipeline: `batches[step]`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from flax import struct

from xpo_jax.data import bin_packing
from xpo_jax.data.token_store import TokenStore, build_store
from xpo_jax.data.tokenise import Example


@struct.dataclass
class Batch:
  """One optimiser step: M microbatches of R rows, with indices that map to B x K x T.

  `C` is a row's capacity in response tokens. Ids and indices are int32, masks
  float32. T counts tokens that carry loss, so masks have no gaps.

  Attributes:
    tokens_MRL: token ids, 0 on padding.
    segment_MRL: 0 on padding, else the index of the group within its row, from 1.
    branch_MRL: 0 on the prompt, k + 1 on completion k.
    position_MRL: position in prompt + completion; each branch starts after the prompt.
    source_MRC: index into L of the position whose output predicts a response token.
    target_MRC: the predicted token.
    input_MRC: index into L of the response token itself: the position whose output has
      read it.
    valid_MRC: 1 where the three above are used, 0 on padding.
    index_MBKT: flat index into R * C of each response token; R * C on padding.
    mask_MBKT: 1 on response tokens.
    present_MBK: 0 on columns that the group lacks.
    weight_MB: 1 on groups, 0 on padding groups.
    row_MB: index of the example in the data set, -1 on padding groups.
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
  input_MRC: np.ndarray
  valid_MRC: np.ndarray
  index_MBKT: np.ndarray
  mask_MBKT: np.ndarray
  present_MBK: np.ndarray
  weight_MB: np.ndarray
  row_MB: np.ndarray
  fields: Mapping[str, np.ndarray] = struct.field(default_factory=dict)
  ref: Mapping[str, np.ndarray] = struct.field(default_factory=dict)


class Shape(NamedTuple):
  """The static sizes of a batch; a step compiles once per shape.

  Attributes:
    L: tokens per row.
    B: groups per microbatch, padding groups included.
    K: completions per group.
    T: response tokens per completion.
    C: response tokens per row.
  """

  L: int
  B: int
  K: int
  T: int
  C: int


@dataclasses.dataclass(frozen=True)
class PackSizes:
  """How examples are packed into rows and rows into steps.

  Attributes:
    rows_per_step: rows per optimiser step, over all microbatches and devices.
    microbatches: M; divides rows_per_step.
    row_length: L, in tokens. None: the longest group.
    groups_per_row: maximum number of groups in a row. None: as many as fit. 1: batch
      sizes count groups.
    shape: sizes to use instead of the smallest that hold the run, so that runs over
      different data or seeds share one compiled step.
  """

  rows_per_step: int
  microbatches: int = 1
  row_length: int | None = None
  groups_per_row: int | None = None
  shape: Shape | None = None

  def __post_init__(self):
    _check_positive(
      rows_per_step=self.rows_per_step,
      microbatches=self.microbatches,
      row_length=self.row_length,
      groups_per_row=self.groups_per_row,
    )
    if self.rows_per_step % self.microbatches:
      raise ValueError(
        f"microbatches: {self.microbatches} does not divide rows_per_step "
        f"{self.rows_per_step}"
      )


@dataclasses.dataclass(frozen=True)
class Batches:
  """The run's batches by step; a random-access source for `grain.MapDataset`.

  Attributes:
    store: the data set.
    shape: sizes of every batch.
    microbatches: M.
    rows_per_step: M * R.
    row_start: int64, the first group of each row of the run, then the group count.
    group: int64, the example index of each group of the run.
    epoch_start: int64, the first row of each epoch.
    steps: number of steps; later rows are not used.
  """

  store: TokenStore
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
    """Returns the epoch, from 0, of the first row of a step."""
    first = step * self.rows_per_step
    return int(np.searchsorted(self.epoch_start, first, "right")) - 1

  def groups_of(self, step: int) -> np.ndarray:
    """Returns the example indices of a step, in the order of their rows."""
    first, end = self._group_range(step)
    return self.group[first:end]

  @property
  def tokens_computed(self) -> int:
    """Tokens that the model processes in the run, padding included."""
    return self.steps * self.rows_per_step * self.shape.L

  @property
  def tokens_unique(self) -> int:
    """Tokens of the run's groups, counting each prompt and each completion once."""
    _, end = self._group_range(self.steps - 1)
    return int(self.store.length[self.group[:end]].sum())

  def _group_range(self, step: int) -> tuple[int, int]:
    last_row = len(self.row_start) - 1
    first_row = min(step * self.rows_per_step, last_row)
    end_row = min((step + 1) * self.rows_per_step, last_row)
    return int(self.row_start[first_row]), int(self.row_start[end_row])

  def __getitem__(self, step: int) -> Batch:
    """Builds the batch of a step.

    Raises:
      IndexError: the step is outside the run.
    """
    if not 0 <= step < self.steps:
      raise IndexError(f"step {step} is outside the run of {self.steps} steps")
    first_group, end_group = self._group_range(step)
    first_row = step * self.rows_per_step
    sizes = np.diff(self.row_start[first_row : first_row + self.rows_per_step + 1])
    row = np.repeat(np.arange(len(sizes)), sizes)
    return _build(self, self.group[first_group:end_group], row)


def plan(
  examples: Sequence[Example],
  sizes: PackSizes,
  *,
  seed: int = 0,
  epochs: int = 1,
  steps: int | None = None,
  shuffle: bool = True,
) -> Batches:
  """Packs every epoch of a run into rows, and rows into steps.

  Each epoch is shuffled, packed by best fit over whole groups in decreasing order of
  length, and its rows are shuffled again, so that which groups share a step does not
  depend on their lengths. Epochs follow each other without padding in between; the
  last step of the run is padded with empty rows.

  Args:
    examples: the data set, of one layout.
    sizes: of rows and steps.
    seed: determines the order, together with the epoch number.
    epochs: passes over the data, >= 1.
    steps: number of steps to stop after. None: after the last epoch.
    shuffle: False keeps rows in the order of their first example.

  Returns:
    The batches by step.

  Raises:
    ValueError: no examples, a size that is not positive, a group longer than a row,
      an empty prompt or completion, or a shape too small.
  """
  _check_positive(epochs=epochs, steps=steps)
  data = build_store(examples)
  L = int(data.length.max()) if sizes.row_length is None else sizes.row_length
  _check_fits(examples, data, L)
  rows = []
  epoch_start = []
  for epoch in range(epochs):
    epoch_start.append(len(rows))
    rng = np.random.default_rng((seed, epoch)) if shuffle else None
    rows += bin_packing.best_fit(
      data.length, L, groups_per_row=sizes.groups_per_row, rng=rng
    )
  row_start = np.cumsum([0, *map(len, rows)])
  available = -(-len(rows) // sizes.rows_per_step)
  if steps is not None and steps > available:
    raise ValueError(
      f"steps: {steps} exceeds the {available} steps of {epochs} epochs; raise epochs"
    )
  batches = Batches(
    store=data,
    shape=Shape(L, 0, 0, 0, 0),
    microbatches=sizes.microbatches,
    rows_per_step=sizes.rows_per_step,
    row_start=row_start,
    group=np.concatenate(rows),
    epoch_start=np.array(epoch_start),
    steps=available if steps is None else steps,
  )
  needed = _smallest_shape(batches)
  shape = needed if sizes.shape is None else sizes.shape
  if shape.L != needed.L or any(a < b for a, b in zip(shape, needed, strict=True)):
    raise ValueError(f"shape: {shape} does not hold the run, which needs {needed}")
  return dataclasses.replace(batches, shape=shape)


def eval_batches(examples: Sequence[Example], sizes: PackSizes) -> Batches:
  """Packs one pass over every example, unshuffled; see `plan`."""
  return plan(examples, sizes, shuffle=False)


def _check_fits(examples: Sequence[Example], data: TokenStore, row_length: int) -> None:
  too_long = np.flatnonzero(data.length > row_length)
  if too_long.size:
    longest = int(data.length.argmax())
    raise ValueError(
      f"row_length: {row_length} is shorter than {too_long.size} groups (prompt and "
      f"completions together), the longest {examples[longest].uid} with "
      f"{data.length[longest]} tokens; raise row_length or lower the token limits"
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
  """Builds a batch from groups (example indices) and the row of each.

  Uses three levels of ragged arrays, each in the order of the rows: groups, the
  groups' pieces (prompt, completions), the pieces' tokens; then the tokens with loss.
  The suffix `_p` marks one entry per piece, `_t` per token, `_q` per token with loss.
  """
  data = batches.store
  L, B, K, T, C = batches.shape
  M = batches.microbatches
  rows = batches.rows_per_step
  R = rows // M
  # Groups: the row offset of each, and its slot in the microbatch.
  size = data.length[group]
  groups_in_row = np.bincount(row, minlength=rows)
  segment = _within(groups_in_row) + 1
  tokens_in_row = np.bincount(row, size, minlength=rows).astype(np.int64)
  row_origin = tokens_in_row.cumsum() - tokens_in_row
  column = size.cumsum() - size - row_origin[row]
  slot = _within(np.bincount(row // R, minlength=M))  # index b of each group
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
  # Tokens with loss: each is predicted at the preceding token of its branch, the first
  # token of a completion at the last token of the prompt.
  loss_t = data.loss[from_t]
  group_q, within_q = group_t[loss_t], within_t[loss_t]
  row_q = row[group_q]
  last_of_prompt = column + prompt - 1
  source_q = np.where(within_q == 0, last_of_prompt[group_q], column_t[loss_t] - 1)
  c_q = _within(np.bincount(row_q, minlength=rows))
  step_q = _within(np.bincount(piece_t[loss_t], minlength=len(piece_p)))
  at_q = row_q * C + c_q
  microbatch_q = row_q // R
  cell = (microbatch_q, slot[group_q], branch_t[loss_t] - 1, step_q)

  def scatter(shape, at, values, dtype=np.int32, fill=0):
    array = np.full(shape, fill, dtype)
    array.reshape(-1)[at] = values
    return array

  index_MBKT = np.full((M, B, K, T), R * C, np.int32)
  index_MBKT[cell] = (row_q % R) * C + c_q
  mask_MBKT = (index_MBKT != R * C).astype(np.float32)
  at_group = (row // R) * B + slot
  present_MBK = np.zeros((M, B, K), np.float32)
  present_MBK.reshape(-1, K)[at_group] = np.arange(K) < (pieces - 1)[:, None]
  fields = {}
  for name, column_NK in data.fields.items():
    fields[f"{name}_BK"] = np.zeros((M, B, K), np.float32)
    # Narrower than K where no group of the data has K completions.
    width = column_NK.shape[1]
    fields[f"{name}_BK"].reshape(-1, K)[at_group, :width] = column_NK[group]
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
    input_MRC=scatter((M, R, C), at_q, column_t[loss_t]),
    valid_MRC=scatter((M, R, C), at_q, 1, np.float32),
    index_MBKT=index_MBKT,
    mask_MBKT=mask_MBKT,
    present_MBK=present_MBK,
    weight_MB=scatter((M, B), at_group, 1, np.float32),
    row_MB=scatter((M, B), at_group, group, fill=-1),
    fields=fields,
  )
