import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import transformers
from safetensors.numpy import load_file, save_file

from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding import rules

FIXTURES = Path(__file__).parent.parent / "fixtures"
NAMES = ["llama", "llama3_scaled", "gpt_neox", "gpt2"]


@pytest.fixture(scope="module")
def checkpoints():
  return {name: hf_checkpoint.load(FIXTURES / name) for name in NAMES}


@pytest.fixture
def copy(tmp_path):
  """Copies a fixture's directory, for tests that modify it."""

  def make(name):
    return shutil.copytree(FIXTURES / name, tmp_path / name)

  return make


def edit_json(path: Path, **changes) -> None:
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(directory: Path, change) -> None:
  path = directory / "model.safetensors"
  tensors = load_file(path)
  change(tensors)
  save_file(tensors, path)


def assert_same(a, b) -> None:
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_bfloat16_file_loads_as_its_rounded_values(checkpoints, tmp_path):
  config, params, _ = checkpoints["gpt2"]
  hf_checkpoint.save(tmp_path, config, params, dtype="bfloat16")
  reloaded = hf_checkpoint.load(tmp_path, compute_dtype="bfloat16", remat="none")
  assert reloaded.config.compute_dtype == "bfloat16" and reloaded.config.remat == "none"
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(np.float32), params)
  assert_same(reloaded.params, rounded)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2"])
def test_parameters_read_onto_a_mesh_are_those_read_on_the_host(name, checkpoints):
  mesh = meshes.make_mesh(2, 2, 2)
  split = hf_checkpoint.load(FIXTURES / name, mesh=mesh)
  assert split.config == checkpoints[name].config
  axes = transformer.model(split.config).logical_axes()
  wanted = rules.param_shardings(mesh, axes, split.params["lm"])
  of = jax.tree.map(lambda x: x.sharding, split.params["lm"])
  assert of == wanted
  assert_same(jax.device_get(split.params), checkpoints[name].params)


def test_large_trees_are_fetched_and_written_by_tensor(
  checkpoints, tmp_path, monkeypatch
):
  config, params, _ = checkpoints["gpt_neox"]
  placed = jax.tree.map(jnp.asarray, params)
  hf_checkpoint.save(tmp_path / "whole", config, params, shard_bytes=20_000)
  monkeypatch.setattr(hf_checkpoint, "_FETCHED_AT_ONCE", 0)
  hf_checkpoint.save(tmp_path / "parts", config, placed, shard_bytes=20_000)
  names = sorted(path.name for path in (tmp_path / "whole").iterdir())
  assert sum(name.endswith(".safetensors") for name in names) > 2
  for name in names:
    whole, parts = ((tmp_path / x / name).read_bytes() for x in ("whole", "parts"))
    assert whole == parts, name
    if name.endswith(".safetensors"):
      tensors = load_file(tmp_path / "parts" / name)
      assert sum(x.nbytes for x in tensors.values()) <= 20_000 or len(tensors) == 1
  assert_same(hf_checkpoint.load(tmp_path / "parts").params, params)


def test_value_head_round_trips(checkpoints, tmp_path):
  config, params, _ = checkpoints["gpt2"]
  head = {"kernel_D": np.arange(32, dtype=np.float32), "bias": np.float32(0.5)}
  hf_checkpoint.save(tmp_path, config, params | {"value": head})
  assert_same(hf_checkpoint.load(tmp_path).params["value"], head)
  modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
  assert len(set(modes.values())) == 1, modes  # who may read one file may read all


def small_tokenizer() -> transformers.PreTrainedTokenizerFast:
  words = {"<s>": 0, "</s>": 1, "good": 2, "film": 3, "<sep>": 4}
  model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<s>"))
  model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=model,
    bos_token="<s>",
    eos_token="</s>",
    additional_special_tokens=["<sep>"],
    chat_template="{% for m in messages %}{{ m['content'] }}</s>{% endfor %}",
  )


