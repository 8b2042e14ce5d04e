"""Converts GGUF files to Hugging Face directories, without torch.

Weights of any quantisation are read as float32. The architectures are those whose
tensors `_NAMES` names and whose config is known here; the tokenizer must be a
byte-level BPE (`gpt2`) with a pre-tokenizer of `_PRE_TOKENIZERS`. llama.cpp stores the
query and key of the architecture `llama` with the two halves of each head's rotary
pairs interleaved, which is undone.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from tokenizers import decoders, pre_tokenizers, processors

from xpo_jax.data import sealed_files
from xpo_jax.models import hf_weights

SUFFIX = ".gguf"
_CACHE = "XPO_CACHE"  # environment variable
# The part of a block or of the model: its Hugging Face name.
_NAMES = {
  "token_embd": "model.embed_tokens",
  "output_norm": "model.norm",
  "output": "lm_head",
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "attn_q_norm": "self_attn.q_norm",
  "attn_k_norm": "self_attn.k_norm",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
_MODELS = {
  "llama": "LlamaForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
}
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL, _USER_DEFINED = 3, 4  # token types


def cached(path: Path) -> Path:
  """The Hugging Face directory of a GGUF file, made once: in `$XPO_CACHE`, or
  `~/.cache/xpo_jax`.

  Raises:
    ValueError: as `convert`; no such file; the package `gguf` is not installed.
  """
  if not path.is_file():
    raise ValueError(f"{path}: no such file")
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  root = os.environ.get(_CACHE) or Path.home() / ".cache" / "xpo_jax"
  directory = Path(root) / "gguf" / f"{path.stem}-{digest[:12]}"
  if not directory.exists():
    convert(path, directory)
  return directory


def convert(path: Path, directory: Path) -> None:
  """Writes a GGUF file as a Hugging Face directory, unless that exists.

  Args:
    path: the file.
    directory: config.json, model.safetensors in float32, tokenizer.

  Raises:
    ValueError: the package `gguf` is missing; a damaged file; an architecture,
      tokenizer or feature that is not known here.
  """
  fields, tensors = _read(path)
  sealed_files.write_directory(
    directory, lambda made: write(made, fields, tensors, path.name)
  )


def write(
  directory: Path,
  fields: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  name: str,
) -> None:
  """Writes the content of a GGUF file as a Hugging Face directory.

  Args:
    directory: does not exist.
    fields: metadata by key.
    tensors: float32, by the names of llama.cpp.
    name: of the file, for messages.

  Raises:
    ValueError: as `convert`.
  """
  try:
    config = _config(fields, tensors, name)
    weights = _weights(config, tensors, name)
    tokenizer = _tokenizer(fields, name)
  except (KeyError, TypeError) as error:
    raise ValueError(
      f"{name} lacks a field, or has it in another form: {error}; the file is damaged, "
      "or of a kind that is not read: take the model as a Hugging Face directory"
    ) from error
  directory.mkdir(parents=True)
  text = json.dumps(config, indent=2, sort_keys=True)
  (directory / "config.json").write_text(text + "\n", encoding="utf-8")
  hf_weights.write_file(directory / "model.safetensors", weights)
  tokenizer.save_pretrained(directory)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Metadata and dequantised tensors of a file."""
  try:
    import gguf
  except ImportError as error:
    raise ValueError(
      f"{path.name}: reading GGUF needs the package 'gguf': pip install 'xpo_jax[gguf]'"
    ) from error
  try:
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
      tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
      for tensor in reader.tensors
    }
  except (ValueError, IndexError, KeyError, NotImplementedError, OSError) as error:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    raise ValueError(f"{path.name} cannot be read as GGUF: {reason}") from error
  return fields, tensors


