import numpy as np
import pytest

from xpo_jax.data import pack
from xpo_jax.data.tokenise import Example
from xpo_jax.types import Layout


def make_examples(n, seed=0, columns=(1, 4), sizes=(1, 9), masked=False):
  """Random ragged groups; with `masked`, every second one has a random loss mask."""
  rng = np.random.default_rng(seed)

  def ids():
    return rng.integers(1, 1000, rng.integers(*sizes)).astype(np.int32)

  examples = []
  for number in range(n):
    completions = tuple(ids() for _ in range(rng.integers(*columns)))
    masks = None
    if masked and number % 2:
      masks = tuple(rng.random(len(y)) < 0.5 for y in completions)
      for mask in masks:
        mask[-1] = True
    rewards = rng.normal(size=len(completions)).astype(np.float32)
    fields = {"reward": rewards}
    examples.append(
      Example(f"row {number}", ids(), completions, Layout.RANKED, masks, fields)
    )
  return examples


def read_back(batch, m, b, k, t, index_MRC):
  """Target of a response token, and the tokens and positions that its source (or its
  own position, by the index) attends to."""
  C = batch.source_MRC.shape[2]
  r, c = divmod(int(batch.index_MBKT[m, b, k, t]), C)
  assert batch.valid_MRC[m, r, c] == 1
  source = index_MRC[m, r, c]
  segment, branch = batch.segment_MRL[m, r], batch.branch_MRL[m, r]
  attended = [
    i
    for i in range(source + 1)
    if segment[i] == segment[source] and branch[i] in (0, branch[source])
  ]
  return (
    batch.target_MRC[m, r, c],
    batch.tokens_MRL[m, r, attended].tolist(),
    batch.position_MRL[m, r, attended].tolist(),
  )


@pytest.mark.parametrize("groups_per_row", [None, 1, 2])
@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_response_token_attends_to_its_prompt_and_branch(
  groups_per_row, microbatches, masked
):
  examples = make_examples(40, masked=masked)
  batches = pack.plan(
    examples,
    pack.PackSizes(
      4, microbatches=microbatches, row_length=48, groups_per_row=groups_per_row
    ),
  )
  seen = []
  for step in range(len(batches)):
    batch = batches[step]
    for m, b in np.argwhere(batch.weight_MB == 1):
      row = int(batch.row_MB[m, b])
      example = examples[row]
      seen.append(row)
      K = len(example.completions)
      assert batch.present_MBK[m, b].tolist() == [1] * K + [0] * (batches.shape.K - K)
      np.testing.assert_array_equal(
        batch.fields["reward_BK"][m, b, :K], example.fields["reward"]
      )
      for k, completion in enumerate(example.completions):
        mask = example.masks[k] if example.masks else np.ones(len(completion))
        positions_T = np.flatnonzero(mask)
        assert batch.mask_MBKT[m, b, k].sum() == len(positions_T)
        for t, at in enumerate(positions_T):
          for index_MRC, read in ((batch.source_MRC, at), (batch.input_MRC, at + 1)):
            target, tokens, positions = read_back(batch, m, b, k, t, index_MRC)
            assert target == completion[at]
            assert tokens == [*example.prompt, *completion[:read]]
            assert positions == list(range(len(tokens)))
  assert sorted(seen) == list(range(40))


def test_padding_has_out_of_range_index_and_zero_weight():
  batches = pack.plan(make_examples(7), pack.PackSizes(4, groups_per_row=1))
  batch = batches[1]  # three groups, one empty row
  R, C = batch.source_MRC.shape[1:]
  assert batch.weight_MB.tolist() == [[1, 1, 1, 0]]
  assert batch.row_MB[0, 3] == -1
  assert batch.present_MBK[0, 3].sum() == 0
  assert batch.segment_MRL[0, 3].sum() == 0
  np.testing.assert_array_equal(batch.mask_MBKT == 0, batch.index_MBKT == R * C)
  assert batch.valid_MRC.sum() == batch.mask_MBKT.sum()


