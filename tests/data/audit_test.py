import dataclasses
import json

import numpy as np
import pytest

from xpo_jax.data import (
  audit,
  collate,
  pack,
  records,
  sources,
  synthetic_reviews,
  tokenise,
)
from xpo_jax.types import Layout


@pytest.fixture(scope="module")
def rows():
  """Eighty pairs of synthetic reviews: one prompt three times, three bad rows."""
  first, second = (
    synthetic_reviews.generate(80, seed=0),
    synthetic_reviews.generate(80, seed=1),
  )
  rows = [
    {"prompt": prompt, "chosen": good, "rejected": bad}
    for (prompt, good), (_, bad) in zip(first, second, strict=True)
  ]
  rows[7]["prompt"] = rows[8]["prompt"] = rows[9]["prompt"]
  for bad, column, value in (
    (20, "chosen", " "),
    (30, "rejected", rows[30]["chosen"]),
    (40, "rejected", None),
  ):
    rows[bad][column] = value
  return rows


@pytest.fixture(scope="module")
def tokenizer():
  return synthetic_reviews.train_bpe(
    [p + y for p, y in synthetic_reviews.generate(500, seed=0)], 600
  )


@pytest.fixture(scope="module")
def loaded(rows):
  return sources.from_dicts(rows, "pairs")


HALVES = {"train": 0.5, "test": 0.5}


def test_bad_records_raise_with_a_list(loaded, tokenizer):
  with pytest.raises(records.BadRecords, match="3 bad records") as caught:
    audit.prepare(loaded, tokenizer, fractions=HALVES)
  assert {bad.uid for bad in caught.value.bad} == {"pairs:21", "pairs:31", "pairs:41"}


def test_dropped_records_are_counted_and_listed_in_a_file(
  loaded, tokenizer, tmp_path, rows
):
  path = tmp_path / "bad_rows.jsonl"
  limits = tokenise.Limits(completion=4)
  prepared = audit.prepare(
    loaded,
    tokenizer,
    fractions=HALVES,
    limits=limits,
    bad_rows="drop",
    bad_rows_file=path,
  )
  counts = prepared.audit
  assert (counts.rows, counts.kept) == (80, 77)
  assert counts.dropped == {
    "empty completion": 1,
    "identical chosen and rejected": 1,
    "missing column": 1,
  }
  # Expected: the completions that, tokenised alone with EOS, exceed the limit.
  good = [row for i, row in enumerate(rows) if i not in (20, 30, 40)]
  texts = [row[name] for row in good for name in ("chosen", "rejected")]
  sizes = [len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False).input_ids]
  assert counts.truncated_completions == sum(size > 4 for size in sizes)
  assert counts.repeated_prompts == 77 - len({row["prompt"] for row in good})
  assert sum(each["examples"] for each in counts.splits.values()) == 77
  written = [json.loads(line) for line in path.read_text().splitlines()]
  assert {row["uid"] for row in written} == {"pairs:21", "pairs:31", "pairs:41"}
  assert {row["row"]["prompt"] for row in written} == {
    rows[i]["prompt"] for i in (20, 30, 40)
  }
  json.dumps(counts.summary())


def test_splits_align_records_and_examples(loaded, tokenizer, tmp_path):
  prepared = audit.prepare(
    loaded,
    tokenizer,
    fractions=HALVES,
    bad_rows="drop",
    bad_rows_file=tmp_path / "bad.jsonl",
  )
  for name in HALVES:
    pairs = zip(prepared.records[name], prepared.examples[name], strict=True)
    for record, example in pairs:
      assert record.uid == example.uid
      assert (
        tokenizer.decode(example.completions[1])
        == record.rejected + synthetic_reviews.EOS
      )
    assert prepared.audit.splits[name]["sha256"] == audit.digest(
      prepared.examples[name]
    )


def test_dropping_without_a_file_raises(loaded, tokenizer):
  with pytest.raises(ValueError, match="bad_rows_file"):
    audit.prepare(loaded, tokenizer, fractions=HALVES, bad_rows="drop")
  with pytest.raises(ValueError, match="bad_rows: 'skip'"):
    audit.prepare(loaded, tokenizer, fractions=HALVES, bad_rows="skip")


def example(**changes):
  base = tokenise.Example(
    "a",
    np.array([1, 2], np.int32),
    (np.array([3, 4], np.int32), np.array([5], np.int32)),
    Layout.RANKED,
    fields={"reward": np.array([1, 0], np.float32)},
  )
  return dataclasses.replace(base, **changes)


