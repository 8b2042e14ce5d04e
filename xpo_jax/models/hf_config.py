"""Finds the model family of a checkpoint's config.json, or of a `Config`.

`hf_families.py` holds the families, `hf_checkpoint.py` reads and writes checkpoints of
any of them.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError

from xpo_jax.models.config import Config
from xpo_jax.models.hf_families import FAMILIES, ModelFamily

# How the weights of a method are dequantised.
_DEQUANTISED = {
  "mxfp4": "load it with transformers' AutoModelForCausalLM.from_pretrained(NAME, "
  "quantization_config=Mxfp4Config(dequantize=True)) and name the directory that its "
  "save_pretrained writes",
}
# Fields of config.json with the number of experts.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def get_family(content: Mapping[str, Any]) -> ModelFamily:
  """Returns the family of a checkpoint.

  Args:
    content: of its config.json.

  Raises:
    ValueError: an architecture that is not read, or quantised weights.
  """
  model_type = content.get("model_type")
  quantisation = content.get("quantization_config")
  if quantisation:
    method = quantisation.get("quant_method")
    fix = _DEQUANTISED.get(method, "dequantise it with transformers and save that")
    raise ValueError(
      f"config.json: quantization_config: the weights are quantised by {method!r}, "
      f"which is not read; name the checkpoint that is not quantised, or {fix}"
    )
  if model_type in FAMILIES:
    return FAMILIES[model_type]
  raise ValueError(
    f"model_type is {model_type!r}: {_missing(content)}; supported families: "
    f"{sorted(FAMILIES)}"
  )


def _missing(content: Mapping[str, Any]) -> str:
  """What a decoder of these families lacks for an architecture."""
  model_type = str(content.get("model_type"))
  text = content.get("text_config") or {}
  if any((content.get(name) or text.get(name) or 1) != 1 for name in _EXPERTS):
    return "this mixture of experts is not read"
  if content.get("is_encoder_decoder"):
    return "an encoder and decoder is not read"
  if model_type in transformers.CONFIG_MAPPING:
    return "this architecture is not read"
  near = difflib.get_close_matches(model_type, FAMILIES, n=1, cutoff=0.8)
  hint = f"; did you mean {near[0]!r}?" if near else ""
  return f"no architecture of transformers{hint}"


def find_family(config: Config) -> ModelFamily:
  """Returns the family that a config is exported as.

  Raises:
    ValueError: none supports it, or `config.family` does not.
  """
  return FAMILIES[_name(config)]


def with_family(config: Config, model_type: str) -> Config:
  """Sets `Config.family` where the config alone would be exported as another one."""
  first = FAMILIES[_name(dataclasses.replace(config, family=None))]
  if FAMILIES[model_type].write is first.write:
    return config
  return dataclasses.replace(config, family=model_type)


def _name(config: Config) -> str:
  names = [config.family] if config.family is not None else list(FAMILIES)
  for name in names:
    if name in FAMILIES and _supports(FAMILIES[name], config):
      return name
  raise ValueError(
    f"no Hugging Face family of {sorted(names)} supports {config}; use one "
    "family's norm, biases, positions and head"
  )


def _supports(family: ModelFamily, config: Config) -> bool:
  """Whether a family's config holds all that a checkpoint stores of a config."""
  stored = dataclasses.replace(
    config,
    compute_dtype=Config.compute_dtype,
    remat=Config.remat,
    stop_ids=Config.stop_ids,
    family=Config.family,
  )
  try:
    return family.read(family.write(config)) == stored
  # What transformers refuses; KeyError by the checks of its first versions 5.
  except (ValueError, KeyError, StrictDataclassError):
    return False
