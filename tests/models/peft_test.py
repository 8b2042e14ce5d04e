import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from xpo_jax.models import hf_checkpoint, hf_config, lora, peft
from xpo_jax.models.lora import Adapter

FIXTURES = Path(__file__).parent.parent / "fixtures"
NAMES = ["llama", "gpt_neox", "gpt2", "phi3", "mixtral", "qwen3_moe"]


@pytest.fixture(scope="module")
def bases():
  return {name: hf_checkpoint.load(FIXTURES / name) for name in NAMES}


def random_adapter(config, adapter):
  params = lora.init(config, adapter, jax.random.key(0))
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)


def peft_files(directory, tensors, **content):
  """An adapter as PEFT saves it."""
  directory.mkdir()
  save_file(tensors, directory / "adapter_model.safetensors")
  content = {"peft_type": "LORA", "fan_in_fan_out": False, **content}
  (directory / "adapter_config.json").write_text(json.dumps(content))
  return directory


def merged_as_peft_does(name: str, adapter: Path, directory: Path):
  """Merges an adapter into the base's tensors by PEFT's rule and loads the result."""
  shutil.copytree(FIXTURES / name, directory)
  content = json.loads((adapter / "adapter_config.json").read_text())
  pairs = load_file(adapter / "adapter_model.safetensors")
  files = sorted(directory.glob("*.safetensors"))
  tensors = {file: load_file(file) for file in files}
  for key in pairs:
    if "lora_A" not in key:
      continue
    module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
    # PEFT: a pattern matches a module whose name ends with it, after a dot.
    matching = [t for t in content["rank_pattern"] if re.match(rf".*\.{t}$", module)]
    rank, alpha = content["r"], content["lora_alpha"]
    if matching:
      rank, alpha = (content[f"{n}_pattern"][matching[0]] for n in ("rank", "alpha"))
    a, b = pairs[key], pairs[key.replace("lora_A", "lora_B")]
    assert a.shape[0] == b.shape[1] == rank
    change = alpha / rank * b @ a
    (file,) = (f for f in files if f"{module}.weight" in tensors[f])
    weight = tensors[file][f"{module}.weight"]  # of GPT-2 (inputs, outputs)
    weight = (weight.T if content["fan_in_fan_out"] else weight) + change
    if content.get("use_dora", False):
      norm = np.linalg.norm(weight, axis=1)
      magnitude = pairs[key.replace("lora_A.weight", "lora_magnitude_vector")]
      weight = (magnitude / norm)[:, None] * weight
    tensors[file][f"{module}.weight"] = (
      np.ascontiguousarray(weight.T) if content["fan_in_fan_out"] else weight
    )
  for file, content in tensors.items():
    save_file(content, file)
  return hf_checkpoint.load(directory).params["lm"]


@pytest.mark.parametrize(
  ("name", "targets", "dora"),
  [
    *((name, targets, False) for name in NAMES for targets in (".*", "query|value|up")),
    *((name, "query|value|up", True) for name in ("gpt_neox", "gpt2", "phi3")),
  ],
)
def test_saved_adapter_equals_peft_merge(bases, name, targets, dora, tmp_path):
  config, lm = bases[name].config, bases[name].params["lm"]
  adapter = Adapter(rank=2, alpha=3.0, targets=targets, dora=dora)
  params = random_adapter(config, adapter)
  peft.save(
    tmp_path / "adapter", config, adapter, params=params, base=lm, base_name="the base"
  )
  theirs = merged_as_peft_does(name, tmp_path / "adapter", tmp_path / "merged")
  ours = lora.merged(lm, params, adapter)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