def test_shapes_and_dtypes_are_the_same_at_every_step():
  batches = pack.plan(
    make_examples(50), pack.PackSizes(4, microbatches=2, row_length=40)
  )
  kinds = {
    tuple(
      (name, x.shape, x.dtype.name)
      for name, x in vars(batches[s]).items()
      if isinstance(x, np.ndarray)
    )
    for s in range(len(batches))
  }
  assert len(kinds) == 1
  (kind,) = kinds
  for name, shape, dtype in kind:
    is_float = name.startswith(("valid", "mask", "present", "weight"))
    assert dtype == ("float32" if is_float else "int32")
    sizes = dict(zip("MRLBKTC", (2, 2, *batches.shape), strict=True))
    assert shape == tuple(sizes[axis] for axis in name.split("_")[1])


def test_batch_is_a_function_of_seed_and_step_alone():
  examples = make_examples(30)
  batches = pack.plan(examples, pack.PackSizes(2, row_length=40), seed=3, epochs=2)
  again = pack.plan(examples, pack.PackSizes(2, row_length=40), seed=3, epochs=2)
  last = len(batches) - 1
  for _ in range(3):
    again[0]
  np.testing.assert_array_equal(batches[last].tokens_MRL, again[last].tokens_MRL)
  other = pack.plan(examples, pack.PackSizes(2, row_length=40), seed=4, epochs=2)
  assert not np.array_equal(batches.groups_of(0), other.groups_of(0))


def test_shorter_run_is_a_prefix_of_a_longer_one():
  examples = make_examples(30)
  short = pack.plan(examples, pack.PackSizes(1, row_length=40), epochs=1)
  long = pack.plan(examples, pack.PackSizes(1, row_length=40), epochs=3)
  for step in range(len(short)):
    np.testing.assert_array_equal(short.groups_of(step), long.groups_of(step))
    assert long.epoch_of(step) == 0
  assert long.epoch_of(len(short)) == 1
  assert long.epoch_of(len(long) - 1) == 2


def test_each_epoch_has_every_group_once_in_a_new_order():
  batches = pack.plan(make_examples(24), pack.PackSizes(4, groups_per_row=1), epochs=2)
  orders = [
    np.concatenate([batches.groups_of(s) for s in steps])
    for steps in (range(6), range(6, 12))
  ]
  for order in orders:
    assert sorted(order) == list(range(24))
  assert not np.array_equal(*orders)


def test_step_order_does_not_depend_on_length():
  examples = make_examples(2000, columns=(2, 3), sizes=(1, 60))
  batches = pack.plan(examples, pack.PackSizes(8, row_length=400))
  length = np.array([example.tokens for example in examples])
  means = [length[batches.groups_of(s)].mean() for s in range(len(batches) - 1)]
  # Without the shuffle of rows, lengths would decrease over the steps; with it, length
  # and step are uncorrelated.
  trend = np.corrcoef(means, np.arange(len(means)))[0, 1]
  assert abs(trend) < 4 / np.sqrt(len(means))


def test_packing_wastes_under_five_percent_on_long_tailed_lengths():
  rng = np.random.default_rng(0)
  size = np.clip(rng.lognormal(5.0, 0.7, 1500), 20, 1000).astype(int)
  examples = [
    Example(str(i), np.ones(n - 8, np.int32), (np.ones(8, np.int32),), Layout.DEMO)
    for i, n in enumerate(size)
  ]
  batches = pack.plan(examples, pack.PackSizes(4, row_length=1024))
  assert batches.tokens_unique == size.sum()
  assert batches.tokens_computed == len(batches) * 4 * 1024
  assert batches.tokens_computed / batches.tokens_unique < 1.05


def test_rows_have_at_most_groups_per_row():
  batches = pack.plan(
    make_examples(40), pack.PackSizes(4, row_length=60, groups_per_row=2)
  )
  most = max(batches[s].segment_MRL.max() for s in range(len(batches)))
  assert most == 2


def test_given_shape_only_adds_padding():
  examples = make_examples(20)
  small = pack.plan(examples, pack.PackSizes(2, row_length=40))
  wide = small.shape._replace(B=small.shape.B + 3, C=small.shape.C + 5, T=20)
  big = pack.plan(examples, pack.PackSizes(2, row_length=40, shape=wide))
  a, b = small[0], big[0]
  np.testing.assert_array_equal(a.tokens_MRL, b.tokens_MRL)
  assert b.index_MBKT.shape == (1, wide.B, wide.K, wide.T)
  assert a.mask_MBKT.sum() == b.mask_MBKT.sum()
  assert b.weight_MB.sum() == a.weight_MB.sum()


