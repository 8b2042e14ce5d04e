from xpo_jax.data import record_file, records
from xpo_jax.data.records import Turn


def test_records_are_read_as_they_were_written(tmp_path):
  asked = (Turn("user", "how?"),)
  rows = (
    records.Prompt("a", asked, columns={"topic": "tea", "answer": {"value": 1}}),
    records.Pair("b", "x", " y", (Turn("assistant", "z"),)),
  )
  record_file.write(tmp_path / "rows.jsonl", rows)
  assert record_file.read(tmp_path / "rows.jsonl") == rows