@pytest.mark.parametrize(
  "changes",
  [
    {"prompt": np.array([1, 3], np.int32)},
    {"completions": (np.array([3], np.int32), np.array([4, 5], np.int32))},
    {"masks": (np.array([False, True]), np.array([True]))},
    {"fields": {"reward": np.array([1, 0.5], np.float32)}},
    {"fields": {"desirable": np.array([1, 0], np.float32)}},
    {"layout": Layout.SAMPLED},
  ],
)
def test_digest_changes_with_training_data(changes):
  assert audit.digest([example(**changes)]) != audit.digest([example()])


def test_digest_depends_on_order_not_on_uids():
  other = example(prompt=np.array([9], np.int32))
  assert audit.digest([example(), other]) != audit.digest([other, example()])
  assert audit.digest([example(uid="b")]) == audit.digest([example()])


def test_tokenizer_digest_depends_on_vocabulary_and_template(tokenizer):
  before = audit.tokenizer_digest(tokenizer)
  assert (
    audit.tokenizer_digest(synthetic_reviews.train_bpe(["other words"], 280)) != before
  )
  tokenizer.chat_template = "{{ messages }}"
  changed = audit.tokenizer_digest(tokenizer)
  tokenizer.chat_template = None
  assert changed != before == audit.tokenizer_digest(tokenizer)


def test_repeated_rows_are_equal_in_all_that_is_trained_on(tokenizer, tmp_path):
  row = {"prompt": "the film was", "chosen": " good.", "rejected": " bad."}
  rows = [row, row, row | {"chosen": " fine."}, row | {"prompt": "the plot was"}, row]
  counts = audit.prepare(
    sources.from_dicts(rows, "pairs"), tokenizer, fractions={"train": 1.0}
  ).audit
  assert (counts.repeated_rows, counts.repeated_prompts) == (2, 3)
  rows = [
    {"prompt": "p", "completion": " y", "label": label} for label in (True, False)
  ]
  counts = audit.prepare(
    sources.from_dicts(rows, "rated"), tokenizer, fractions={"train": 1.0}
  ).audit
  assert (counts.repeated_rows, counts.repeated_prompts) == (0, 1)


def test_percentiles_are_those_of_numpy():
  lengths = np.random.default_rng(0).integers(1, 50, 333)
  counts = dict(zip(*np.unique(lengths, return_counts=True), strict=True))
  found = audit.percentiles({int(k): int(n) for k, n in counts.items()}, 30)
  for name, share in {"p50": 50, "p90": 90, "p99": 99, "max": 100}.items():
    assert found[name] == np.percentile(lengths, share, method="inverted_cdf")
  assert found["over"] == (lengths > 30).sum()
  assert audit.percentiles({}, None)["max"] == 0


@pytest.mark.parametrize("layout", [Layout.RANKED, Layout.RATED])
def test_inspect_tokens_gives_tokens_and_loss(tokenizer, layout):
  words = " the plot was so very dull and long".split()
  ids = [tokenizer.encode(f" {word}", add_special_tokens=False) for word in words]

  def join(*numbers):
    return np.array([i for number in numbers for i in ids[number]], np.int32)

  completions = (join(2, 3, 5), join(4), join(5, 6))
  masks = tuple(np.arange(len(y)) % 2 == 1 for y in completions)
  masks[1][-1] = True
  masks[2][0] = True
  groups = [
    tokenise.Example(
      name,
      join(0, 1),
      completions,
      Layout.RANKED,
      masks,
      {"reward": np.zeros(3, np.float32)},
    )
    for name in "ab"
  ]
  groups = collate.to_layout(groups, layout)
  batches = pack.eval_batches(groups, pack.PackSizes(1, row_length=80))
  shown = [
    row
    for s in range(len(batches))
    for row in audit.inspect_tokens(batches[s], tokenizer)
  ]
  tokens = [token for row in shown for token in row]
  expected = []
  for group in groups:
    expected += [(tokenizer.decode([i]), False) for i in group.prompt]
    for y, mask in zip(group.completions, group.masks, strict=True):
      expected += [
        (tokenizer.decode([i]), bool(on)) for i, on in zip(y, mask, strict=True)
      ]
  assert sorted((t.text, t.loss) for t in tokens) == sorted(expected)
  if layout is Layout.RANKED:
    assert [(t.text, t.loss) for t in tokens] == expected
  assert all(token.segment > 0 for token in tokens)