def test_eval_pass_keeps_order_and_pads_the_last_step():
  batches = pack.eval_batches(make_examples(10), pack.PackSizes(4, groups_per_row=1))
  order = np.concatenate([batches[s].row_MB.ravel() for s in range(len(batches))])
  assert order.tolist() == [*range(10), -1, -1]


def test_grain_map_dataset_reads_batches_by_step():
  grain = pytest.importorskip("grain")
  batches = pack.plan(make_examples(12), pack.PackSizes(4, groups_per_row=1))
  dataset = grain.MapDataset.source(batches)
  assert len(dataset) == 3
  np.testing.assert_array_equal(dataset[2].tokens_MRL, batches[2].tokens_MRL)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"rows_per_step": 4, "microbatches": 3}, "microbatches: 3 does not divide"),
    ({"rows_per_step": 0}, "rows_per_step: 0"),
    ({"rows_per_step": 4, "epochs": 0}, "epochs: 0"),
    ({"rows_per_step": 4, "row_length": 5}, r"row_length: 5 .* the longest row \d+"),
    (
      {"rows_per_step": 1, "steps": 99, "groups_per_row": 1},
      "steps: 99 exceeds the 6 steps",
    ),
    ({"rows_per_step": 1, "shape": pack.Shape(40, 1, 1, 1, 1)}, "shape: .* needs"),
  ],
)
def test_invalid_plan_raises_with_the_argument(arguments, message):
  with pytest.raises(ValueError, match=message):
    examples = make_examples(6, columns=(3, 4), sizes=(4, 9))
    sizes = {k: v for k, v in arguments.items() if k not in ("epochs", "steps")}
    run = {k: v for k, v in arguments.items() if k in ("epochs", "steps")}
    pack.plan(examples, pack.PackSizes(**sizes), **run)


@pytest.mark.parametrize(
  ("prompt", "completion", "mask", "message"),
  [
    ([], [1], [True], "bad one: prompt has no tokens"),
    ([1], [], [], "bad one: completion has no loss"),
    ([1], [1, 2], [False, False], "bad one: completion has no loss"),
  ],
)
def test_group_without_loss_raises_with_its_uid(prompt, completion, mask, message):
  bad = Example(
    "bad one",
    np.array(prompt, np.int32),
    (np.array(completion, np.int32),),
    Layout.RANKED,
    (np.array(mask, bool),),
    {"reward": np.zeros(1, np.float32)},
  )
  with pytest.raises(ValueError, match=message):
    pack.plan([*make_examples(2), bad], pack.PackSizes(1))


def test_mixed_columns_or_no_examples_raise():
  bare = Example("bare", np.ones(1, np.int32), (np.ones(1, np.int32),), Layout.RANKED)
  with pytest.raises(ValueError, match="bare: fields"):
    pack.plan([*make_examples(2), bare], pack.PackSizes(1))
  with pytest.raises(ValueError, match="empty"):
    pack.plan([], pack.PackSizes(1))


def test_step_outside_the_run_raises_index_error():
  batches = pack.plan(make_examples(4), pack.PackSizes(4, groups_per_row=1))
  for step in (-1, 1):
    with pytest.raises(IndexError, match="run of 1 steps"):
      batches[step]


def test_token_fields_are_aligned_with_their_tokens():
  rng = np.random.default_rng(0)
  examples = []
  for n in range(5):
    completion = rng.integers(3, 9, 2 + n)
    mask = np.ones(len(completion), bool)
    mask[1] = n != 3
    column = {"reward": (100 * n + np.arange(len(completion)),)}
    prompt = rng.integers(3, 9, 2)
    examples.append(
      Example(str(n), prompt, (completion,), Layout.RATED, (mask,), token_fields=column)
    )
  batch = pack.plan(examples, pack.PackSizes(2, microbatches=2, row_length=32))[0]
  value_MBKT = batch.fields["reward_BKT"]
  assert value_MBKT.shape == batch.mask_MBKT.shape
  assert not value_MBKT[batch.mask_MBKT == 0].any()
  for m, b in np.argwhere(batch.weight_MB > 0):
    n = batch.row_MB[m, b]
    (expected,) = examples[n].token_fields["reward"]
    (mask,) = examples[n].masks
    valid = batch.mask_MBKT[m, b, 0] > 0
    assert value_MBKT[m, b, 0][valid].tolist() == expected[mask].tolist()