def test_tensor_names_equal_pefts(bases, tmp_path):
  cases = {
    "llama": ("q_proj", "model.layers.1.self_attn.q_proj", {"self_attn.q_proj"}),
    "gpt_neox": (
      "query_key_value",
      "gpt_neox.layers.1.attention.query_key_value",
      {"attention.query_key_value"},
    ),
    "gpt2": ("c_attn", "transformer.h.1.attn.c_attn", {"attn.c_attn"}),
  }
  for name, (targets, module, suffixes) in cases.items():
    config, lm = bases[name].config, bases[name].params["lm"]
    adapter = Adapter(rank=2, targets=targets)
    directory = peft.save(
      tmp_path / name,
      config,
      adapter,
      params=random_adapter(config, adapter),
      base=lm,
      base_name="there",
    )
    tensors = load_file(directory / "adapter_model.safetensors")
    assert {f"base_model.model.{module}.lora_{x}.weight" for x in "AB"} <= set(tensors)
    assert len(tensors) == 2 * config.layers
    content = json.loads((directory / "adapter_config.json").read_text())
    assert set(content["target_modules"]) == suffixes
    assert content["peft_type"] == "LORA" and content["r"] == 2
    assert content["lora_alpha"] == 16 and content["bias"] == "none"
    assert content["base_model_name_or_path"] == "there"
    assert content["fan_in_fan_out"] == (name == "gpt2")


@pytest.mark.parametrize("name", NAMES)
def test_adapter_round_trips(bases, name, tmp_path):
  config, lm = bases[name].config, bases[name].params["lm"]
  adapter = Adapter(rank=2, alpha=3.0, targets="query|key|down", l1=0.5)
  params = random_adapter(config, adapter)
  directory = peft.save(tmp_path / "a", config, adapter, params=params, base=lm)
  loaded, loaded_params = peft.load(directory, config, lm)
  assert (loaded.rank, loaded.alpha, loaded.l1) == (2, 3.0, 0.5)
  assert set(lora.targets(config, loaded)) == {"query", "key", "down"}
  jax.tree.map(np.testing.assert_array_equal, loaded_params, params)
  with pytest.raises(ValueError, match="already contains an adapter"):
    peft.save(directory, config, adapter, params=params, base=lm)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_magnitudes_round_trip(bases, name, tmp_path):
  config, lm = bases[name].config, bases[name].params["lm"]
  adapter = Adapter(rank=2, targets="query|output|down", dora=True)
  params = jax.tree.map(lambda x: 0.1 * x, random_adapter(config, adapter))
  first = peft.save(tmp_path / "first", config, adapter, params=params, base=lm)
  form, read = peft.load(first, config, lm)
  assert form.dora
  for part, own in params["blocks"].items():
    np.testing.assert_allclose(read["blocks"][part]["m"], own["m"], atol=1e-6)
  second = peft.save(tmp_path / "second", config, form, params=read, base=lm)
  again = load_file(second / peft.WEIGHTS)
  for tensor, value in load_file(first / peft.WEIGHTS).items():
    np.testing.assert_array_equal(again[tensor], value)


@pytest.mark.parametrize("name", ["gpt_neox", "gpt2", "phi3"])
def test_peft_adapter_with_a_shared_a_loads(bases, name, tmp_path):
  config, lm = bases[name].config, bases[name].params["lm"]
  rng = np.random.default_rng(0)
  entries = hf_config.find_family(config).entries(config)
  fused = [e for e in entries if len(e.paths) == 3 and len(e.shape) == 2]
  modules = {e.name.removesuffix(".weight"): sorted(e.shape) for e in fused}
  assert len(modules) == config.layers
  tensors = {}
  for module, (inputs, outputs) in modules.items():
    shapes = {"A": (2, inputs), "B": (outputs, 2)}
    for x, shape in shapes.items():
      key = f"base_model.model.{module}.lora_{x}.weight"
      tensors[key] = rng.normal(size=shape).astype(np.float32)
  content = {"r": 2, "lora_alpha": 6, "rank_pattern": {}}
  peft_files(tmp_path / "theirs", tensors, **content, fan_in_fan_out=name == "gpt2")
  adapter, params = peft.load(tmp_path / "theirs", config, lm)
  assert adapter.scale == 3 and set(params["blocks"]) == {"query", "key", "value"}
  expected = merged_as_peft_does(name, tmp_path / "theirs", tmp_path / "merged")
  got = lora.merged(lm, params, adapter)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("only", [None, "gate_up_proj", "down_proj"])
