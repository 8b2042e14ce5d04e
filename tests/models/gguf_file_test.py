"""GGUF files become the directories that they were made of."""

import json
import sys

import jax
import numpy as np
import pytest
import transformers

from tests.models.hf_checkpoint_test import FIXTURES
from xpo_jax.data import synthetic_reviews
from xpo_jax.models import gguf_file, hf_checkpoint, weights_source

TEXTS = ["the film is 12 minutes long", "it's\n\n  naïve <s>", "a </s> b"]


@pytest.fixture(scope="module")
def tokenizer():
  texts = [prompt + text for prompt, text in synthetic_reviews.generate(60, 0)]
  return synthetic_reviews.train_bpe(texts, 300)


def _interleaved(tensor, heads):
  """The rows of each head as llama.cpp's converter stores them: pairs side by side."""
  rows, columns = tensor.shape
  halves = tensor.reshape(heads, 2, rows // heads // 2, columns)
  return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(rows, columns)


def content_of(tokenizer, directory=FIXTURES / "llama"):
  """Metadata and tensors of a Llama directory as a GGUF file has them."""
  about = json.loads((directory / "config.json").read_text())
  tensors = {}
  names = {hf: ours for ours, hf in gguf_file._NAMES.items()}
  for file in directory.glob("*.safetensors"):
    with hf_checkpoint.safe_open(file, "numpy") as stored:
      for name in stored.keys():
        parts = name.removesuffix(".weight").split(".")
        layer = int(parts[2]) if parts[1:2] == ["layers"] else None
        rest = ".".join(parts if layer is None else parts[3:])
        tensor = stored.get_tensor(name).astype(np.float32)
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
        part = names[rest]
        if part in heads:
          tensor = _interleaved(tensor, about[heads[part]])
        prefix = "" if layer is None else f"blk.{layer}."
        tensors[f"{prefix}{part}.weight"] = tensor
  vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
  vocabulary = vocabulary[: about["vocab_size"]]
  first, second = vocabulary[40:42]
  vocabulary[-1] = first + second
  special = set(tokenizer.all_special_tokens)
  fields = {
    "general.architecture": "llama",
    "llama.embedding_length": about["hidden_size"],
    "llama.block_count": about["num_hidden_layers"],
    "llama.attention.head_count": about["num_attention_heads"],
    "llama.attention.head_count_kv": about["num_key_value_heads"],
    "llama.feed_forward_length": about["intermediate_size"],
    "llama.context_length": about["max_position_embeddings"],
    "llama.attention.layer_norm_rms_epsilon": about["rms_norm_eps"],
    "llama.rope.freq_base": about["rope_parameters"]["rope_theta"],
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": vocabulary,
    "tokenizer.ggml.token_type": [3 if x in special else 1 for x in vocabulary],
    "tokenizer.ggml.merges": [f"{first} {second}"],
    "tokenizer.ggml.bos_token_id": tokenizer.eos_token_id,
    "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "{{ messages }}",
  }
  return fields, tensors


@pytest.fixture
def content(tokenizer):
  return content_of(tokenizer)


def test_weights_and_config_are_those_it_was_made_of(content, tmp_path):
  gguf_file.write(tmp_path / "made", *content, "tiny.gguf")
  made = hf_checkpoint.load(tmp_path / "made")
  expected = hf_checkpoint.load(FIXTURES / "llama")
  assert made.config == expected.config
  jax.tree.map(np.testing.assert_array_equal, made.params, expected.params)
  assert made.tokenizer.chat_template == "{{ messages }}"


@pytest.mark.parametrize("bos", [False, True])
def test_tokenizer_keeps_ids_special_tokens_and_bos(content, tokenizer, bos):
  fields, _ = content
  fields["tokenizer.ggml.tokens"] = sorted(
    tokenizer.get_vocab(), key=tokenizer.get_vocab().get
  )
  special = set(tokenizer.all_special_tokens)
  fields["tokenizer.ggml.token_type"] = [
    3 if token in special else 1 for token in fields["tokenizer.ggml.tokens"]
  ]
  model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
  fields["tokenizer.ggml.merges"] = [" ".join(pair) for pair in model["merges"]]
  fields["tokenizer.ggml.add_bos_token"] = bos
  made = gguf_file._tokenizer(fields, "tiny.gguf")
  for text in TEXTS:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert made(text)["input_ids"] == [made.bos_token_id] * bos + ids
    assert made.decode(ids) == text
  assert made(made.eos_token, add_special_tokens=False)["input_ids"] == [
    made.eos_token_id
  ]


def test_digits_are_single_where_the_pre_tokenizer_says_so():
  pieces = gguf_file._PRE_TOKENIZERS["smollm"]().pre_tokenize_str("in 1984")
  assert [piece for piece, _ in pieces] == ["in", "Ġ", "1", "9", "8", "4"]
  pieces = gguf_file._PRE_TOKENIZERS["llama-bpe"]().pre_tokenize_str("1984")
  assert [piece for piece, _ in pieces] == ["198", "4"]


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"general.architecture": "mamba"}, "architecture 'mamba'; of GGUF files llama"),
    ({"llama.expert_count": 8}, "mixture of 8 experts, which is not read from GGUF"),
    ({"llama.rope.scaling.type": "yarn"}, "scaled rotary frequencies"),
    ({"llama.block_count": None}, "has no llama.block_count"),
    ({"llama.rope.dimension_count": 4}, "rotates 4 of the 8 dimensions"),
    ({"tokenizer.ggml.model": "llama"}, "tokenizer of kind 'llama'"),
    ({"tokenizer.ggml.pre": "tekken"}, "pre-tokenizer 'tekken'"),
  ],
)
def test_what_is_not_known_is_refused(content, tmp_path, changes, match):
  fields, tensors = content
  with pytest.raises(ValueError, match=match):
    gguf_file.write(tmp_path / "made", fields | changes, tensors, "tiny.gguf")
  assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
  "lost", ["token_embd.weight", "tokenizer.ggml.tokens", "attention.head_count"]
)
def test_damaged_file_is_refused_in_one_line(content, tmp_path, lost):
  fields, tensors = map(dict, content)
  tensors.pop(lost, None)
  fields = {k: v for k, v in fields.items() if k != lost}
  if lost == "attention.head_count":
    key = next(key for key in fields if key.endswith(lost))
    fields[key] = [2, 2]
  with pytest.raises(ValueError, match=r"m.gguf lacks a field, or .*; the file is dam"):
    gguf_file.write(tmp_path / "out", fields, tensors, "m.gguf")
  assert not (tmp_path / "out").exists()


