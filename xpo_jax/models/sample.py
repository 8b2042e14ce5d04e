"""Draw completions: a jitted loop with a key-value cache, and their log-probs.

A draw depends on the key, the row's number, the completion's and the token's, never
on how the batch was cut or padded.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from xpo_jax.models import cache, transformer
from xpo_jax.models.config import Config
from xpo_jax.models.transformer import Model
from xpo_jax.types import Array, Params

_BLOCK = 128  # tokens drawn among at once, see `_draw`


@struct.dataclass
class Samples:
  """Completions of B prompts, K each, at most T tokens; 0 after the end.

  Attributes:
    tokens_BKT: token ids, the stop token included.
    mask_BKT: 1 on the completion, the stop token included.
    length_BK: its tokens.
    ended_BK: whether a stop token ended it; False: it was cut at T.
    logp_BKT: the policy's log-prob at the sampling temperature, before truncation.
    proposal_logp_BKT: of the truncated distribution that was drawn from; 0 if greedy.
  """

  tokens_BKT: Array
  mask_BKT: Array
  length_BK: Array
  ended_BK: Array
  logp_BKT: Array
  proposal_logp_BKT: Array


def pad(
  prompts: Sequence[Sequence[int]], width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Prompts of token ids as `prompt_BP`, padded on the right, and `length_B`.

  Args:
    prompts: token ids, at least one each.
    width: P; None takes the longest prompt. A fixed one compiles once.

  Raises:
    ValueError: an empty prompt, or one longer than `width`.

  Example:
    >>> prompt_BP, length_B = pad([[5, 6, 7], [8]])
    >>> prompt_BP.tolist(), length_B.tolist()
    ([[5, 6, 7], [8, 0, 0]], [3, 1])
  """
  length_B = np.array([len(prompt) for prompt in prompts], np.int32)
  _check_lengths(length_B, None)
  longest = int(length_B.max())
  width = longest if width is None else width
  if longest > width:
    raise ValueError(
      f"prompt {int(length_B.argmax())} has {longest} tokens, width is {width}; "
      "raise width or drop the prompt"
    )
  prompt_BP = np.zeros((len(prompts), width), np.int32)
  for row, prompt in zip(prompt_BP, prompts, strict=True):
    row[: len(prompt)] = prompt
  return prompt_BP, length_B


def sample(
  model: Model,
  params: Params,
  prompt_BP: Array,
  length_B: Array,
  *,
  completions: int,
  max_tokens: int,
  key: Array,
  row_B: Array,
  stop_ids: Sequence[int],
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  greedy: bool = False,
) -> Samples:
  """Draws K completions of each prompt; the prompt is read once for its K.

  Decoding stops as soon as every row has met a stop token.

  Args:
    model: of `transformer.model`.
    params: of the decoder (the "lm" part).
    prompt_BP: token ids, padded on the right; see `pad`.
    length_B: tokens of each prompt.
    completions: K.
    max_tokens: T.
    key: of `jax.random`.
    row_B: global number of each prompt; folded into the key.
    stop_ids: tokens that end a completion; may be empty.
    temperature: divides the logits, > 0.
    top_k: draw among the k likeliest tokens (and ties with the last).
    top_p: draw among the fewest likeliest tokens whose probability reaches p (and
      ties with the last); after top_k, if both are given.
    greedy: take the likeliest token. `logp_BKT` is still at `temperature`.

  Returns:
    The completions with their log-probs.

  Raises:
    ValueError: an empty prompt; a number outside its range; prompt and max_tokens
      beyond learned positions; a model without a cache. Before any compile.
  """
  config = model.config
  _check(config, completions, max_tokens, temperature, top_k, top_p, greedy)
  prompt_BP, length_B = np.asarray(prompt_BP), np.asarray(length_B)
  _check_prompts(config, prompt_BP, length_B, max_tokens)
  row_B = np.asarray(row_B)
  if row_B.shape != length_B.shape:
    raise ValueError(
      f"row_B has shape {row_B.shape}; it needs one number for each of the "
      f"{len(length_B)} prompts"
    )
  stop = np.asarray(stop_ids, np.int32).reshape(-1)
  _check_ids("stop_ids", stop, config.vocab)
  return _sample(
    config,
    params,
    prompt_BP.astype(np.int32),
    length_B.astype(np.int32),
    key,
    row_B.astype(np.int32),
    stop,
    np.float32(temperature),
    None if top_k is None else np.int32(top_k),
    None if top_p is None else np.float32(top_p),
    completions=completions,
    max_tokens=max_tokens,
    greedy=greedy,
  )


