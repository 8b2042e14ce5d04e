"""Model families: converts configs from and to Hugging Face, names their weights.

`hf_checkpoint.py` reads and writes checkpoints of any family.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import transformers

from xpo_jax.models import hf_weights
from xpo_jax.models.config import Activation, Config, Llama3Scaling, Norm, Rotary

_ACTIVATIONS = {
  "silu": Activation.SILU,
  "swish": Activation.SILU,
  "gelu": Activation.GELU,
  "gelu_new": Activation.GELU_TANH,
  "gelu_pytorch_tanh": Activation.GELU_TANH,
}

# transformers' defaults are ids of the original tokenizers; `save` writes the actual
# ones.
_NO_SPECIAL = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


class ModelFamily(NamedTuple):
  """A model family.

  Attributes:
    prefix: of the weights below the head; base-model checkpoints lack it.
    read: converts a transformers config to `Config`.
    write: converts `Config` to a transformers config; the family supports a config iff
      reading it back gives the same config.
    entries: lists the weights of a `Config`.
    buffers: pattern of tensors in old checkpoints that are not weights.
  """

  prefix: str
  read: Callable[[Any], Config]
  write: Callable[[Config], Any]
  entries: Callable[[Config], Iterator[hf_weights.WeightEntry]]
  buffers: str


def get_family(model_type: str | None) -> ModelFamily:
  """Returns the family of a config's `model_type`."""
  if model_type in FAMILIES:
    return FAMILIES[model_type]
  near = difflib.get_close_matches(str(model_type), FAMILIES, n=1, cutoff=0.5)
  hint = f"; did you mean {near[0]!r}?" if near else ""
  raise ValueError(
    f"model_type is {model_type!r}; supported families: {sorted(FAMILIES)}{hint}"
  )


def find_family(config: Config) -> ModelFamily:
  """Returns the family that supports a config.

  Raises:
    ValueError: no family does.
  """
  for family in FAMILIES.values():
    if family.read(family.write(config)) == _saved(config):
      return family
  raise ValueError(
    f"no Hugging Face family of {sorted(FAMILIES)} supports {config}; use one "
    "family's norm, biases, positions and head"
  )


def _saved(config: Config) -> Config:
  """Resets the fields of a config that a checkpoint does not store."""
  return dataclasses.replace(
    config,
    compute_dtype=Config.compute_dtype,
    remat=Config.remat,
    stop_ids=Config.stop_ids,
  )


# --- Configs


def _activation(name: str) -> Activation:
  if name not in _ACTIVATIONS:
    raise ValueError(
      f"the config's activation is {name!r}; supported: {sorted(_ACTIVATIONS)}"
    )
  return _ACTIVATIONS[name]


def _require(hf: Any, **expected: Any) -> None:
  """Raises on a config value that this decoder does not support."""
  values = hf.to_dict()
  for name, value in expected.items():
    if values.get(name, value) != value:
      raise ValueError(
        f"config.json: {name} is {values[name]!r}; supported for "
        f"{hf.model_type}: {value!r}"
      )


def _rotary(hf: Any, fraction: float = 1.0) -> Rotary:
  # transformers converts v4's rope_theta and rope_scaling to rope_parameters.
  rope = hf.rope_parameters
  kind = rope.get("rope_type", "default")
  if kind not in ("default", "llama3"):
    raise ValueError(
      f"config.json: rope_type is {kind!r}; supported: 'default', 'llama3'"
    )
  scaling = None
  if kind == "llama3":
    scaling = Llama3Scaling(
      factor=rope["factor"],
      low_freq_factor=rope["low_freq_factor"],
      high_freq_factor=rope["high_freq_factor"],
      original_positions=rope["original_max_position_embeddings"],
    )
  return Rotary(
    rope["rope_theta"], rope.get("partial_rotary_factor", fraction), scaling
  )


def _rope_parameters(config: Config) -> dict[str, Any]:
  rotary = config.rotary or Rotary()
  scaling = rotary.llama3
  if scaling is None:
    return {"rope_type": "default", "rope_theta": rotary.theta}
  return {
    "rope_type": "llama3",
    "rope_theta": rotary.theta,
    "factor": scaling.factor,
    "low_freq_factor": scaling.low_freq_factor,
    "high_freq_factor": scaling.high_freq_factor,
    "original_max_position_embeddings": scaling.original_positions,
  }