def test_stop_ids_are_read_and_written_back(checkpoints, tmp_path):
  config, params, _ = checkpoints["llama"]
  config = dataclasses.replace(config, stop_ids=())
  first, second = tmp_path / "first", tmp_path / "second"
  hf_checkpoint.save(first, config, params, tokenizer=small_tokenizer())
  assert not (first / "generation_config.json").exists()
  assert hf_checkpoint.load(first).config.stop_ids == ()
  text = json.dumps({"eos_token_id": [1, 4, 10**6]})  # the last has no row
  (first / "generation_config.json").write_text(text)
  loaded = hf_checkpoint.load(first)
  assert loaded.config.stop_ids == (4,)
  hf_checkpoint.save(second, *loaded[:2], tokenizer=loaded.tokenizer)
  for name in ("config.json", "generation_config.json"):
    assert json.loads((second / name).read_text())["eos_token_id"] == [1, 4]
  (second / "generation_config.json").unlink()
  assert hf_checkpoint.load(second).config.stop_ids == (4,)  # of config.json's list


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs"),
    ("model.safetensors", None, "was cut or is damaged"),
    ("config.json", b"{", "config.json is not JSON"),
    ("config.json", b"[1]", "config.json holds no JSON object"),
    ("tokenizer.json", b'{"version"', "tokenizer.json is not JSON"),
    ("model.safetensors.index.json", b"{}", "no weight_map"),
  ],
)
def test_damaged_file_is_named_in_one_line(
  checkpoints, tmp_path, name, content, message
):
  config, params, _ = checkpoints["llama"]
  hf_checkpoint.save(tmp_path, config, params, tokenizer=small_tokenizer())
  whole = (tmp_path / name).read_bytes() if (tmp_path / name).exists() else b""
  (tmp_path / name).write_bytes(
    whole[: len(whole) // 2] if content is None else content
  )
  with pytest.raises(ValueError, match=message) as error:
    hf_checkpoint.load(tmp_path)
  assert name in str(error.value) and "\n" not in str(error.value)


def test_weight_that_is_not_finite_is_named(checkpoints, tmp_path):
  config, params, _ = checkpoints["llama"]
  damaged = jax.tree.map(np.array, params)
  damaged["lm"]["embedding"][3, 2] = np.nan
  hf_checkpoint.save(tmp_path, config, damaged)
  with pytest.raises(ValueError, match=r"weight model\.embed_tokens\.weight .* finite"):
    hf_checkpoint.load(tmp_path)


def test_tied_model_may_also_store_its_head(checkpoints, tmp_path):
  config, params, _ = checkpoints["gpt2"]
  assert config.tied
  hf_checkpoint.save(tmp_path, config, params)
  path = tmp_path / "model.safetensors"
  tensors = load_file(path)
  tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
  save_file(tensors, path)
  loaded = hf_checkpoint.load(tmp_path)
  np.testing.assert_array_equal(
    loaded.params["lm"]["embedding"], params["lm"]["embedding"]
  )
  tensors["lm_head.weight"][0, 0] += 1
  save_file(tensors, path)
  with pytest.raises(ValueError, match=r"unexpected weight lm_head\.weight"):
    hf_checkpoint.load(tmp_path)


def test_tokenizer_and_chat_template_round_trip(checkpoints, tmp_path):
  config, params, _ = checkpoints["llama"]
  hf_checkpoint.save(tmp_path, config, params, tokenizer=small_tokenizer())
  tokenizer = hf_checkpoint.load(tmp_path).tokenizer
  assert tokenizer("good film<sep>").input_ids == [2, 3, 4]
  chat = [{"role": "user", "content": "good film"}]
  assert tokenizer.apply_chat_template(chat, tokenize=False) == "good film</s>"


def test_tokenizer_that_was_loaded_is_saved_as_it_was(checkpoints, tmp_path):
  config, params, _ = checkpoints["llama"]
  first, again = tmp_path / "first", tmp_path / "again"
  hf_checkpoint.save(first, config, params, tokenizer=small_tokenizer())
  hf_checkpoint.save(
    again, config, params, tokenizer=hf_checkpoint.load(first).tokenizer
  )
  for file in first.iterdir():
    assert (again / file.name).read_bytes() == file.read_bytes(), file.name


def test_config_is_saved_for_transformers_4_too(checkpoints, tmp_path):
  # transformers 4 reads rope_theta and rope_scaling and silently falls back to
  # theta 10 000 without scaling where they are missing.
  config, params, _ = checkpoints["llama3_scaled"]
  hf_checkpoint.save(tmp_path, config, params, tokenizer=small_tokenizer())
  config_json = json.loads((tmp_path / "config.json").read_text())
  assert config_json["rope_theta"] == 500000.0
  assert config_json["rope_scaling"]["factor"] == 8.0
  assert config_json["torch_dtype"] == "float32"
  assert (config_json["bos_token_id"], config_json["eos_token_id"]) == (0, 1)
  tokenizer_json = json.loads((tmp_path / "tokenizer_config.json").read_text())
  assert tokenizer_json["tokenizer_class"] == "PreTrainedTokenizerFast"
  assert (
    "backend" not in tokenizer_json and "extra_special_tokens" not in tokenizer_json
  )


def test_transformers_4_config_loads_equally(checkpoints, copy):
  directory = copy("llama3_scaled")
  path = directory / "config.json"
  content = json.loads(path.read_text())
  rope = content.pop("rope_parameters")
  content["rope_theta"] = rope.pop("rope_theta")
  content["rope_scaling"] = rope
  path.write_text(json.dumps(content))
  assert hf_checkpoint.load(directory).config == checkpoints["llama3_scaled"].config


def test_base_model_checkpoint_with_old_buffers_loads(checkpoints, copy):
  # Like gpt2 on the hub: no prefix, no head, the causal mask stored as a buffer.
  directory = copy("gpt2")

  def change(tensors):
    for name in list(tensors):
      tensors[name.removeprefix("transformer.")] = tensors.pop(name)
    tensors["h.0.attn.bias"] = np.ones((1, 1, 24, 24), np.float32)

  edit_weights(directory, change)
  assert_same(hf_checkpoint.load(directory).params, checkpoints["gpt2"].params)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model_type": "lama"}, r"'lama': no arch.*did you mean 'llama'.*supported fam"),
    ({"model_type": None}, r"None: no architecture of transformers; supported fam"),
    # What is missing is named, not the neighbour qwen2.
    (
      {"model_type": "qwen2_moe", "num_experts": 60},
      r"'qwen2_moe': this mixture of experts is not read; supported fam.*'mixtral'",
    ),
    ({"model_type": "dbrx", "moe_num_experts": 16}, "this mixture of experts is not"),
    (
      {"model_type": "mixtral", "router_jitter_noise": 0.1},
      "router_jitter_noise is 0.1; supported for mixtral: 0.0",
    ),
    (
      {"model_type": "qwen3_moe", "mlp_only_layers": [1]},
      r"mlp_only_layers \[1\]: layers with one MLP.*for qwen3_moe: 1 and \[\]",
    ),
    (
      {"model_type": "qwen3_moe", "decoder_sparse_step": 2},
      r"decoder_sparse_step is 2 and .*supported for qwen3_moe: 1 and \[\]",
    ),
    (
      {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}},
      r"quantised by 'mxfp4'.*Mxfp4Config\(dequantize=True\)",
    ),
    ({"model_type": "t5", "is_encoder_decoder": True}, "an encoder and decoder is"),
    ({"model_type": "mamba2"}, "'mamba2': this architecture is not read; supported"),
    *(
      ({"quantization_config": {"quant_method": method}}, f"quantised by '{method}'")
      for method in ("bitsandbytes", "gptq", "awq")
    ),
    ({"hidden_act": "relu"}, r"activation is 'relu'; supported"),
    (
      {
        "rope_parameters": {
          "rope_type": "longrope",
          "rope_theta": 1e4,
          "short_factor": [1.0] * 8,
          "long_factor": [2.0] * 8,
          "original_max_position_embeddings": 32,
        }
      },
      r"rope_type is 'longrope'; supported: .*'dynamic', 'yarn'",
    ),
    (
      {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
      r"partial_rotary_factor is 0.5; supported for llama: 1.0",
    ),
    # Another family's config over these weights.
    ({"model_type": "qwen3", "attention_bias": True}, r"missing weight .*q_norm"),
    (
      {"model_type": "phi3", "rope_parameters": {"rope_theta": 1e4}},
      r"missing weight .*gate_up_proj[\s\S]*unexpected weight",
    ),
    ({"model_type": "phi3"}, "cannot read config.json: .*longrope"),
    ({"vocab_size": 97}, r"embed_tokens.weight has shape \(96, 32\).*\(97, 32\)"),
    ({"num_hidden_layers": 3}, r"missing weight model.layers.2"),
    ({"num_hidden_layers": 1}, r"unexpected weight model.layers.1"),
  ],
)
def test_unsupported_config_raises_with_the_field(copy, change, message):
  directory = copy("llama3_scaled")
  edit_json(directory / "config.json", **change)
  with pytest.raises(ValueError, match=message):
    hf_checkpoint.load(directory)