def test_tensor_without_a_place_is_refused(content, tmp_path):
  fields, tensors = content
  tensors["blk.0.ffn_gate_exps.weight"] = np.zeros((2, 2), np.float32)
  with pytest.raises(
    ValueError, match=r"blk.0.ffn_gate_exps.weight, which llama has no"
  ):
    gguf_file.write(tmp_path / "made", fields, tensors, "tiny.gguf")


def test_missing_package_and_missing_file_are_said(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="no such file"):
    weights_source.directory(tmp_path / "none.gguf")
  (tmp_path / "some.gguf").write_bytes(b"GGUF")
  monkeypatch.setenv("XPO_CACHE", str(tmp_path / "cache"))
  monkeypatch.setitem(sys.modules, "gguf", None)
  with pytest.raises(ValueError, match=r"pip install 'xpo_jax\[gguf\]'"):
    weights_source.directory(tmp_path / "some.gguf")


def test_file_is_converted_once_and_found_again(content, tmp_path, monkeypatch):
  (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
  monkeypatch.setenv("XPO_CACHE", str(tmp_path / "cache"))
  reads = []

  def read(path):
    reads.append(path)
    return content

  monkeypatch.setattr(gguf_file, "_read", read)
  first, again = (weights_source.directory(tmp_path / "tiny.gguf") for _ in range(2))
  assert first == again and len(reads) == 1
  (tmp_path / "tiny.gguf").write_bytes(b"GGUF of another content")
  assert weights_source.directory(tmp_path / "tiny.gguf") != first


def test_written_file_is_read(content, tmp_path, monkeypatch):
  gguf = pytest.importorskip("gguf")
  fields, tensors = content
  writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
  for name, value in fields.items():
    if name == "general.architecture":
      continue
    match value:
      case bool():
        writer.add_bool(name, value)
      case int():
        writer.add_uint32(name, value)
      case float():
        writer.add_float32(name, value)
      case str():
        writer.add_string(name, value)
      case list():
        writer.add_array(name, value)
  for name, tensor in tensors.items():
    writer.add_tensor(name, tensor)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  monkeypatch.setenv("XPO_CACHE", str(tmp_path / "cache"))
  made = hf_checkpoint.load(tmp_path / "tiny.gguf")
  expected = hf_checkpoint.load(FIXTURES / "llama")
  jax.tree.map(np.testing.assert_array_equal, made.params, expected.params)
  assert isinstance(made.tokenizer, transformers.PreTrainedTokenizerFast)