def _read_llama(hf: Any) -> Config:
  return Config(
    vocab=hf.vocab_size,
    width=hf.hidden_size,
    layers=hf.num_hidden_layers,
    heads=hf.num_attention_heads,
    kv_heads=hf.num_key_value_heads,
    head_dim=hf.head_dim,
    mlp_width=hf.intermediate_size,
    positions=hf.max_position_embeddings,
    norm_eps=hf.rms_norm_eps,
    activation=_activation(hf.hidden_act),
    rotary=_rotary(hf),
    qkv_bias=hf.attention_bias,
    output_bias=hf.attention_bias,
    mlp_bias=hf.mlp_bias,
    tied=hf.tie_word_embeddings,
  )


def _write_llama(config: Config) -> Any:
  return transformers.LlamaConfig(
    **_NO_SPECIAL,
    vocab_size=config.vocab,
    hidden_size=config.width,
    intermediate_size=config.mlp_width,
    num_hidden_layers=config.layers,
    num_attention_heads=config.heads,
    num_key_value_heads=config.kv_heads,
    head_dim=config.head_dim,
    max_position_embeddings=config.positions,
    rms_norm_eps=config.norm_eps,
    hidden_act=config.activation.value,
    rope_parameters=_rope_parameters(config),
    attention_bias=config.qkv_bias,
    mlp_bias=config.mlp_bias,
    tie_word_embeddings=config.tied,
    architectures=["LlamaForCausalLM"],
  )


def _read_gpt_neox(hf: Any) -> Config:
  return Config(
    vocab=hf.vocab_size,
    width=hf.hidden_size,
    layers=hf.num_hidden_layers,
    heads=hf.num_attention_heads,
    kv_heads=hf.num_attention_heads,
    head_dim=hf.hidden_size // hf.num_attention_heads,
    mlp_width=hf.intermediate_size,
    positions=hf.max_position_embeddings,
    norm=Norm.LAYER,
    norm_eps=hf.layer_norm_eps,
    activation=_activation(hf.hidden_act),
    gated=False,
    rotary=_rotary(hf, fraction=0.25),
    qkv_bias=hf.attention_bias,
    output_bias=hf.attention_bias,
    mlp_bias=True,
    parallel_residual=hf.use_parallel_residual,
    tied=hf.tie_word_embeddings,
  )


def _write_gpt_neox(config: Config) -> Any:
  rope = _rope_parameters(config)
  rope["partial_rotary_factor"] = config.rotary.fraction if config.rotary else 1.0
  return transformers.GPTNeoXConfig(
    **_NO_SPECIAL,
    vocab_size=config.vocab,
    hidden_size=config.width,
    intermediate_size=config.mlp_width,
    num_hidden_layers=config.layers,
    num_attention_heads=config.heads,
    max_position_embeddings=config.positions,
    layer_norm_eps=config.norm_eps,
    hidden_act=config.activation.value,
    rope_parameters=rope,
    attention_bias=config.qkv_bias,
    use_parallel_residual=config.parallel_residual,
    tie_word_embeddings=config.tied,
    architectures=["GPTNeoXForCausalLM"],
  )


def _read_gpt2(hf: Any) -> Config:
  _require(hf, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
  _require(hf, add_cross_attention=False)
  return Config(
    vocab=hf.vocab_size,
    width=hf.n_embd,
    layers=hf.n_layer,
    heads=hf.n_head,
    kv_heads=hf.n_head,
    head_dim=hf.n_embd // hf.n_head,
    mlp_width=hf.n_inner or 4 * hf.n_embd,
    positions=hf.n_positions,
    norm=Norm.LAYER,
    norm_eps=hf.layer_norm_epsilon,
    activation=_activation(hf.activation_function),
    gated=False,
    rotary=None,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    tied=hf.tie_word_embeddings,
  )


def _write_gpt2(config: Config) -> Any:
  return transformers.GPT2Config(
    **_NO_SPECIAL,
    vocab_size=config.vocab,
    n_embd=config.width,
    n_layer=config.layers,
    n_head=config.heads,
    n_inner=config.mlp_width,
    n_positions=config.positions,
    layer_norm_epsilon=config.norm_eps,
    activation_function=config.activation.value,
    tie_word_embeddings=config.tied,
    architectures=["GPT2LMHeadModel"],
  )


FAMILIES = {
  "llama": ModelFamily(
    "model.", _read_llama, _write_llama, hf_weights.llama, r".*\.rotary_emb\.inv_freq"
  ),
  "gpt_neox": ModelFamily(
    "gpt_neox.",
    _read_gpt_neox,
    _write_gpt_neox,
    hf_weights.gpt_neox,
    r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
  ),
  "gpt2": ModelFamily(
    "transformer.",
    _read_gpt2,
    _write_gpt2,
    hf_weights.gpt2,
    r".*\bh\.\d+\.attn\.(bias|masked_bias)",
  ),
}
