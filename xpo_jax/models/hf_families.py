"""The model families: how their configs of transformers read as `Config` and back.

A family is a row of `FAMILIES`: its switches are named here and nowhere else, the
decoder knows switches only.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import transformers

from xpo_jax.models import hf_weights
from xpo_jax.models.config import (
  Activation,
  ClampedSwiglu,
  Config,
  Experts,
  Llama3Scaling,
  Norm,
  QKNorm,
  Rotary,
  YarnScaling,
)

_ACTIVATIONS = {
  "silu": Activation.SILU,
  "swish": Activation.SILU,
  "gelu": Activation.GELU,
  "gelu_new": Activation.GELU_TANH,
  "gelu_pytorch_tanh": Activation.GELU_TANH,
}
_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")
_SLIDING, _FULL = "sliding_attention", "full_attention"  # of `layer_types`

# transformers' defaults are ids of the original tokenizers; `save` writes the actual
# ones.
_NO_SPECIAL = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


class ModelFamily(NamedTuple):
  """A model family.

  Attributes:
    read: converts a transformers config to `Config`.
    write: converts `Config` to a transformers config; the family supports a config iff
      reading it back gives the same config.
    entries: lists the weights of a `Config`.
    prefix: of the weights below the head; base-model checkpoints lack it.
    buffers: pattern of tensors in checkpoints that are no weights of the decoder.
    wrapper: what the names of the decoder's weights have more where it is a part of a
      larger model.
    classifies: whether transformers has the class of a reward model,
      `*ForSequenceClassification`.
  """

  read: Callable[[Any], Config]
  write: Callable[[Config], Any]
  entries: Callable[[Config], Iterator[hf_weights.WeightEntry]] = hf_weights.llama
  prefix: str = "model."
  buffers: str = r".*\.rotary_emb\.inv_freq"
  wrapper: str = ""
  classifies: bool = True


# --- Parts of configs


def _activation(name: str) -> Activation:
  if name not in _ACTIVATIONS:
    raise ValueError(
      f"the config's activation is {name!r}; supported: {sorted(_ACTIVATIONS)}"
    )
  return _ACTIVATIONS[name]


def _require(hf: Any, **expected: Any) -> None:
  """Raises on a config value that this decoder does not support; None is a default."""
  values = hf.to_dict()
  for name, value in expected.items():
    if values.get(name) not in (None, value):
      raise ValueError(
        f"config.json: {name} is {values[name]!r}; supported for "
        f"{hf.model_type}: {value!r}"
      )


def _rotary(hf: Any, rope: dict[str, Any], fraction: float = 1.0) -> Rotary:
  # transformers converts v4's rope_theta and rope_scaling to rope_parameters.
  kind = rope.get("rope_type", "default")
  if kind not in _ROPE_TYPES:
    raise ValueError(f"config.json: rope_type is {kind!r}; supported: {_ROPE_TYPES}")
  scaling: dict[str, Any] = {}
  if kind in ("linear", "dynamic"):
    scaling[kind] = float(rope["factor"])
  original = rope.get("original_max_position_embeddings") or hf.max_position_embeddings
  if kind == "llama3":
    scaling["llama3"] = Llama3Scaling(
      factor=rope["factor"],
      low_freq_factor=rope["low_freq_factor"],
      high_freq_factor=rope["high_freq_factor"],
      original_positions=original,
    )
  if kind == "yarn":
    factor = rope.get("factor") or hf.max_position_embeddings / original
    scaling["yarn"] = YarnScaling(
      factor=float(factor),
      original_positions=original,
      beta_fast=float(rope.get("beta_fast") or 32),
      beta_slow=float(rope.get("beta_slow") or 1),
      attention_factor=_attention_factor(rope, factor),
      truncate=rope.get("truncate", True),
    )
  return Rotary(
    rope["rope_theta"], rope.get("partial_rotary_factor", fraction), **scaling
  )


def _attention_factor(rope: dict[str, Any], factor: float) -> float:
  """YaRN's factor of cosines and sines, as transformers derives it."""
  if rope.get("attention_factor") is not None:
    return float(rope["attention_factor"])

  def scale(weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

  numerator, denominator = rope.get("mscale"), rope.get("mscale_all_dim")
  if numerator and denominator:
    return scale(numerator) / scale(denominator)
  return scale(1.0)


def _rope_parameters(rotary: Rotary | None) -> dict[str, Any]:
  rotary = rotary or Rotary()
  rope: dict[str, Any] = {"rope_type": "default", "rope_theta": rotary.theta}
  if rotary.fraction != 1:
    rope["partial_rotary_factor"] = rotary.fraction
  if rotary.linear != 1:
    rope |= {"rope_type": "linear", "factor": rotary.linear}
  if rotary.dynamic is not None:
    rope |= {"rope_type": "dynamic", "factor": rotary.dynamic}
  if rotary.llama3 is not None:
    rope |= {
      "rope_type": "llama3",
      "factor": rotary.llama3.factor,
      "low_freq_factor": rotary.llama3.low_freq_factor,
      "high_freq_factor": rotary.llama3.high_freq_factor,
      "original_max_position_embeddings": rotary.llama3.original_positions,
    }
  if rotary.yarn is not None:
    rope |= {
      "rope_type": "yarn",
      "factor": rotary.yarn.factor,
      "beta_fast": rotary.yarn.beta_fast,
      "beta_slow": rotary.yarn.beta_slow,
      "attention_factor": rotary.yarn.attention_factor,
      "truncate": rotary.yarn.truncate,
      "original_max_position_embeddings": rotary.yarn.original_positions,
    }
  return rope


def _layered_rope(config: Config) -> dict[str, Any]:
  local = config.local_rotary or config.rotary
  return {_FULL: _rope_parameters(config.rotary), _SLIDING: _rope_parameters(local)}


def _windows(hf: Any) -> tuple[int, ...]:
  kinds = getattr(hf, "layer_types", None) or [_SLIDING] * hf.num_hidden_layers
  unknown = sorted(set(kinds) - {_SLIDING, _FULL})
  if unknown:
    raise ValueError(
      f"config.json: layer_types has {unknown[0]!r}; supported: {_SLIDING!r}, {_FULL!r}"
    )
  windows = tuple((hf.sliding_window or 0) if kind == _SLIDING else 0 for kind in kinds)
  return windows if any(windows) else ()


def _window_fields(config: Config) -> dict[str, Any]:
  windows = config.windows or (0,) * config.layers
  return {
    "sliding_window": max(windows) or None,
    "layer_types": [_SLIDING if window else _FULL for window in windows],
  }


def _attention_scale(hf: Any, scale: float) -> float | None:
  return None if scale == _head_dim(hf) ** -0.5 else float(scale)


def _query_scalar(config: Config) -> float:
  """Gemma's query_pre_attn_scalar, whose inverse square root is the scale."""
  if config.attention_scale is None:
    return config.head_dim
  scalar = config.attention_scale**-2
  whole = round(scalar)
  return whole if whole**-0.5 == config.attention_scale else scalar


def _head_dim(hf: Any) -> int:
  return getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads


# --- Llama and the families that share its fields


# Those that only some of the families have; their models ignore the others.
_LLAMA_FIELDS = ("head_dim", "attention_bias", "mlp_bias")


def _read_llama(hf: Any, own: Sequence[str], **switches: Any) -> Config:
  bias = hf.attention_bias if "attention_bias" in own else False
  fields = {
    "vocab": hf.vocab_size,
    "width": hf.hidden_size,
    "layers": hf.num_hidden_layers,
    "heads": hf.num_attention_heads,
    "kv_heads": hf.num_key_value_heads,
    "head_dim": _head_dim(hf),
    "mlp_width": hf.intermediate_size,
    "positions": hf.max_position_embeddings,
    "norm_eps": hf.rms_norm_eps,
    "qkv_bias": bias,
    "output_bias": bias,
    "mlp_bias": hf.mlp_bias if "mlp_bias" in own else False,
    "tied": hf.tie_word_embeddings,
  }
  if "rotary" not in switches:
    fields["rotary"] = _rotary(hf, hf.rope_parameters)
  if "activation" not in switches:
    fields["activation"] = _activation(hf.hidden_act)
  config = Config(**fields | switches)
  fraction = config.rotary.fraction
  if fraction != 1 and "partial_rotary_factor" not in own:
    raise ValueError(
      f"config.json: partial_rotary_factor is {fraction}; supported for "
      f"{hf.model_type}: 1.0"
    )
  return config


def _write_llama(hf: type, own: Sequence[str], config: Config, **fields: Any) -> Any:
  common = {
    "vocab_size": config.vocab,
    "hidden_size": config.width,
    "intermediate_size": config.mlp_width,
    "num_hidden_layers": config.layers,
    "num_attention_heads": config.heads,
    "num_key_value_heads": config.kv_heads,
    "max_position_embeddings": config.positions,
    "rms_norm_eps": config.norm_eps,
    "tie_word_embeddings": config.tied,
    "architectures": [hf.__name__.replace("Config", "ForCausalLM")],
  }
  if "head_dim" in own or config.head_dim * config.heads != config.width:
    common["head_dim"] = config.head_dim  # which all models of transformers read
  if "rope_parameters" not in fields:
    common["rope_parameters"] = _rope_parameters(config.rotary)
  if "hidden_activation" not in fields:
    common["hidden_act"] = config.activation.value
  biases = {"attention_bias": config.output_bias, "mlp_bias": config.mlp_bias}
  common |= {name: present for name, present in biases.items() if name in own}
  return hf(**_NO_SPECIAL | common | fields)


def _like_llama(
  hf: type,
  read: Callable[[Any], dict[str, Any]] = lambda hf: {},
  write: Callable[[Config], dict[str, Any]] = lambda config: {},
  *,
  own: Sequence[str] = (),
  entries: Callable = hf_weights.llama,
) -> ModelFamily:
  """A family with Llama's fields and others.

  Args:
    hf: its config class.
    read: the switches of `Config` that its config sets.
    write: its fields that Llama has not, or has of another value.
    own: those of `_LLAMA_FIELDS` that it has, and `partial_rotary_factor`.
    entries: lists its weights.
  """
  return ModelFamily(
    read=lambda config: _read_llama(config, own, **read(config)),
    write=lambda config: _write_llama(hf, own, config, **write(config)),
    entries=entries,
  )


def _read_windows(hf: Any) -> dict[str, Any]:
  return {"windows": _windows(hf)}


def _read_qwen2(hf: Any) -> dict[str, Any]:
  return {"qkv_bias": True, "windows": _windows(hf)}


def _read_qwen3(hf: Any) -> dict[str, Any]:
  return {"qk_norm": QKNorm.HEAD, "windows": _windows(hf)}


def _write_qwen(config: Config) -> dict[str, Any]:
  return _window_fields(config) | {"use_sliding_window": bool(config.windows)}


def _read_gemma(hf: Any, activation: str | None = None, **switches: Any):
  _require(hf, use_bidirectional_attention=False)
  return {
    "norm": Norm.RMS_OFFSET,
    "embedding_scale": hf.hidden_size**0.5,
    "activation": _activation(activation or hf.hidden_act),
  } | switches


def _write_gemma(config: Config) -> dict[str, Any]:
  return {"hidden_act": _gelu(config)}


def _read_gemma2(hf: Any, **switches: Any) -> dict[str, Any]:
  return _read_gemma(
    hf,
    hf.hidden_activation,
    post_norm=True,
    windows=_windows(hf),
    attention_scale=_attention_scale(hf, hf.query_pre_attn_scalar**-0.5),
    attention_softcap=hf.attn_logit_softcapping,
    logit_softcap=hf.final_logit_softcapping,
    **switches,
  )


def _write_gemma2(config: Config) -> dict[str, Any]:
  return _window_fields(config) | {
    "hidden_activation": _gelu(config),
    "query_pre_attn_scalar": _query_scalar(config),
    "attn_logit_softcapping": config.attention_softcap,
    "final_logit_softcapping": config.logit_softcap,
  }


def _gelu(config: Config) -> str:
  """The name that Gemma's other readers expect."""
  gelu_tanh = config.activation is Activation.GELU_TANH
  return "gelu_pytorch_tanh" if gelu_tanh else config.activation.value


def _layered_rotary(hf: Any) -> dict[str, Any]:
  """The rotary embeddings of layers without a window, and with one."""
  rope = hf.rope_parameters
  if _FULL not in rope:  # OLMo 3 in early versions: scaled where there is no window
    rope = {_FULL: rope, _SLIDING: {"rope_theta": rope["rope_theta"]}}
  rotary, local = (_rotary(hf, rope[kind]) for kind in (_FULL, _SLIDING))
  distinct = bool(_windows(hf)) and local != rotary
  return {"rotary": rotary, "local_rotary": local if distinct else None}


def _read_gemma3(hf: Any) -> Config:
  hf = getattr(hf, "text_config", hf)  # of a model that reads images too
  _require(hf, attn_logit_softcapping=None)  # Gemma 3 has the field, and no such cap
  switches = _read_gemma2(hf, qk_norm=QKNorm.HEAD, **_layered_rotary(hf))
  return _read_llama(hf, _LLAMA_FIELDS[:2], **switches)


def _write_gemma3(config: Config) -> Any:
  return _write_llama(
    transformers.Gemma3TextConfig,
    _LLAMA_FIELDS[:2],
    config,
    **_write_gemma2(config),
    rope_parameters=_layered_rope(config),
    architectures=["Gemma3ForCausalLM"],
  )


def _read_olmo2(hf: Any, **switches: Any) -> dict[str, Any]:
  return {"pre_norm": False, "post_norm": True, "qk_norm": QKNorm.WIDTH} | switches


def _read_olmo3(hf: Any) -> dict[str, Any]:
  return _read_olmo2(hf, windows=_windows(hf), **_layered_rotary(hf))


def _write_olmo3(config: Config) -> dict[str, Any]:
  return _window_fields(config) | {"rope_parameters": _layered_rope(config)}


def _read_smollm3(hf: Any) -> dict[str, Any]:
  rotated = tuple(map(bool, hf.no_rope_layers[: hf.num_hidden_layers]))
  return {"rotated": () if all(rotated) else rotated, "windows": _windows(hf)}


def _write_smollm3(config: Config) -> dict[str, Any]:
  rotated = config.rotated or (True,) * config.layers
  return _write_qwen(config) | {"no_rope_layers": list(map(int, rotated))}


def _sliding_window(config: Config) -> dict[str, Any]:
  return {"sliding_window": max(config.windows, default=None)}


def _read_granite(hf: Any) -> dict[str, Any]:
  return {
    "attention_scale": _attention_scale(hf, hf.attention_multiplier),
    "embedding_scale": float(hf.embedding_multiplier),
    "residual_scale": float(hf.residual_multiplier),
    "logit_divisor": float(hf.logits_scaling),
  }


def _write_granite(config: Config) -> dict[str, Any]:
  return {
    "attention_multiplier": config.attention_scale or config.head_dim**-0.5,
    "embedding_multiplier": config.embedding_scale,
    "residual_multiplier": config.residual_scale,
    "logits_scaling": config.logit_divisor,
  }


# --- Mixtures of experts


_ONE = Experts(1, 1)  # of a config without experts, which reads back as another


def _read_experts(hf: Any, normalised: bool, **switches: Any) -> dict[str, Any]:
  # Either name, by the version of transformers that wrote the config.
  count = hf.to_dict().get("num_local_experts") or hf.num_experts
  return {
    "experts": Experts(count, hf.num_experts_per_tok, normalised),
    "router_loss": hf.output_router_logits,
    "router_loss_coef": hf.router_aux_loss_coef,
    "windows": _windows(hf),
  } | switches


def _write_experts(config: Config, count: str = "num_local_experts") -> dict[str, Any]:
  experts = config.experts or _ONE
  return {
    count: experts.count,
    "num_experts_per_tok": experts.active,
    "output_router_logits": config.router_loss,
    "router_aux_loss_coef": config.router_loss_coef,
  }


def _read_mixtral(hf: Any) -> dict[str, Any]:
  _require(hf, router_jitter_noise=0.0)
  return _read_experts(hf, normalised=True)


def _write_mixtral(config: Config) -> dict[str, Any]:
  return _write_experts(config) | _sliding_window(config)


def _read_qwen3_moe(hf: Any) -> dict[str, Any]:
  if hf.decoder_sparse_step != 1 or hf.mlp_only_layers:
    raise ValueError(
      f"config.json: decoder_sparse_step is {hf.decoder_sparse_step} and "
      f"mlp_only_layers {hf.mlp_only_layers}: layers with one MLP, which has other "
      "shapes than the experts, are not supported between layers of experts, which are "
      "one stack; supported for qwen3_moe: 1 and []"
    )
  return _read_experts(
    hf,
    normalised=hf.norm_topk_prob,
    qk_norm=QKNorm.HEAD,
    mlp_width=hf.moe_intermediate_size,
  )


def _write_qwen3_moe(config: Config) -> dict[str, Any]:
  return (
    _write_experts(config, "num_experts")
    | _sliding_window(config)
    | {
      "use_sliding_window": bool(config.windows),
      "moe_intermediate_size": config.mlp_width,
      "norm_topk_prob": (config.experts or _ONE).normalised,
    }
  )


def _read_gpt_oss(hf: Any) -> dict[str, Any]:
  names = {"alpha": "swiglu_alpha", "limit": "swiglu_limit"}  # fixed in early versions
  given = {ours: hf.to_dict().get(name) for ours, name in names.items()}
  return _read_experts(
    hf,
    normalised=True,
    swiglu=ClampedSwiglu(**{k: x for k, x in given.items() if x is not None}),
    attention_sink=True,
    mlp_bias=True,
  )


def _write_gpt_oss(config: Config) -> dict[str, Any]:
  swiglu = config.swiglu or ClampedSwiglu()
  return (
    _write_experts(config)
    | _window_fields(config)
    | {"swiglu_alpha": swiglu.alpha, "swiglu_limit": swiglu.limit}
  )


# --- GPT-NeoX and GPT-2


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
    rotary=_rotary(hf, hf.rope_parameters, fraction=0.25),
    qkv_bias=hf.attention_bias,
    output_bias=hf.attention_bias,
    mlp_bias=True,
    parallel_residual=hf.use_parallel_residual,
    tied=hf.tie_word_embeddings,
  )


