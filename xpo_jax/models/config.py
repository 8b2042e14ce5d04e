"""Configuration of a decoder: sizes, norm, MLP, positions, dtype. Imports no JAX."""

import dataclasses
import enum
from typing import Literal, get_args

# What the backward pass computes again; see `Config.remat`.
Remat = Literal["none", "full", "dots", "offload"]


class Norm(enum.Enum):
  """Kind of normalisation; `RMS_OFFSET` scales by 1 + its parameter (Gemma)."""

  RMS = "rms"
  RMS_OFFSET = "rms_offset"
  LAYER = "layer"


class QKNorm(enum.Enum):
  """What a normalisation of queries and keys is over: each head, or all heads."""

  HEAD = "head"
  WIDTH = "width"


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
class YarnScaling:
  """YaRN's scaling of the frequencies (Peng et al. 2023, arXiv:2309.00071).

  Frequencies that turn more than `beta_fast` times within `original_positions` are
  kept, those that turn less than `beta_slow` times are divided by `factor`, with a
  linear ramp over the dimensions between them.

  Attributes:
    factor: of the context length.
    original_positions: context length of the training before it.
    beta_fast, beta_slow: turns at the ends of the ramp.
    attention_factor: factor of cosines and sines; the paper's is 0.1 ln(factor) + 1.
    truncate: whether the ends of the ramp are rounded outwards to whole dimensions.
  """

  factor: float
  original_positions: int
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float = 1.0
  truncate: bool = True


@dataclasses.dataclass(frozen=True)
class Rotary:
  """Rotary position embedding; at most one of the scalings.

  Attributes:
    theta: base of the frequencies.
    fraction: fraction of each head's dimensions that is rotated (the leading ones).
    llama3, yarn: scaling of the frequencies, or None.
    linear: divisor of all frequencies.
    dynamic: factor of the base for texts longer than `Config.positions` ("dynamic
      NTK"), or None. The base would depend on the length of the text, and keys in a
      cache on the length at which they were computed: longer texts are refused, so that
      it has no effect.
  """

  theta: float = 10_000.0
  fraction: float = 1.0
  llama3: Llama3Scaling | None = None
  yarn: YarnScaling | None = None
  linear: float = 1.0
  dynamic: float | None = None

  def __post_init__(self):
    used = [name for name in ("llama3", "yarn", "dynamic") if getattr(self, name)]
    used += ["linear"] if self.linear != 1 else []
    if len(used) > 1:
      raise ValueError(f"Rotary has the scalings {used}; give one at most")


@dataclasses.dataclass(frozen=True)
class ClampedSwiglu:
  """Gating of gpt-oss: `(up + 1) gate sigmoid(alpha gate)`, both clamped before it.

  Attributes:
    alpha: slope of the sigmoid.
    limit: upper bound of the gate, and bound of |up|.
  """

  alpha: float = 1.702
  limit: float = 7.0


@dataclasses.dataclass(frozen=True)
class Experts:
  """Mixture of experts: a router chooses MLPs for each token; no token is dropped.

  Attributes:
    count: number of experts, E.
    active: number of experts of a token.
    normalised: whether the weights of a token's experts add up to 1; else they are
      their probabilities among all experts.
  """

  count: int
  active: int
  normalised: bool = True

  def __post_init__(self):
    if not 1 <= self.active <= self.count:
      raise ValueError(
        f"Experts.active is {self.active}; allowed: 1 to count = {self.count}"
      )


def check_remat(owner: str, value: object) -> None:
  """Refuses a rematerialisation policy that is not among `Remat`.

  Args:
    owner: class of the field, for the message.
    value: of its field `remat`.

  Raises:
    ValueError: another value; of a boolean, which the field once was, it names the
      policy that has the same meaning.
  """
  allowed = get_args(Remat)
  if value in allowed:
    return
  hint = ""
  if isinstance(value, bool):
    hint = f"; instead of {value} give {remat_of(value)!r}"
  raise ValueError(f"{owner}.remat is {value!r}; allowed: {allowed}{hint}")


def remat_of(recompute: bool) -> Remat:
  """The policy that a boolean meant before there was a choice."""
  return "full" if recompute else "none"