def test_unsupported_gpt2_option_raises(copy):
  directory = copy("gpt2")
  edit_json(directory / "config.json", scale_attn_by_inverse_layer_idx=True)
  with pytest.raises(ValueError, match="scale_attn_by_inverse_layer_idx is True"):
    hf_checkpoint.load(directory)


def test_wrong_weights_are_all_listed(copy):
  directory = copy("gpt_neox")

  def change(tensors):
    tensors["gpt_neox.extra"] = tensors.pop("gpt_neox.final_layer_norm.bias")
    name = "gpt_neox.layers.1.attention.query_key_value.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)

  edit_weights(directory, change)
  with pytest.raises(ValueError) as error:
    hf_checkpoint.load(directory)
  message = str(error.value)
  assert "missing weight gpt_neox.final_layer_norm.bias" in message
  assert "unexpected weight gpt_neox.extra" in message
  assert "layers.1.attention.query_key_value.weight has shape (32, 96)" in message


def test_missing_files_raise_with_their_names(copy, tmp_path):
  with pytest.raises(ValueError, match=r"nowhere/config\.json does not exist"):
    hf_checkpoint.load(tmp_path / "nowhere")
  directory = copy("llama")
  (directory / "model-00002-of-00005.safetensors").unlink()
  with pytest.raises(ValueError, match=r"do not exist: \['model-00002-of-00005"):
    hf_checkpoint.load(directory)
  (directory / "model.safetensors.index.json").unlink()
  with pytest.raises(ValueError, match="has neither"):
    hf_checkpoint.load(directory)


