"""What a decoder is: sizes, norm, MLP, positions, dtype. No JAX needed."""

import dataclasses
import enum


class Norm(enum.Enum):
  """Normalisation before each sub-layer and before the head."""

  RMS = "rms"
  LAYER = "layer"


class Activation(enum.Enum):
  """Non-linearity of the MLP, by the names of Hugging Face configs."""

  SILU = "silu"
  GELU = "gelu"
  GELU_TANH = "gelu_new"


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
  """Llama 3.1's stretch of the slow rotary frequencies (its `rope_scaling`)."""

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_positions: int


@dataclasses.dataclass(frozen=True)
class Rotary:
  """Rotary position embedding.

  Attributes:
    theta: base of the frequencies.
    fraction: share of each head's dimensions that is rotated (the first ones).
    llama3: scaling of the frequencies, or None.
  """

  theta: float = 10_000.0
  fraction: float = 1.0
  llama3: Llama3Scaling | None = None


@dataclasses.dataclass(frozen=True)
class Config:
  """A decoder. The defaults are Llama's; sizes have none.

  Attributes:
    vocab: rows of the embedding.
    width: D.
    layers: N.
    heads: query heads.
    kv_heads: key and value heads; divides `heads`.
    head_dim: dimensions per head.
    mlp_width: hidden width of the MLP.
    positions: context length; a hard limit where positions are learned.
    norm, norm_eps: kind of normalisation and its epsilon.
    activation, gated: of the MLP; gated is `down(act(gate(x)) * up(x))`.
    rotary: rotary embedding, or None: positions are learned (GPT-2).
    qkv_bias, output_bias, mlp_bias: which projections have a bias.
    parallel_residual: attention and MLP both read the block's input (GPT-NeoX).
    tied: the head is the embedding.
    compute_dtype: dtype of activations; parameters stay as they are. Norms, rotary
      angles and softmax are computed in at least float32.
    remat: recompute each block in the backward pass instead of keeping it.
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

  def __post_init__(self):
    sizes = ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "mlp_width")
    values = dataclasses.asdict(self)
    for name in (*sizes, "positions"):
      if values[name] < 1:
        raise ValueError(f"Config.{name} is {values[name]}; it must be at least 1")
    if self.heads % self.kv_heads:
      raise ValueError(
        f"Config.kv_heads is {self.kv_heads}, which does not divide "
        f"heads = {self.heads}; take a divisor, or heads itself"
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
    """How many dimensions of a head are rotated."""
    return 0 if self.rotary is None else int(self.head_dim * self.rotary.fraction)