@dataclasses.dataclass(frozen=True)
class Config:
  """Configuration of a decoder. The defaults are Llama's; sizes have no default.

  A tuple with a value for each layer is empty where all layers are alike.

  Attributes:
    vocab: V, the rows of the embedding.
    width: D.
    layers: N.
    heads: number of query heads.
    kv_heads: number of key and value heads; divides `heads`.
    head_dim: dimensions per head.
    mlp_width: hidden width of the MLP, or of each expert.
    positions: context length; a hard limit for learned positions and for a rotary
      embedding with `dynamic`.
    norm, norm_eps: kind of normalisation and its epsilon.
    pre_norm, post_norm: whether the input and the output of attention and MLP are
      normalised (Gemma 2: both, OLMo 2: the output only).
    qk_norm: normalisation of queries and keys before they are rotated, or None.
    activation, gated: of the MLP; gated is `down(act(gate(x)) * up(x))`.
    swiglu: gating in place of `act(gate) * up`, or None.
    experts: the MLP of every layer is a mixture of experts; None: one MLP.
    router_loss: whether the router's load-balancing loss is a term of the training
      loss (`transformer.Routing`).
    router_loss_coef: its coefficient.
    rotary: rotary embedding; None: learned positions (GPT-2).
    local_rotary: rotary embedding of the layers with a window; None: `rotary`.
    rotated: whether a layer rotates queries and keys; (): all layers.
    windows: number of last positions, its own included, that a position of a layer
      attends to; 0: all; (): all in every layer.
    attention_scale: factor of the attention's logits; None: head_dim ** -0.5.
    attention_softcap: c of `c tanh(x / c)` on the attention's logits, or None.
    attention_sink: whether each head has one more logit, a parameter, that takes
      weight from all positions (gpt-oss).
    logit_softcap: the same on the logits of the head.
    logit_divisor: of the logits of the head (Granite).
    embedding_scale: factor of the embeddings.
    residual_scale: factor of what attention and MLP add to the residual stream.
    qkv_bias, output_bias, mlp_bias: which projections have a bias; the router is of
      the MLP.
    parallel_residual: attention and MLP both read the block's input (GPT-NeoX).
    tied: the head shares the embedding's weights.
    compute_dtype: dtype of activations, not of parameters. Norms, rotary angles and
      softmax are computed in at least float32.
    remat: rematerialisation, what of each block's activations the backward pass
      computes again. "none": nothing, all are kept. "full": all but the block's input.
      "dots": all but its input and the outputs of matrix products without batch
      dimensions: of the linear layers, neither of attention nor of experts. "offload":
      the same, and those outputs wait in pinned memory of the host.
    stop_ids: tokens that end a completion beside the tokenizer's EOS, as a checkpoint's
      generation_config.json lists them.
    family: Hugging Face's model_type of the checkpoint, which names the weights of
      exports and adapters; None: the first one that supports the config. No effect on
      the decoder.
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
  pre_norm: bool = True
  post_norm: bool = False
  qk_norm: QKNorm | None = None
  activation: Activation = Activation.SILU
  gated: bool = True
  swiglu: ClampedSwiglu | None = None
  experts: Experts | None = None
  router_loss: bool = False
  router_loss_coef: float = 0.001
  rotary: Rotary | None = Rotary()
  local_rotary: Rotary | None = None
  rotated: tuple[bool, ...] = ()
  windows: tuple[int, ...] = ()
  attention_scale: float | None = None
  attention_softcap: float | None = None
  attention_sink: bool = False
  logit_softcap: float | None = None
  logit_divisor: float = 1.0
  embedding_scale: float = 1.0
  residual_scale: float = 1.0
  qkv_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  parallel_residual: bool = False
  tied: bool = False
  compute_dtype: str = "float32"
  remat: Remat = "full"
  stop_ids: tuple[int, ...] = ()
  family: str | None = None

  def __post_init__(self):
    sizes = ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "mlp_width")
    for name in (*sizes, "positions"):
      if getattr(self, name) < 1:
        raise ValueError(f"Config.{name} is {getattr(self, name)}; it must be >= 1")
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
    check_remat("Config", self.remat)
    if self.rotary is not None and self.rotary_dim % 2:
      raise ValueError(
        f"Config.rotary.fraction {self.rotary.fraction} of head_dim {self.head_dim} "
        f"is {self.rotary_dim} dimensions; it must be an even number"
      )
    if not (self.pre_norm or self.post_norm):
      raise ValueError("Config.pre_norm and post_norm are False; set one of them")
    self._check_layers()
    self._check_mlp()
    scales = ("logit_divisor", "embedding_scale", "residual_scale")
    for name in (*scales, "attention_scale", "attention_softcap", "logit_softcap"):
      value = getattr(self, name)
      if value is not None and not value > 0:
        raise ValueError(f"Config.{name} is {value}; it must be > 0")

  def _check_layers(self) -> None:
    for name in ("rotated", "windows"):
      values = getattr(self, name)
      if values and len(values) != self.layers:
        raise ValueError(
          f"Config.{name} has {len(values)} values; give one for each of the "
          f"{self.layers} layers, or () where all are alike"
        )
    negative = [window for window in self.windows if window < 0]
    if negative:
      raise ValueError(
        f"Config.windows has {negative[0]}; it must be >= 1, or 0 for none"
      )
    if self.local_rotary is not None and (
      self.rotary is None or self.local_rotary.fraction != self.rotary.fraction
    ):
      raise ValueError(
        "Config.local_rotary must rotate the same fraction of a head as Config.rotary"
      )

  def _check_mlp(self) -> None:
    for name in ("experts", "swiglu"):
      if getattr(self, name) is not None and not self.gated:
        raise ValueError(f"Config.{name} needs a gated MLP, and Config.gated is False")
    if self.router_loss and self.experts is None:
      raise ValueError(
        "Config.router_loss is True, and Config.experts None: a model without experts "
        "has no router; leave it False"
      )
    if not self.router_loss_coef >= 0:
      raise ValueError(
        f"Config.router_loss_coef is {self.router_loss_coef}; it must be >= 0"
      )

  @property
  def distinct_windows(self) -> tuple[int | None, ...]:
    """The different windows of the layers; None: all positions."""
    return tuple(dict.fromkeys(window or None for window in self.windows)) or (None,)

  @property
  def rotary_dim(self) -> int:
    """Number of rotated dimensions per head."""
    return 0 if self.rotary is None else int(self.head_dim * self.rotary.fraction)

  @property
  def rotaries(self) -> tuple[Rotary | None, ...]:
    """The rotary embedding of each layer; None where it does not rotate."""
    rotated = self.rotated or (True,) * self.layers
    windows = self.windows or (0,) * self.layers
    local = self.local_rotary or self.rotary
    return tuple(
      (local if window else self.rotary) if rotates else None
      for rotates, window in zip(rotated, windows, strict=True)
    )

  @property
  def position_limit(self) -> int | None:
    """Number of positions after which there are none; None: no such limit."""
    if self.rotary is None or self.rotary.dynamic is not None:
      return self.positions
    return None
