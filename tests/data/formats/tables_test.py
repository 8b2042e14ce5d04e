"""Files of rows in every format give the same records."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from xpo_jax.config.data import Data
from xpo_jax.data import sources
from xpo_jax.data.formats import tables
from xpo_jax.data.sources import Reading
from xpo_jax.train import loading

CHAT = [{"role": "user", "content": "a"}]
PAIRS = [
  {"prompt": "sky, is", "chosen": ' "blue"\n', "rejected": " green", "n": 1},
  {"prompt": "sea is", "chosen": " blue", "rejected": " [1]", "n": 2},
]
RATED = [
  {"prompt": CHAT, "completion": [{"role": "assistant", "content": "b"}], "label": True}
]


def _write(path, rows):
  """Writes rows in the format of the suffix."""
  table = pa.Table.from_pylist(rows)
  match path.suffix:
    case ".json":
      path.write_text(json.dumps(rows))
    case ".jsonl":
      path.write_text("\n".join(map(json.dumps, rows)))
    case ".parquet":
      pa.parquet.write_table(table, path)
    case ".arrow":
      with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    case ".csv":
      cells = [
        [x if isinstance(x, str) else json.dumps(x) for x in row.values()]
        for row in rows
      ]
      lines = [list(rows[0]), *cells]
      text = "\n".join(
        ",".join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines
      )
      path.write_text(text)
  return path


def _stream(path, rows):
  table = pa.Table.from_pylist(rows)
  with pa.ipc.new_stream(path, table.schema) as writer:
    writer.write_table(table)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet", ".arrow", ".csv"])
@pytest.mark.parametrize("rows", [PAIRS, RATED], ids=["pairs", "rated"])
def test_formats_give_the_same_records(tmp_path, suffix, rows):
  path = _write(tmp_path / f"rows{suffix}", rows)
  loaded = loading.load(Data(str(path)), Data(str(path)), {})
  expected = sources.from_dicts(rows, path.name).records
  assert loaded.bad == () and loaded.records == expected


def _saved(directory, rows, files=2):
  """A directory as `save_to_disk` of the package `datasets` writes it."""
  directory.mkdir(parents=True)
  names = [f"data-{i:05d}-of-{files:05d}.arrow" for i in range(files)]
  for i, name in enumerate(names):
    _stream(directory / name, rows[i::files])
  state = {"_data_files": [{"filename": name} for name in names], "_split": None}
  (directory / "state.json").write_text(json.dumps(state))
  (directory / "dataset_info.json").write_text("{}")


def test_saved_data_set_is_read_whole(tmp_path):
  _saved(tmp_path / "pairs", PAIRS)
  path = str(tmp_path / "pairs")
  loaded = loading.load(Data(path), Data(path), {})
  assert [record.prompt for record in loaded.records] == ["sky, is", "sea is"]


def test_saved_data_sets_have_splits(tmp_path):
  (tmp_path / "all").mkdir()
  for name, rows in {"train": PAIRS, "test": PAIRS[:1]}.items():
    _saved(tmp_path / "all" / name, rows, 1)
  (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
  path = str(tmp_path / "all")
  loaded = loading.load(Data(path, split="test"), Data(path), {})
  assert len(loaded.records) == 1 and loaded.name == "all/test"
  with pytest.raises(ValueError, match="no split 'dev'; it has test, train"):
    loading.load(Data(path, split="dev"), Data(path), {})


def test_absent_keys_of_structs_stay_absent(tmp_path):
  rows = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "x": {}}]},
    {"messages": [{"role": "user", "content": "a", "x": {"y": 1}}]},
  ]
  path = _write(tmp_path / "rows.parquet", rows)
  assert next(tables.rows(path))["messages"][0] == {"role": "user", "content": "a"}


def test_renamed_columns_of_csv_hold_text(tmp_path):
  path = tmp_path / "rows.csv"
  path.write_text("question,answer\n1,2\n")
  reading = Reading(rename={"question": "prompt", "answer": "completion"})
  (record,) = tables.read(path, "train", reading).records
  assert (record.prompt, record.completion) == ("1", "2")


def test_columns_of_another_type_are_bad_rows(tmp_path):
  rows = [{"prompt": 7, "chosen": b"\xff", "rejected": " b"}]
  path = _write(tmp_path / "rows.parquet", rows)
  loaded = tables.read(path, "train")
  assert loaded.bad[0].problem == "not a text"
  assert "prompt is a int (7)" in loaded.bad[0].detail or (
    "chosen is a bytes" in loaded.bad[0].detail
  )


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".json", ".csv"])
def test_file_of_another_format_is_one_line(tmp_path, suffix):
  path = tmp_path / f"rows{suffix}"
  path.write_bytes(b'a,b\n"1,2\n' if suffix == ".csv" else b"{no")
  with pytest.raises(ValueError, match=f"cannot be read as {suffix}") as caught:
    tables.read(path, "train")
  assert "\n" not in str(caught.value)


def test_lines_in_a_json_file_are_bad_rows_each(tmp_path):
  path = tmp_path / "rows.json"
  path.write_text("\ufeff" + json.dumps(PAIRS[0]) + "\n{no\n")
  loaded = tables.read(path, "train")
  assert len(loaded.records) == 1
  assert [(one.uid, one.problem) for one in loaded.bad] == [("rows.json:2", "not JSON")]


def test_list_after_a_byte_order_mark_is_read(tmp_path):
  path = tmp_path / "rows.json"
  path.write_text("\ufeff" + json.dumps(PAIRS))
  assert len(tables.read(path, "train").records) == len(PAIRS)


def test_ragged_csv_is_refused(tmp_path):
  for text in ("a,b\n1\n", "a,b\n1,2,3\n"):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(ValueError, match="row 1 has another number of cells"):
      tables.read(tmp_path / "rows.csv", "train")


def test_unknown_suffix_is_refused(tmp_path):
  with pytest.raises(ValueError, match="known files end with"):
    next(tables.rows(tmp_path / "rows.txt"))
  with pytest.raises(ValueError, match=r"it must be a file \(.jsonl.*save_to_disk"):
    loading.load(Data("rows.txt"), Data("rows.txt"), {})