def _config(
  fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray], name: str
) -> dict[str, Any]:
  kind = fields.get("general.architecture")
  if kind not in _MODELS:
    raise ValueError(
      f"{name} is of the architecture {kind!r}; of GGUF files {', '.join(_MODELS)} are "
      "read: take the model as a Hugging Face directory"
    )
  scaled = [key for key in fields if key.startswith(f"{kind}.rope.scaling.type")]
  if fields.get(f"{kind}.expert_count"):  # Mixtral's are of the architecture llama
    raise ValueError(
      f"{name} is a mixture of {fields[f'{kind}.expert_count']} experts, which is not "
      "read from GGUF; take the model as a Hugging Face directory"
    )
  if "rope_freqs.weight" in tensors or any(fields[key] != "none" for key in scaled):
    raise ValueError(
      f"{name} has scaled rotary frequencies, which are not read from GGUF; take the "
      "model as a Hugging Face directory"
    )

  def of(key: str, default: Any = None) -> Any:
    value = fields.get(f"{kind}.{key}", default)
    if value is None:
      raise ValueError(f"{name} has no {kind}.{key}: the file is damaged, or too old")
    return value

  width, heads = of("embedding_length"), of("attention.head_count")
  head_dim = of("attention.key_length", width // heads)
  rotary = of("rope.dimension_count", head_dim)
  if rotary != head_dim:
    raise ValueError(
      f"{name} rotates {rotary} of the {head_dim} dimensions of a head, which is not "
      "read from GGUF"
    )
  token = "tokenizer.ggml.{}_token_id"
  return {
    "architectures": [_MODELS[kind]],
    "model_type": kind,
    "hidden_size": width,
    "num_hidden_layers": of("block_count"),
    "num_attention_heads": heads,
    "num_key_value_heads": of("attention.head_count_kv", heads),
    "head_dim": head_dim,
    "intermediate_size": of("feed_forward_length"),
    "max_position_embeddings": of("context_length"),
    "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
    "rope_parameters": {
      "rope_type": "default",
      "rope_theta": of("rope.freq_base", 10000.0),
    },
    "vocab_size": len(tensors["token_embd.weight"]),
    "tie_word_embeddings": "output.weight" not in tensors,
    "hidden_act": "silu",
    "attention_bias": kind == "llama" and "blk.0.attn_q.bias" in tensors,
    "mlp_bias": False,
    "bos_token_id": fields.get(token.format("bos")),
    "eos_token_id": fields.get(token.format("eos")),
    "pad_token_id": fields.get(token.format("padding")),
    "dtype": "float32",
  }


def _weights(
  config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], name: str
) -> dict[str, np.ndarray]:
  """Tensors by their Hugging Face names."""
  heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
  weights = {}
  for source, tensor in tensors.items():
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", source)
    if match is None or match[2] not in _NAMES:
      raise ValueError(
        f"{name} has the tensor {source}, which {config['model_type']} has no place for"
      )
    layer, part, leaf = match.groups()
    if config["model_type"] == "llama" and part in heads:
      tensor = _in_halves(tensor, config[heads[part]])
    prefix = "" if layer is None else f"model.layers.{layer}."
    weights[f"{prefix}{_NAMES[part]}.{leaf}"] = np.ascontiguousarray(tensor)
  return weights


def _in_halves(tensor: np.ndarray, heads: int) -> np.ndarray:
  """Rows of each head with their rotary pairs apart, which llama.cpp interleaves."""
  rows, *rest = tensor.shape
  pairs = tensor.reshape(heads, rows // heads // 2, 2, *rest)
  return pairs.swapaxes(1, 2).reshape(tensor.shape)


def _tokenizer(fields: Mapping[str, Any], name: str) -> Any:
  key = "tokenizer.ggml.{}"
  kind, pre = fields.get(key.format("model")), fields.get(key.format("pre"), "default")
  if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
    raise ValueError(
      f"{name} has a tokenizer of kind {kind!r} with pre-tokenizer {pre!r}; read are "
      f"'gpt2' with {', '.join(_PRE_TOKENIZERS)}: take the model as a Hugging Face "
      "directory"
    )
  tokens = fields[key.format("tokens")]
  merges = [tuple(merge.split(" ")) for merge in fields[key.format("merges")]]
  vocabulary = {token: index for index, token in enumerate(tokens)}
  inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
  inner.pre_tokenizer = _PRE_TOKENIZERS[pre]()
  inner.decoder = decoders.ByteLevel()
  types = fields[key.format("token_type")]
  for number in (_CONTROL, _USER_DEFINED):
    special = number == _CONTROL
    inner.add_tokens(
      [
        tokenizers.AddedToken(token, special=special, normalized=False)
        for token, one in zip(tokens, types, strict=True)
        if one == number
      ]
    )
  names = {
    role: tokens[fields[key.format(f"{field}_token_id")]]
    for role, field in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    if fields.get(key.format(f"{field}_token_id")) is not None
  }
  if fields.get(key.format("add_bos_token")) and "bos" in names:
    bos = names["bos"]
    inner.post_processor = processors.TemplateProcessing(
      single=f"{bos} $A",
      pair=f"{bos} $A {bos} $B",
      special_tokens=[(bos, vocabulary[bos])],
    )
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner,
    clean_up_tokenization_spaces=False,
    **{f"{role}_token": token for role, token in names.items()},
  )
  tokenizer.chat_template = fields.get("tokenizer.chat_template")
  return tokenizer


def _digits() -> Any:
  """Single digits, then GPT-2's words."""
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]
  )


def _gpt2() -> Any:
  return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _words(digits: str) -> Any:
  """Words by a regular expression with so many digits at once."""
  pattern = tokenizers.Regex(_WORDS % digits)
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(pattern, "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


_PRE_TOKENIZERS = {
  "default": _gpt2,
  "gpt-2": _gpt2,
  "smollm": _digits,
  "qwen2": lambda: _words(""),
  "llama-bpe": lambda: _words("{1,3}"),
}
