"""Examples in files, equal to those in memory in all that is trained on."""

import dataclasses

import numpy as np
import pytest

from xpo_jax.data import audit, collate, pack, token_store
from xpo_jax.data.tokenise import Example
from xpo_jax.types import Layout


def _tokens(rng, low, high):
  return rng.integers(3, 99, rng.integers(low, high)).astype(np.int32)


@pytest.fixture(scope="module", params=[Layout.PAIR, Layout.RANKED, Layout.RATED])
def examples(request):
  rng = np.random.default_rng(0)
  made = []
  for n in range(23):
    K = {Layout.PAIR: 2, Layout.RATED: 1}.get(request.param, 2 + n % 3)
    completions = tuple(_tokens(rng, 1, 7) for _ in range(K))
    masks = tuple(rng.random(len(y)) < 0.5 for y in completions)
    for mask in masks:
      mask[0] = True
    masks = None if n % 2 else masks
    rewards = rng.normal(size=K).astype(np.float32)
    made.append(
      Example(
        f"z€ile {n}",
        _tokens(rng, 1, 5),
        completions,
        request.param,
        None if masks is None or all(mask.all() for mask in masks) else masks,
        {"reward": rewards},
        {"weight": tuple(y.astype(np.float32) / 7 for y in completions)},
      )
    )
  return made


@pytest.fixture
def stored(examples, tmp_path):
  writer = token_store.ExampleWriter(tmp_path)
  for example in examples:
    writer.append(example)
  return writer.finish()


def _assert_equal(left, right):
  assert len(left) == len(right)
  for a, b in zip(left, right, strict=True):
    # No mask and a mask of all tokens are the same.
    masks = ([collate.mask(x, k) for k in range(len(x.completions))] for x in (a, b))
    np.testing.assert_equal(*masks)
    for field in dataclasses.fields(Example):
      if field.name != "masks":
        np.testing.assert_equal(vars(a)[field.name], vars(b)[field.name])


def test_examples_are_read_as_they_were_written(examples, stored, tmp_path):
  _assert_equal(stored, examples)
  _assert_equal(stored[3:7], examples[3:7])
  _assert_equal([stored[-1]], examples[-1:])
  with pytest.raises(IndexError):
    stored[len(examples)]
  assert list(tmp_path.iterdir()) == []  # its files have no name
  in_memory = token_store.build_store(examples)
  np.testing.assert_equal(
    token_store.build_store(stored)._asdict(), in_memory._asdict()
  )
  assert audit.digest(stored) == audit.digest(examples)


@pytest.mark.parametrize("layout", [Layout.PAIR, Layout.RATED, Layout.RATED_MISMATCHED])
def test_layouts_and_batches_are_those_of_examples_in_memory(examples, stored, layout):
  if examples[0].layout is Layout.RATED and layout is Layout.PAIR:
    pytest.skip("no rule")
  # Numbers by token stand on one column of two, and on no column of another.
  examples = [dataclasses.replace(example, token_fields={}) for example in examples]
  stored = token_store.collected(examples, stored)
  converted = collate.to_layout(stored, layout, seed=1)
  assert isinstance(converted, token_store.StoredExamples)
  expected = collate.to_layout(examples, layout, seed=1)
  _assert_equal(converted, expected)
  sizes = pack.PackSizes(4, microbatches=2)
  for ours, theirs in zip(
    *(pack.plan(x, sizes, seed=3, epochs=2) for x in (converted, expected)), strict=True
  ):
    np.testing.assert_equal(vars(ours), vars(theirs))


def test_what_cannot_be_trained_on_is_refused(tmp_path):
  y = np.array([4], np.int32)
  sound = Example("a", y, (y,), Layout.DEMO)
  for changes, message in (
    ({"prompt": y[:0]}, "b: prompt has no tokens"),
    ({"masks": (np.array([False]),)}, "b: completion has no loss"),
    ({"layout": Layout.RATED}, r"mix layouts \['DEMO', 'RATED'\]"),
    ({"fields": {"reward": y}}, r"b: fields \['reward'\], but .* have \[\]"),
  ):
    writer = token_store.ExampleWriter(tmp_path)
    writer.append(sound)
    with pytest.raises(ValueError, match=message):
      writer.append(dataclasses.replace(sound, uid="b", **changes))
  with pytest.raises(ValueError, match="the data set is empty"):
    token_store.ExampleWriter(tmp_path).finish()
