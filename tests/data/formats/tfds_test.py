import pytest

from xpo_jax.data import sources
from xpo_jax.data.formats import tfds
from xpo_jax.data.records import Demonstration, Pair

REVIEWS = [{"text": f"film {i} is — good", "label": i % 2} for i in range(12)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def reviews(data_dir):
  splits = {"train": REVIEWS, "test": REVIEWS[:2]}
  return tfds.build(
    "reviews",
    splits,
    tfds.LABELLED_TEXT,
    source_sha256="aa" * 32,
    data_dir=data_dir,
  )


def test_labelled_text_round_trips_in_order(reviews):
  reading = sources.Reading(prompt_words=2)
  loaded = tfds.read_directory(reviews, "train", reading)
  assert loaded.records[0] == Demonstration("reviews/train:1", "film 0", " is — good")
  assert [row.prompt for row in loaded.records] == [f"film {i}" for i in range(12)]
  assert not loaded.bad
  part = tfds.read_directory(reviews, "train[:3]", reading)
  assert len(part.records) == 3


def test_pairs_round_trip_and_a_changed_source_is_rebuilt(data_dir):
  def build(chosen, sha256):
    row = {"prompt": "p", "chosen": chosen, "rejected": " b"}
    path = tfds.build(
      "prefs", {"train": [row]}, tfds.PAIR, source_sha256=sha256, data_dir=data_dir
    )
    return tfds.read_directory(path, "train").records

  assert build(" a", "01" * 32) == (Pair("prefs/train:1", "p", " a", " b"),)
  assert build(" new", "02" * 32) == (Pair("prefs/train:1", "p", " new", " b"),)


def test_missing_directory_or_split_raises(reviews, data_dir):
  with pytest.raises(FileNotFoundError, match=r"no dataset_info\.json"):
    tfds.read_directory(data_dir, "train")
  with pytest.raises(ValueError, match="no split 'dev'; it has test, train"):
    tfds.read_directory(reviews, "dev")


@pytest.mark.parametrize(
  ("name", "rows", "message"),
  [("My Data", {"train": REVIEWS}, "snake_case"), ("data", {"train": []}, "no rows")],
)
def test_invalid_build_raises(tmp_path, name, rows, message):
  with pytest.raises(ValueError, match=message):
    tfds.build(
      name, rows, tfds.LABELLED_TEXT, source_sha256="a" * 64, data_dir=tmp_path
    )
