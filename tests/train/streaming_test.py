"""Sources larger than memory: the same run as of records that are held."""

import dataclasses
import gzip
import json
import os
import signal
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.quiet import quiet
from tests.train import compare
from tests.train.tiny_runs import ADAPTED
from xpo_jax.config import experiment as experiments
from xpo_jax.config.data import Data, Evaluation
from xpo_jax.data import pack, record_stream, sources, synthetic_reviews
from xpo_jax.data.record_stream import RecordStream
from xpo_jax.data.records import Demonstration
from xpo_jax.data.token_store import StoredExamples
from xpo_jax.train import loading, loop


@pytest.fixture
def streaming(monkeypatch):
  """Makes every source one that is larger than what is held."""
  monkeypatch.setattr(sources, "HELD_BYTES", -1)


def _rows(count, words=1):
  texts = synthetic_reviews.generate(2 * count, seed=0)
  return [
    {"prompt": prompt, "chosen": good * words, "rejected": texts[n + count][1] * words}
    for n, (prompt, good) in enumerate(texts[:count])
  ]


def _write(path, rows):
  if path.suffix == ".parquet":
    table = pa.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, path, row_group_size=7)
    return path
  text = "".join(json.dumps(row) + "\n" for row in rows).encode()
  path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
  return path


@pytest.fixture(scope="module")
def tokenizer():
  texts = [p + y for p, y in synthetic_reviews.generate(200, seed=0)]
  return synthetic_reviews.train_bpe(texts, 400)


def _prepared(data, tokenizer, tmp_path, evaluation):
  run = experiments.replace(ADAPTED, data=data, evaluation=evaluation)
  loaded = loading.load(data, data, {})
  return loaded, *loading.prepare(run, loaded, tokenizer, tmp_path, {})


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
@pytest.mark.parametrize("portion", [None, "train"])
def test_examples_and_counts_are_those_of_records_that_are_held(
  name, portion, tokenizer, tmp_path, monkeypatch
):
  rows = _rows(60)
  rows = [row | {"margin": 1.0} for row in rows]
  del rows[7]["margin"]
  rows[9]["chosen"] = rows[9]["rejected"]
  rows[11] = rows[10]
  rows[12]["rating"] = "good"
  more = [row | {"margin": 2.0} for row in _rows(60)]
  other = _write(tmp_path / "other.jsonl", more)
  data = Data(
    str(_write(tmp_path / name, rows)),
    also=(f"{other}=1.5",),
    portion=portion,
    limit=40,
    bad_rows="drop",
  )
  rest = (tokenizer, tmp_path, Evaluation(share=0.5))
  held, *expected = _prepared(data, *rest)
  monkeypatch.setattr(sources, "HELD_BYTES", -1)
  loaded, train, held_out, counts = _prepared(data, *rest)
  assert isinstance(loaded.records, RecordStream) and isinstance(train, StoredExamples)
  assert not isinstance(held.records, RecordStream)
  assert tuple(loaded.records) == held.records
  assert dataclasses.replace(loaded, records=held.records) == held
  # Digests of the examples among them.
  assert counts == expected[2]
  sizes = pack.PackSizes(4)
  for ours, theirs in zip((train, held_out), expected[:2], strict=True):
    plans = (pack.plan(x, sizes, seed=1, epochs=2) for x in (ours, theirs))
    for batch, other_batch in zip(*plans, strict=True):
      np.testing.assert_equal(vars(batch), vars(other_batch))


def test_memory_does_not_grow_with_the_rows(tokenizer, tmp_path, streaming):
  """A further row adds its numbers in the index; held, it would add its texts, its
  tokens as Python's integers, and more: several kB."""
  peaks = []
  for count in (512, 1024):
    rows = _rows(count, words=12)
    path = _write(tmp_path / f"{count}.jsonl", rows)
    del rows
    data = Data(str(path), bad_rows="drop")
    tracemalloc.start()
    _, train, _, _ = _prepared(data, tokenizer, tmp_path, Evaluation(share=0.1))
    batches = pack.plan(train, pack.PackSizes(4))
    batches[0]
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert (peaks[1] - peaks[0]) / 512 < 500


def test_run_and_its_resumption_are_those_of_records_that_are_held(
  tmp_path, monkeypatch
):
  path = _write(tmp_path / "pairs.jsonl", _rows(40))
  run = experiments.replace(
    ADAPTED, path=str(path), steps=4, evaluation=Evaluation(share=0.2)
  )
  loop.train(run, tmp_path / "held", say=quiet)
  monkeypatch.setattr(sources, "HELD_BYTES", -1)

  def say(text):
    if text.startswith("step 2/"):
      os.kill(os.getpid(), signal.SIGTERM)

  stopped = loop.train(run, tmp_path / "streamed", say=say)
  assert not stopped.finished
  assert loop.resume(tmp_path / "streamed", say=quiet).finished
  assert compare.differences(tmp_path / "streamed", tmp_path / "held") == []


def test_source_that_changes_while_it_is_read_is_refused(tmp_path, streaming):
  path = _write(tmp_path / "rows.jsonl", _rows(5))
  records = sources.read_jsonl(path).records
  assert len(list(records)) == len(records) == 5
  for count in (4, 6):
    _write(path, _rows(count))
    with pytest.raises(ValueError, match=r"source of 5 records .* changed while"):
      list(records)


def test_stream_is_a_sequence():
  made = [Demonstration(str(n), "p", "y") for n in range(6)]
  stream = RecordStream(lambda: iter(made), 6)
  assert (stream[0], stream[-1], stream[1:4]) == (made[0], made[-1], tuple(made[1:4]))
  assert list(stream.first(2)) == made[:2] and len(stream.first(9)) == 6
  odd = stream.where(lambda row: int(row.uid) % 2, 3)
  assert list(odd) == made[1::2]
  assert list(record_stream.concatenated([odd, made])) == [*made[1::2], *made]
  with pytest.raises(IndexError):
    stream[6]