def test_peft_adapter_on_parameters_of_experts_loads(
  bases, name, rslora, only, tmp_path
):
  config, lm = bases[name].config, bases[name].params["lm"]
  rng, E, D, F = np.random.default_rng(0), config.experts.count, 32, config.mlp_width
  # Of `lora.layer.ParamWrapper`: the later parameter's wrapper is the outer one.
  ranks = {"gate.weight": 3} | (
    {only: 3} if only else {"gate_up_proj": 6, "down_proj": 3}
  )
  inner = "mlp.experts" if only else "mlp.experts.base_layer"
  sizes = {
    "gate.weight": ("mlp.gate", 1, D, E),
    "gate_up_proj": (inner, E, D, 2 * F),
    "down_proj": ("mlp.experts", E, F, D),
  }
  tensors, change = {}, {"router": [], "gate": [], "up": [], "down": []}
  for layer in range(config.layers):
    for parameter, rank in ranks.items():
      stem, experts, inputs, outputs = sizes[parameter]
      a = rng.normal(size=(experts * rank, inputs)).astype(np.float32)
      b = rng.normal(size=(outputs, rank * experts)).astype(np.float32)
      module = f"base_model.model.model.layers.{layer}.{stem}"
      tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
      alpha = 10 if parameter == "gate_up_proj" else 5
      scale = alpha / (rank**0.5 if rslora else rank)
      by_expert = b.reshape(-1, rank, experts), a.reshape(experts, rank, -1)
      delta = scale * np.einsum("ore,eri->eio", *by_expert)
      if parameter == "gate_up_proj":
        change["gate"].append(delta[..., :F])
        change["up"].append(delta[..., F:])
      else:
        part = "router" if experts == 1 else "down"
        change[part].append(delta[0] if experts == 1 else delta)
  content = {"r": 3, "lora_alpha": 5, "use_rslora": rslora}
  content |= {"target_parameters": [*ranks], "target_modules": []}
  content["alpha_pattern"] = {r".*\.gate_up_proj": 10}
  if not only:
    content["rank_pattern"] = {r".*\.gate_up_proj": 6}
  directory = peft_files(tmp_path / "theirs", tensors, **content)
  adapter, params = peft.load(directory, config, lm)
  assert (
    adapter.rank == (3 if only else 6) and peft.read_form(directory, config) == adapter
  )
  got = lora.delta(lm, params, adapter)["blocks"]
  expected = {part: np.stack(layers) for part, layers in change.items() if layers}
  assert got.keys() == expected.keys()
  for part, value in expected.items():
    np.testing.assert_allclose(got[part]["kernel"], value, atol=1e-4)


def test_adapter_on_parameters_of_more_experts_raises(bases, tmp_path):
  config, lm = bases["mixtral"].config, bases["mixtral"].params["lm"]
  module, size = "model.layers.0.mlp.experts", 2 * 3 * config.experts.count
  tensors = {
    f"base_model.model.{module}.lora_A.weight": np.ones((size, 48), np.float32),
    f"base_model.model.{module}.lora_B.weight": np.ones((32, size), np.float32),
  }
  content = {"r": 3, "lora_alpha": 5, "target_parameters": ["down_proj"]}
  directory = peft_files(tmp_path / "a", tensors, **content)
  with pytest.raises(ValueError, match=r"experts\.lora_A.*the base no such linear"):
    peft.load(directory, config, lm)


def test_modules_of_different_ranks_and_alphas_load_as_one_form(bases, tmp_path):
  config, lm = bases["llama"].config, bases["llama"].params["lm"]
  rng, tensors = np.random.default_rng(0), {}
  for layer in range(config.layers):
    for module, rank in (("self_attn.q_proj", 2), ("mlp.down_proj", 4)):
      name = f"model.layers.{layer}.{module}"
      out, into = load_file_shape(name)
      for x, shape in (("A", (rank, into)), ("B", (out, rank))):
        value = rng.normal(size=shape).astype(np.float32)
        tensors[f"base_model.model.{name}.lora_{x}.weight"] = value
  content = {"r": 2, "lora_alpha": 6, "rank_pattern": {"down_proj": 4}}
  directory = peft_files(
    tmp_path / "theirs", tensors, **content, alpha_pattern={"down_proj": 3}
  )
  adapter, params = peft.load(directory, config, lm)
  assert (adapter.rank, adapter.alpha) == (4, 12.0)
  expected = merged_as_peft_does("llama", directory, tmp_path / "merged")
  got = lora.merged(lm, params, adapter)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)