def _write_gpt_neox(config: Config) -> Any:
  rope = _rope_parameters(config.rotary)
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


_GEMMA3 = ModelFamily(_read_gemma3, _write_gemma3)

# model_type -> family; a config that several support is exported as the first of them,
# unless `Config.family` names another.
FAMILIES = {
  "llama": _like_llama(transformers.LlamaConfig, own=_LLAMA_FIELDS),
  "mistral": _like_llama(
    transformers.MistralConfig, _read_windows, _sliding_window, own=("head_dim",)
  ),
  "qwen2": _like_llama(transformers.Qwen2Config, _read_qwen2, _write_qwen),
  "qwen3": _like_llama(
    transformers.Qwen3Config, _read_qwen3, _write_qwen, own=_LLAMA_FIELDS[:2]
  ),
  "gemma": _like_llama(
    transformers.GemmaConfig, _read_gemma, _write_gemma, own=_LLAMA_FIELDS[:2]
  ),
  "gemma2": _like_llama(
    transformers.Gemma2Config, _read_gemma2, _write_gemma2, own=_LLAMA_FIELDS[:2]
  ),
  "gemma3_text": _GEMMA3,
  "gemma3": _GEMMA3._replace(
    buffers=r"(model\.)?(vision_tower|multi_modal_projector)\..*",
    wrapper="language_model.",
  ),
  "olmo2": _like_llama(transformers.Olmo2Config, _read_olmo2, own=("attention_bias",)),
  "olmo3": _like_llama(
    transformers.Olmo3Config, _read_olmo3, _write_olmo3, own=("attention_bias",)
  ),
  "smollm3": _like_llama(
    transformers.SmolLM3Config, _read_smollm3, _write_smollm3, own=_LLAMA_FIELDS[1:]
  ),
  "phi3": _like_llama(
    transformers.Phi3Config,
    _read_windows,
    _sliding_window,
    own=("partial_rotary_factor",),
    entries=hf_weights.phi3,
  ),
  "granite": _like_llama(
    transformers.GraniteConfig, _read_granite, _write_granite, own=_LLAMA_FIELDS[1:]
  )._replace(classifies=False),
  "mixtral": _like_llama(
    transformers.MixtralConfig,
    _read_mixtral,
    _write_mixtral,
    own=("head_dim",),
    entries=hf_weights.mixtral,
  ),
  "qwen3_moe": _like_llama(
    transformers.Qwen3MoeConfig,
    _read_qwen3_moe,
    _write_qwen3_moe,
    own=_LLAMA_FIELDS[:2],
    entries=hf_weights.qwen3_moe,
  ),
  "gpt_oss": _like_llama(
    transformers.GptOssConfig,
    _read_gpt_oss,
    _write_gpt_oss,
    own=_LLAMA_FIELDS[:2],
    entries=hf_weights.gpt_oss,
  ),
  "gpt_neox": ModelFamily(
    _read_gpt_neox,
    _write_gpt_neox,
    hf_weights.gpt_neox,
    "gpt_neox.",
    r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
  ),
  "gpt2": ModelFamily(
    _read_gpt2,
    _write_gpt2,
    hf_weights.gpt2,
    "transformer.",
    r".*\bh\.\d+\.attn\.(bias|masked_bias)",
  ),
}