def _check(
  config: Config,
  completions: int,
  max_tokens: int,
  temperature: float,
  top_k: int | None,
  top_p: float | None,
  greedy: bool,
) -> None:
  if not isinstance(config, Config):
    raise ValueError(
      f"sample needs a model of transformer.model, whose cache it knows; model.config "
      f"is a {type(config).__name__}"
    )
  if completions < 1:
    raise ValueError(f"completions is {completions}; it must be at least 1")
  if max_tokens < 1:
    raise ValueError(f"max_tokens is {max_tokens}; it must be at least 1")
  if not temperature > 0:
    raise ValueError(
      f"temperature is {temperature}; it must be > 0 (greedy=True takes the "
      "likeliest token)"
    )
  if top_k is not None and not 1 <= top_k <= config.vocab:
    raise ValueError(
      f"top_k is {top_k}; allowed: 1 to {config.vocab} (the vocabulary), or None"
    )
  if top_p is not None and not 0 < top_p <= 1:
    raise ValueError(f"top_p is {top_p}; allowed: 0 < top_p <= 1, or None")
  if greedy and (top_k is not None or top_p is not None):
    raise ValueError(
      f"greedy=True takes one token: top_k={top_k} and top_p={top_p} must be None"
    )


def _check_lengths(length_B: np.ndarray, width: int | None) -> None:
  if not length_B.size:
    raise ValueError("prompts is empty; give at least one prompt")
  if length_B.min() < 1:
    raise ValueError(
      f"prompt {int(length_B.argmin())} is empty; a prompt needs at least one token "
      "(BOS will do)"
    )
  if width is not None and length_B.max() > width:
    raise ValueError(
      f"length_B[{int(length_B.argmax())}] is {length_B.max()}, but prompt_BP is "
      f"{width} wide"
    )


def _check_prompts(
  config: Config, prompt_BP: np.ndarray, length_B: np.ndarray, max_tokens: int
) -> None:
  _check_lengths(length_B, prompt_BP.shape[1])
  held = np.arange(prompt_BP.shape[1])[None] < length_B[:, None]
  _check_ids("prompt_BP", prompt_BP[held], config.vocab)
  total = int(length_B.max()) + max_tokens
  if config.rotary is None and total > config.positions:
    raise ValueError(
      f"the longest prompt ({length_B.max()} tokens) plus max_tokens ({max_tokens}) "
      f"is {total}; this model has {config.positions} learned positions"
    )


def _check_ids(name: str, ids: np.ndarray, vocab: int) -> None:
  wrong = ids[(ids < 0) | (ids >= vocab)]
  if wrong.size:
    raise ValueError(f"{name} holds id {wrong[0]}; allowed: 0 to {vocab - 1}")


@functools.partial(
  jax.jit,
  static_argnames=("config", "completions", "max_tokens", "greedy"),
)
def _sample(
  config: Config,
  params: Params,
  prompt_BP: Array,
  length_B: Array,
  key: Array,
  row_B: Array,
  stop: Array,
  temperature: Array,
  top_k: Array | None,
  top_p: Array | None,
  *,
  completions: int,
  max_tokens: int,
  greedy: bool,
) -> Samples:
  head_VD = transformer.head(config, params)
  luck_BKT2 = _luck(key, row_B, completions, max_tokens)

  def emit(out: Samples, hidden_BKD: Array, t: Array) -> Samples:
    """Adds token t to the completions that have not ended."""
    logits_BKV = jnp.einsum(
      "bkd,vd->bkv", hidden_BKD, head_VD, preferred_element_type=jnp.float32
    )
    x_BKV = logits_BKV / temperature
    x_BKV = x_BKV - x_BKV.max(-1, keepdims=True)
    p_BKV = jnp.exp(x_BKV)  # not normalised: the likeliest token has 1
    kept_BKV = _truncate(p_BKV, top_k, top_p)
    if greedy:
      token_BK = _first_maximum(x_BKV)
    else:
      token_BK = _draw(kept_BKV, luck_BKT2[:, :, t])
    picked_BK = _pick(x_BKV, token_BK)
    logp_BK = picked_BK - jnp.log(p_BKV.sum(-1))
    proposal_BK = picked_BK - jnp.log(kept_BKV.sum(-1))
    if greedy:
      proposal_BK = jnp.zeros_like(logp_BK)
    alive_BK = ~out.ended_BK

    def put(x_BKT: Array, x_BK: Array) -> Array:
      x_BK = jnp.where(alive_BK, x_BK, 0).astype(x_BKT.dtype)
      return jax.lax.dynamic_update_slice(x_BKT, x_BK[..., None], (0, 0, t))

    stops_BK = (token_BK[..., None] == stop[None, None]).any(-1)
    return Samples(
      tokens_BKT=put(out.tokens_BKT, token_BK),
      mask_BKT=put(out.mask_BKT, jnp.ones_like(logp_BK)),
      length_BK=out.length_BK + alive_BK,
      ended_BK=out.ended_BK | stops_BK,
      logp_BKT=put(out.logp_BKT, logp_BK),
      proposal_logp_BKT=put(out.proposal_logp_BKT, proposal_BK),
    )

  def more(carry: tuple) -> Array:
    t, out, _ = carry
    return (t < max_tokens) & ~out.ended_BK.all()

  def step(carry: tuple) -> tuple:
    t, out, kept = carry
    token_BK = jax.lax.dynamic_index_in_dim(out.tokens_BKT, t - 1, 2, keepdims=False)
    hidden_BKD, kept = cache.decode(config, params, token_BK, t - 1, kept)
    return t + 1, emit(out, hidden_BKD, t), kept

  hidden_BD, kept = cache.prefill(
    config, params, prompt_BP, length_B, completions, max_tokens
  )
  B, D = hidden_BD.shape
  zeros = jnp.zeros((B, completions, max_tokens), jnp.float32)
  count = jnp.zeros((B, completions), jnp.int32)
  out = Samples(zeros.astype(jnp.int32), zeros, count, count > 0, zeros, zeros)
  hidden_BKD = jnp.broadcast_to(hidden_BD[:, None], (B, completions, D))
  out = emit(out, hidden_BKD, 0)
  return jax.lax.while_loop(more, step, (1, out, kept))[1]