def load_file_shape(module):
  """Outputs and inputs of a linear module of the Llama fixture."""
  for file in (FIXTURES / "llama").glob("*.safetensors"):
    if (weight := load_file(file).get(f"{module}.weight")) is not None:
      return weight.shape
  raise LookupError(module)


def test_scale_of_experts_is_kept_where_peft_fuses_gate_and_up(bases, tmp_path):
  config, lm = bases["mixtral"].config, bases["mixtral"].params["lm"]
  adapter = Adapter(rank=3, alpha=5.0, targets="w1|w3", rslora=True)
  directory = peft.save(
    tmp_path / "a", config, adapter, params=random_adapter(config, adapter), base=lm
  )
  content = json.loads((directory / "adapter_config.json").read_text())
  # PEFT adds its pattern and takes the first that matches.
  patterns = content["alpha_pattern"] | {r".*\.gate_up_proj": 2 * content["lora_alpha"]}
  fused = "model.layers.0.mlp.experts.gate_up_proj"
  alpha = next(x for t, x in patterns.items() if re.match(rf"(.*\.)?({t})$", fused))
  np.testing.assert_allclose(alpha / (2 * content["r"]) ** 0.5, adapter.scale)
  assert peft.load(directory, config, lm)[0] == dataclasses.replace(
    adapter, targets="blocks/gate|blocks/up"
  )


def test_adapter_for_another_base_raises(bases, tmp_path):
  config, lm = bases["llama"].config, bases["llama"].params["lm"]
  adapter = Adapter(rank=2)
  directory = peft.save(
    tmp_path / "a",
    config,
    adapter,
    params=random_adapter(config, adapter),
    base=lm,
    base_name="my/base",
  )
  other = lm | {"embedding": lm["embedding"] + 1}
  with pytest.raises(
    ValueError, match=r"own is 'my/base'\):\n  the base has other weights"
  ):
    peft.load(directory, config, other)
  gpt2 = bases["gpt2"]
  with pytest.raises(
    ValueError, match=r"'my/base'.*\n(.*\n)*.*the base no such linear module"
  ):
    peft.load(directory, gpt2.config, gpt2.params["lm"])
  path = directory / "adapter_model.safetensors"
  tensors = load_file(path)
  key = next(key for key in sorted(tensors) if "q_proj.lora_A" in key)
  tensors[key] = tensors[key][:, :-1].copy()
  save_file(tensors, path)
  with pytest.raises(
    ValueError, match=rf"{key} has shape \(2, \d+\), the base requires"
  ):
    peft.load(directory, config, lm)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"use_dora": True}, r"lora_magnitude_vector has shape None, .*requires \(\d+,\)"),
    ({"bias": "all"}, "bias is 'all'"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"use_qalora": True}, "use_qalora is True; supported: False.*merge_and_unload"),
    ({"alora_invocation_tokens": [5]}, r"alora_invocation_tokens is \[5\]; supported"),
    ({"init_lora_weights": "pissa"}, "'pissa', which may alter the base.*gaussian"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
    ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
  ],
)
def test_unsupported_options_raise_with_their_name(bases, tmp_path, change, message):
  config, lm = bases["llama"].config, bases["llama"].params["lm"]
  adapter = Adapter(rank=2, targets="query")
  directory = peft.save(
    tmp_path / "a", config, adapter, params=random_adapter(config, adapter), base=lm
  )
  path = directory / "adapter_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(ValueError, match=message):
    peft.load(directory, config, lm)


@pytest.mark.parametrize("value", [True, False, "gaussian"])
def test_supported_initialisations_load(bases, tmp_path, value):
  config, lm = bases["llama"].config, bases["llama"].params["lm"]
  adapter = Adapter(rank=2, targets="query")
  directory = peft.save(
    tmp_path / "a", config, adapter, params=random_adapter(config, adapter), base=lm
  )
  path = directory / "adapter_config.json"
  content = json.loads(path.read_text()) | {"init_lora_weights": value}
  path.write_text(json.dumps(content | {"alora_invocation_tokens": None}))
  assert peft.load(directory, config, lm)[0].rank == 2


def test_missing_adapter_raises(bases, tmp_path):
  config, lm = bases["llama"].config, bases["llama"].params["lm"]
  with pytest.raises(ValueError, match=r"adapter_config\.json does not exist"):
    peft.load(tmp_path, config, lm)
