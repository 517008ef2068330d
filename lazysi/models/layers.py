"""What the transformers share: time features, position tables, patches, modulation, attention."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

__all__ = [
    "LAYER_NORM_EPSILON",
    "MAX_PERIOD",
    "TIME_FEATURES",
    "Embedder",
    "attend",
    "modulate",
    "position_table",
    "rms_norm",
    "split_heads",
    "time_features",
    "unpatchify",
    "wide",
]

LAYER_NORM_EPSILON = 1e-6  # of the published networks; also of their RMS norms
TIME_FEATURES = 256
MAX_PERIOD = 10_000.0
BY_HEAD = 2**16  # attention weights of one head from which a processor takes heads one by one: 1.2 to 1.7 times faster


def wide(x: Array) -> Array:
    """The array in float32 or better."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def time_features(t: Float[Array, " batch"]) -> Float[Array, "batch 256"]:
    """Sinusoidal features [cos(t f_j), sin(t f_j)] with f_j = 10000^(-j/128), in float32 or better."""
    t = wide(t)
    half = TIME_FEATURES // 2
    frequencies = np.exp(-np.log(MAX_PERIOD) * np.arange(half) / half)  # float32 exponentials differ by machine
    phases = t[:, None] * jnp.asarray(frequencies, t.dtype)
    return jnp.concatenate([jnp.cos(phases), jnp.sin(phases)], axis=-1)


@functools.cache
def position_table(
    width: int, rows: int, columns: int | None = None, *, first: tuple[int, int] = (0, 0), spacing: float = 1.0
) -> np.ndarray:
    """Fixed sine-cosine table of shape (rows * columns, width): its first half encodes the column, its second the row.

    Args:
        width: token dimension, a multiple of 4.
        rows: of tokens.
        columns: of tokens; as many as rows by default.
        first: row and column of the first token.
        spacing: of neighbouring tokens.
    """
    frequencies = MAX_PERIOD ** (-np.arange(width // 4, dtype=np.float64) / (width // 4))

    def line(start: int, count: int) -> np.ndarray:
        phases = (start + np.arange(count, dtype=np.float64))[:, None] * spacing * frequencies
        return np.concatenate([np.sin(phases), np.cos(phases)], axis=-1)

    shape = (rows, rows if columns is None else columns, width // 2)
    across = np.broadcast_to(line(first[1], shape[1])[None, :, :], shape)
    down = np.broadcast_to(line(first[0], shape[0])[:, None, :], shape)
    return np.concatenate([across, down], axis=-1).reshape(-1, width)


def modulate(z: Array, shift: Array, scale: Array) -> Array:
    """LN(z) (1 + scale) + shift, with one (shift, scale) per sample; the statistics in float32 or better."""
    centred = wide(z) - wide(z).mean(-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + LAYER_NORM_EPSILON)
    return normed.astype(z.dtype) * (1 + scale[:, None]) + shift[:, None]


def rms_norm(z: Array, weight: Array) -> Array:
    """z / sqrt(mean z^2) weight over the last axis; the mean in float32 or better."""
    normed = wide(z) * jax.lax.rsqrt(jnp.square(wide(z)).mean(-1, keepdims=True) + LAYER_NORM_EPSILON)
    return normed.astype(z.dtype) * weight.astype(z.dtype)


def attend(
    q: Float[Array, "batch tokens heads size"],
    k: Float[Array, "batch keys heads size"],
    v: Float[Array, "batch keys heads size"],
    *,
    flash: bool = False,
) -> Float[Array, "batch tokens heads size"]:
    """softmax(q k^T / sqrt(size)) v per head, the softmax in float32 or better.

    Args:
        q, k, v: queries, keys and values.
        flash: use JAX's fused attention, which is cuDNN's for 16 bit numbers on an NVIDIA GPU. It takes the softmax in
            float32 always, which would cap a float64 network at 1e-7.
    """
    if flash:
        fused = jax.default_backend() == "gpu" and q.dtype.itemsize == 2
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn" if fused else None)
    batch, _, heads, size = q.shape
    parts = tuple(x.transpose(0, 2, 1, 3) for x in (q, k, v))
    if jax.default_backend() != "cpu" or q.shape[1] * k.shape[1] < BY_HEAD:
        return _average(*parts).transpose(0, 2, 1, 3)
    # one head of one sample after the other: its weights stay in the cache of a processor
    by_head = tuple(x.reshape(batch * heads, -1, size) for x in parts)
    return jax.lax.map(lambda x: _average(*x), by_head).reshape(batch, heads, -1, size).transpose(0, 2, 1, 3)


def _average(
    q: Float[Array, "*heads tokens size"], k: Float[Array, "*heads keys size"], v: Float[Array, "*heads keys size"]
) -> Float[Array, "*heads tokens size"]:
    """softmax(q k^T / sqrt(size)) v, divided by the sum of the weights last: there are fewer entries then."""
    accurate = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.matmul(q, jnp.swapaxes(k, -1, -2), preferred_element_type=accurate) / math.sqrt(q.shape[-1])
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    total = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=accurate)
    return (total / weights.sum(-1, keepdims=True)).astype(v.dtype)


def split_heads(qkv: Float[Array, "batch tokens features"], heads: int) -> tuple[Array, Array, Array]:
    """Queries, keys and values by head, from one projection to all three."""
    batch, tokens, features = qkv.shape
    q, k, v = jnp.split(qkv.reshape(batch, tokens, 3 * heads, features // (3 * heads)), 3, axis=2)
    return q, k, v


def unpatchify(
    tokens: Float[Array, "batch tokens features"], rows: int, columns: int, patch: int, channels: int
) -> Array:
    """Put the patches (rows, columns, channels) of all tokens together; channels beyond the first `channels` drop."""
    pixels = tokens.reshape(tokens.shape[0], rows, columns, patch, patch, -1)[..., :channels]
    return pixels.transpose(0, 1, 3, 2, 4, 5).reshape(tokens.shape[0], rows * patch, columns * patch, channels)


class Embedder(nnx.Module):
    """Linear, SiLU, Linear."""

    def __init__(self, inputs: int, width: int, *, dtype: DTypeLike | None, param_dtype: DTypeLike, rngs: nnx.Rngs):
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        options["kernel_init"] = nnx.initializers.normal(0.02)
        self.fc1 = nnx.Linear(inputs, width, **options)
        self.fc2 = nnx.Linear(width, width, **options)

    def __call__(self, inputs: Array) -> Array:
        return self.fc2(nnx.silu(self.fc1(inputs)))