def _luck(key: Array, row_B: Array, completions: int, max_tokens: int) -> Array:
  """Two uniforms for each token, which neither B, K nor T moves."""

  def one(row: Array, k: Array) -> Array:
    # Bits are by position: a longer T only adds to them.
    folded = jax.random.fold_in(jax.random.fold_in(key, row), k)
    return jax.random.uniform(folded, (max_tokens, 2))

  over_k = jax.vmap(one, (None, 0))
  return jax.vmap(over_k, (0, None))(row_B, jnp.arange(completions))


def _first_maximum(x_BKV: Array) -> Array:
  """What `argmax` gives, in a fifth of its time on a CPU."""
  V = x_BKV.shape[-1]
  best_BKV = x_BKV == x_BKV.max(-1, keepdims=True)
  return jnp.where(best_BKV, jnp.arange(V)[None, None], V).min(-1)


def _pick(x_BKV: Array, token_BK: Array) -> Array:
  # By comparison: a gather would collect logits that are sharded over V.
  at_BKV = jnp.arange(x_BKV.shape[-1])[None, None] == token_BK[..., None]
  return jnp.where(at_BKV, x_BKV, 0).sum(-1)


def _truncate(p_BKV: Array, top_k: Array | None, top_p: Array | None) -> Array:
  """Zeroes the tokens outside the proposal; `p_BKV` is 1 at the likeliest."""
  if top_k is not None:
    p_BKV = _at_least(p_BKV, lambda kept_BKV: (kept_BKV > 0).sum(-1) >= top_k)
  if top_p is not None:
    enough_BK = top_p * p_BKV.sum(-1)
    p_BKV = _at_least(p_BKV, lambda kept_BKV: kept_BKV.sum(-1) >= enough_BK)
  return p_BKV


def _at_least(p_BKV: Array, enough: Callable[[Array], Array]) -> Array:
  """Keeps the likeliest tokens, as few as are enough, and ties with the last.

  The least kept probability is found by bisection on the bits of a float, exactly:
  floats >= 0 are ordered as their bits are. 31 sums over V are far cheaper than one
  sort, and need no collection of a sharded V.
  """

  def keep(bits_BK: Array) -> Array:
    least_BK = jax.lax.bitcast_convert_type(bits_BK, jnp.float32)
    return jnp.where(p_BKV >= least_BK[..., None], p_BKV, 0)

  def halve(_, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low_BK, high_BK = bounds  # low is enough, above high is not
    middle_BK = high_BK - (high_BK - low_BK) // 2
    good_BK = enough(keep(middle_BK))
    low_BK = jnp.where(good_BK, middle_BK, low_BK)
    return low_BK, jnp.where(good_BK, high_BK, middle_BK - 1)

  low_BK = jnp.zeros(p_BKV.shape[:-1], jnp.int32)
  high_BK = jnp.full_like(low_BK, np.float32(1).view(np.int32))
  return keep(jax.lax.fori_loop(0, 31, halve, (low_BK, high_BK))[0])


def _draw(p_BKV: Array, luck_BK2: Array) -> Array:
  """A token by inverse distribution function, first its block, then within it.

  Two uniforms a token instead of V Gumbel draws, and no cumulative sum over V.
  """
  *lead, V = p_BKV.shape
  pad = [(0, 0)] * len(lead) + [(0, -V % _BLOCK)]
  p = jnp.pad(p_BKV, pad).reshape(*lead, -1, _BLOCK)
  block_BK = _invert(p.sum(-1), luck_BK2[..., 0])
  within = jnp.take_along_axis(p, block_BK[..., None, None], axis=-2)[..., 0, :]
  return block_BK * _BLOCK + _invert(within, luck_BK2[..., 1])


def _invert(p: Array, luck: Array) -> Array:
  """First index at which the running sum exceeds `luck` (< 1) of the total."""
  total = jnp.cumsum(p, axis=-1)
  return (total <= luck[..., None] * total[..., -1:]).sum(-1)