def test_tokenizer_larger_than_the_embedding_raises(copy):
  directory = copy("llama")
  tokenizer = small_tokenizer()
  tokenizer.add_tokens([f"word{i}" for i in range(95)])
  tokenizer.save_pretrained(directory)
  with pytest.raises(ValueError, match="tokenizer has 100 tokens, the embedding 96"):
    hf_checkpoint.load(directory)


def test_tokenizer_that_is_code_of_its_directory_is_not_run(
  copy, monkeypatch, tmp_path
):
  directory = copy("llama")
  config = {
    "tokenizer_class": "Marking",
    "auto_map": {"AutoTokenizer": [None, "marking.Marking"]},
  }
  (directory / "tokenizer_config.json").write_text(json.dumps(config))
  (directory / "marking.py").write_text(
    "from pathlib import Path\n"
    "from transformers import PreTrainedTokenizerFast\n"
    f"Path({str(tmp_path / 'mark')!r}).touch()\n"
    "class Marking(PreTrainedTokenizerFast):\n  pass\n"
  )
  monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would ask
  with pytest.raises(ValueError, match=r"is code of its own .* is never run"):
    hf_checkpoint.load(directory)
  assert not (tmp_path / "mark").exists()


def test_save_raises_on_invalid_arguments(checkpoints, tmp_path):
  config, params, _ = checkpoints["llama"]
  with pytest.raises(ValueError, match="no Hugging Face family"):
    mixed = dataclasses.replace(config, parallel_residual=True)
    hf_checkpoint.save(tmp_path, mixed, params)
  with pytest.raises(ValueError, match=r"\['head'\] has shape None"):
    incomplete = {k: v for k, v in params["lm"].items() if k != "head"}
    hf_checkpoint.save(tmp_path, config, {"lm": incomplete})
  with pytest.raises(ValueError, match="dtype is 'float16'; allowed"):
    hf_checkpoint.save(tmp_path, config, params, dtype="float16")
  hf_checkpoint.save(tmp_path / "full", config, params)
  with pytest.raises(ValueError, match="already contains weights"):
    hf_checkpoint.save(tmp_path / "full", config, params)
