"""A model and data of any source from one line: the flags of a command load both.

Families are stand-ins of random weights; the hub is a cache folder laid out as its own.
"""

import pyarrow as pa
import pyarrow.parquet
import pytest

from tests import hub_cache, tiny_policy
from tests.models import gguf_file_test
from xpo_jax.config import experiment as experiments
from xpo_jax.models import gguf_file, hf_checkpoint
from xpo_jax.studies import objective_recipe
from xpo_jax.train import loading
from xpo_jax.types import Layout

REPLIES = [[{"role": "assistant", "content": text}] for text in ("blue", "red")]
ASKED = [{"role": "user", "content": "how is the sky?"}]


def _loaded(name, words, folder):
  made = objective_recipe.experiment(name, words.split(), f"xpo train {name}")
  source = made.data.source
  loaded = loading.load(source, source, {}, folder)
  return made, loaded, loading.start(made, folder, loaded)


@pytest.fixture
def here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  return tmp_path


def test_dpo_with_adapters_on_a_model_and_pairs_of_the_hub(here, monkeypatch):
  cache = hub_cache.use(here / "hub", monkeypatch)
  model = hub_cache.repository(cache, "model", "Qwen/Qwen2.5-0.5B-Instruct")
  tiny_policy.write_family(model, "qwen2")
  data = hub_cache.repository(cache, "dataset", "HuggingFaceH4/ultrafeedback_binarized")
  (data / "data").mkdir()
  # A prompt beside whole conversations, as in that data set.
  chosen, rejected = (ASKED + reply for reply in REPLIES)
  row = {"prompt": ASKED[0]["content"], "chosen": chosen, "rejected": rejected}
  row |= {"messages": chosen, "score_chosen": 8.0, "score_rejected": 4.0}
  for split in ("train_prefs", "test_prefs", "train_sft"):
    path = data / "data" / f"{split}-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist([row] * 4), path)
  (data / "README.md").write_text(
    "---\nconfigs:\n- config_name: default\n  data_files:\n"
    + "".join(
      f"  - split: {split}\n    path: data/{split}-*\n"
      for split in ("train_prefs", "test_prefs", "train_sft")
    )
    + "---\n"
  )
  words = (
    "--model hub:Qwen/Qwen2.5-0.5B-Instruct --adapter.rank 16 "
    "--data hub:HuggingFaceH4/ultrafeedback_binarized"
  )
  with pytest.raises(
    ValueError, match=r"no split 'train'; .*train_prefs.*--data.split"
  ):
    _loaded("dpo", f"{words} --data.split train", here)
  # Without a flag, the split of the kind that the objective learns from.
  made, loaded, start = _loaded("dpo", words, here)
  assert loaded.name == "HuggingFaceH4/ultrafeedback_binarized/train_prefs"
  assert made.data.split == "train|train_prefs"
  assert made.adapter.rank == 16 and start.config.qkv_bias
  assert [record.chosen[-1].content for record in loaded.records] == ["blue"] * 4


def test_simpo_on_a_directory_and_a_parquet_file(here):
  tiny_policy.write_family(here / "gemma-3-1b-it", "gemma3")
  row = {"prompt": ASKED, "chosen": REPLIES[0], "rejected": REPLIES[1]}
  pyarrow.parquet.write_table(pa.Table.from_pylist([row] * 3), here / "pairs.parquet")
  words = "--model ./gemma-3-1b-it --data pairs.parquet --objective.beta 2"
  made, loaded, start = _loaded("simpo", words, here)
  assert made.objective.build().hparams["beta"] == 2
  assert start.config == hf_checkpoint.read_config(here / "gemma-3-1b-it")
  assert start.config.windows != (None,) * start.config.layers
  assert len(loaded.records) == 3


def test_grpo_on_prompts_and_a_reward_function(here):
  tiny_policy.write_family(here / "qwen3-0.6b", "qwen3")
  hub_cache.jsonl(
    here / "maths.jsonl", *({"prompt": f"{n} + 1 is", "answer": n} for n in (1, 2))
  )
  (here / "my_rewards.py").write_text(
    "def exact_answer(completions, answer):\n"
    "  return [float(t == a) for t, a in zip(completions, answer, strict=True)]\n"
  )
  words = "--model ./qwen3-0.6b --prompts maths.jsonl --reward my_rewards:exact_answer"
  made, loaded, start = _loaded("grpo", words, here)
  assert isinstance(made.data, experiments.Rollouts) and start.config.qk_norm
  assert made.data.title == "samples for maths.jsonl, by named(my_rewards:exact_answer)"
  assert [record.columns["answer"] for record in loaded.records] == [1, 2]


def test_sft_on_a_gguf_file_and_chats(here, monkeypatch):
  tokenizer = hf_checkpoint.load(
    tiny_policy.write_family(here / "llama", "llama")
  ).tokenizer
  content = gguf_file_test.content_of(tokenizer, here / "llama")
  monkeypatch.setattr(gguf_file, "_read", lambda path: content)
  monkeypatch.setenv("XPO_CACHE", str(here / "cache"))
  (here / "smollm2.gguf").write_bytes(b"GGUF")
  hub_cache.jsonl(here / "chats.jsonl", {"messages": ASKED + REPLIES[0]})
  words = "--model smollm2.gguf --data chats.jsonl"
  made, loaded, start = _loaded("sft", words, here)
  assert made.objective.build().layout is Layout.DEMO
  assert start.tokenizer.chat_template == "{{ messages }}"
  assert len(loaded.records) == 1
