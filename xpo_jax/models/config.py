"""Configuration of a decoder: sizes, norm, MLP, positions, dtype. Imports no JAX."""

import dataclasses
import enum


class Norm(enum.Enum):
  """Kind of normalisation, applied before each sub-layer and before the head."""

  RMS = "rms"
  LAYER = "layer"


class Activation(enum.Enum):
  """Non-linearity of the MLP, by the names of Hugging Face configs."""

  SILU = "silu"
  GELU = "gelu"
  GELU_TANH = "gelu_new"


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
  """Llama 3.1's scaling of the low rotary frequencies (its `rope_scaling`)."""

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_positions: int


@dataclasses.dataclass(frozen=True)
class Rotary:
  """Rotary position embedding.

  Attributes:
    theta: base of the frequencies.
    fraction: fraction of each head's dimensions that is rotated (the leading ones).
    llama3: scaling of the frequencies, or None.
  """

  theta: float = 10_000.0
  fraction: float = 1.0
  llama3: Llama3Scaling | None = None


@dataclasses.dataclass(frozen=True)
class Config:
  """Configuration of a decoder. The defaults are Llama's; sizes have no default.

  Attributes:
    vocab: V, the rows of the embedding.
    width: D.
    layers: N.
    heads: number of query heads.
    kv_heads: number of key and value heads; divides `heads`.
    head_dim: dimensions per head.
    mlp_width: hidden width of the MLP.
    positions: context length; a hard limit for learned positions.
    norm, norm_eps: kind of normalisation and its epsilon.
    activation, gated: of the MLP; gated is `down(act(gate(x)) * up(x))`.
    rotary: rotary embedding; None: learned positions (GPT-2).
    qkv_bias, output_bias, mlp_bias: which projections have a bias.
    parallel_residual: attention and MLP both read the block's input (GPT-NeoX).
    tied: the head shares the embedding's weights.
    compute_dtype: dtype of activations, not of parameters. Norms, rotary angles and
      softmax are computed in at least float32.
    remat: recompute each block's activations in the backward pass.
    stop_ids: tokens that end a completion beside the tokenizer's EOS, as a checkpoint's
      generation_config.json lists them.
  """

  vocab: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  mlp_width: int
  positions: int = 2048
  norm: Norm = Norm.RMS
  norm_eps: float = 1e-5
  activation: Activation = Activation.SILU
  gated: bool = True
  rotary: Rotary | None = Rotary()
  qkv_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  parallel_residual: bool = False
  tied: bool = False
  compute_dtype: str = "float32"
  remat: bool = True
  stop_ids: tuple[int, ...] = ()

  def __post_init__(self):
    sizes = ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "mlp_width")
    values = dataclasses.asdict(self)
    for name in (*sizes, "positions"):
      if values[name] < 1:
        raise ValueError(f"Config.{name} is {values[name]}; it must be at least 1")
    if self.heads % self.kv_heads:
      raise ValueError(
        f"Config.kv_heads is {self.kv_heads}, which does not divide "
        f"heads = {self.heads}; use a divisor, or heads itself"
      )
    beyond = [index for index in self.stop_ids if not 0 <= index < self.vocab]
    if beyond:
      raise ValueError(
        f"Config.stop_ids has {beyond[0]}; allowed: 0 to {self.vocab - 1}"
      )
    allowed = ("float32", "bfloat16", "float64")
    if self.compute_dtype not in allowed:
      raise ValueError(
        f"Config.compute_dtype is {self.compute_dtype!r}; allowed: {allowed}"
      )
    if self.rotary is not None and self.rotary_dim % 2:
      raise ValueError(
        f"Config.rotary.fraction {self.rotary.fraction} of head_dim {self.head_dim} "
        f"is {self.rotary_dim} dimensions; it must be an even number"
      )

  @property
  def rotary_dim(self) -> int:
    """Number of rotated dimensions per head."""
    return 0 if self.rotary is None else int(self.head_dim * self.rotary.fraction)
