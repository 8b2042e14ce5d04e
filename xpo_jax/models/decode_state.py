"""The state of a decoding loop, shared by both samplers, and one step of it."""

import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from xpo_jax.models import kv_cache, token_sampling, transformer
from xpo_jax.models.config import Config
from xpo_jax.ops import capping
from xpo_jax.sharding import rules
from xpo_jax.types import Array, Params


@struct.dataclass
class Samples:
  """Completions of B prompts, K each, at most T tokens; 0 after the end.

  Attributes:
    tokens_BKT: token ids, the stop token included.
    mask_BKT: 1 on the completion, the stop token included.
    length_BK: its tokens.
    ended_BK: whether a stop token ended it; False: it was cut at T.
    logp_BKT: the policy's log-prob at the sampling temperature, before truncation.
    proposal_logp_BKT: of the distribution that was drawn from (truncated, mixed); 0
      if greedy.
  """

  tokens_BKT: Array
  mask_BKT: Array
  length_BK: Array
  ended_BK: Array
  logp_BKT: Array
  proposal_logp_BKT: Array

  @classmethod
  def empty(cls, B: int, K: int, T: int) -> "Samples":
    """No token yet."""
    zeros, count = jnp.zeros((B, K, T), jnp.float32), jnp.zeros((B, K), jnp.int32)
    return cls(zeros.astype(jnp.int32), zeros, count, count > 0, zeros, zeros)

  @property
  def open_BK(self) -> Array:
    """Whether another token may follow."""
    return ~self.ended_BK & (self.length_BK < self.tokens_BKT.shape[-1])


@struct.dataclass
class Decoder:
  """The models that are decoded, and how their tokens are drawn.

  Attributes:
    params: of the policy; in a mixture the reference's after them.
    rule: of the draw.
    configs: one for each of `params`.
    greedy: take the likeliest token.
    mesh: devices that the rows are split over; None: wherever their arrays are.
  """

  params: tuple[Params, ...]
  rule: token_sampling.Rule
  configs: tuple[Config, ...] = struct.field(pytree_node=False)
  greedy: bool = struct.field(pytree_node=False)
  mesh: Mesh | None = struct.field(pytree_node=False, default=None)


def begin(
  decoder: Decoder, prompt_BP: Array, length_B: Array, uniform_BKT2: Array
) -> tuple[Samples, tuple[kv_cache.PromptCache, ...]]:
  """Reads the prompts, padded on the right, and draws every first token."""
  B, K, T, _ = uniform_BKT2.shape
  hidden, prompts = [], []
  for config, params in zip(decoder.configs, decoder.params, strict=True):
    hidden_BD, read = kv_cache.prefill(
      config, params, prompt_BP, length_B, decoder.mesh
    )
    hidden.append(jnp.broadcast_to(hidden_BD[:, None], (B, K, hidden_BD.shape[1])))
    prompts.append(read)
  out = _emit(decoder, Samples.empty(B, K, T), hidden, uniform_BKT2)
  return rules.pin_rows(decoder.mesh, out), kv_cache.pin(decoder.mesh, tuple(prompts))


def room(
  prompts: tuple[kv_cache.PromptCache, ...], uniform_BKT2: Array, mesh: Mesh | None
) -> tuple[kv_cache.Branches, ...]:
  """Empty caches of the completions beside those of their prompts."""
  K, T = uniform_BKT2.shape[1:3]
  return kv_cache.pin(mesh, tuple(kv_cache.branches(read, K, T) for read in prompts))


def extend(
  decoder: Decoder,
  out: Samples,
  prompts: tuple[kv_cache.PromptCache, ...],
  branches: tuple[kv_cache.Branches, ...],
  uniform_BKT2: Array,
) -> tuple[Samples, tuple[kv_cache.Branches, ...]]:
  """Adds a token to every completion that is open; all have one at least."""
  at_BK = jnp.maximum(out.length_BK - 1, 0)
  token_BK = _take(out.tokens_BKT, at_BK)
  hidden, grown = [], []
  for config, params, read, own in zip(
    decoder.configs, decoder.params, prompts, branches, strict=True
  ):
    hidden_BKD, own = kv_cache.decode(
      config, params, token_BK, at_BK, read, own, decoder.mesh
    )
    hidden.append(hidden_BKD)
    grown.append(own)
  out = _emit(decoder, out, hidden, uniform_BKT2)
  return rules.pin_rows(decoder.mesh, out), tuple(grown)


def _emit(
  decoder: Decoder, out: Samples, hidden: list[Array], uniform_BKT2: Array
) -> Samples:
  """Draws the next token of the completions that are open."""
  logits = []
  for config, params, hidden_BKD in zip(
    decoder.configs, decoder.params, hidden, strict=True
  ):
    head_VD = transformer.head(config, params)
    logits_BKV = jnp.einsum(
      "bkd,vd->bkv", hidden_BKD, head_VD, preferred_element_type=jnp.float32
    )
    logits.append(capping.soft_cap(logits_BKV, config.logit_softcap))
  uniform_BK2 = _take(uniform_BKT2, out.length_BK)
  token = token_sampling.choose(
    tuple(logits), uniform_BK2, decoder.rule, greedy=decoder.greedy
  )
  open_BK, T = out.open_BK, out.tokens_BKT.shape[-1]
  here_BKT = open_BK[..., None] & (
    jnp.arange(T)[None, None] == out.length_BK[..., None]
  )

  def put(x_BKT: Array, x_BK: Array) -> Array:
    return jnp.where(here_BKT, x_BK[..., None].astype(x_BKT.dtype), x_BKT)

  stops_BK = (token.token_BK[..., None] == decoder.rule.stop[None, None]).any(-1)
  return Samples(
    tokens_BKT=put(out.tokens_BKT, token.token_BK),
    mask_BKT=put(out.mask_BKT, jnp.ones_like(token.logp_BK)),
    length_BK=out.length_BK + open_BK,
    ended_BK=out.ended_BK | (open_BK & stops_BK),
    logp_BKT=put(out.logp_BKT, token.logp_BK),
    proposal_logp_BKT=put(out.proposal_logp_BKT, token.proposal_logp_BK),
  )


def _take(x_BKT: Array, at_BK: Array) -> Array:
  """Element `at_BK` along T, the last one beyond it."""
  at = at_BK.reshape(at_BK.shape + (1,) * (x_BKT.ndim - 2))
  return jnp.take_along_axis(x_BKT, at, axis=2, mode="clip")[:, :, 0]
