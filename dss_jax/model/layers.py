"""T5's layers except attention, with T5X's parameter names and logical axes.

Shapes: B batch rows, L length, D embed, F mlp, V vocabulary. Weights are float32; activations
have the config's dtype; norms are float32 whatever that dtype is.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from dss_jax.config.schema import T5Config
from dss_jax.model.dropout import Dropout

Initializer = Callable[..., jax.Array]


def weight(
  module: nn.Module, name: str, initializer: Initializer, axes: tuple[str, ...], shape: Any
) -> jax.Array:
  """Declares a float32 weight of the module, boxed with its logical axes at initialisation."""
  boxed = nn.with_logical_partitioning(initializer, axes)
  value: Any = module.param(name, boxed, shape, jnp.float32)
  return value


class Dense(nn.Module):
  """Computes x @ kernel, without bias; the kernel has two dimensions, as in T5X."""

  features: int
  axes: tuple[str, str]
  dtype: Any
  initializer: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (x.shape[-1], self.features)
    kernel = weight(self, "kernel", self.initializer, self.axes, shape)
    return product(x.astype(self.dtype), kernel.astype(self.dtype))


@jax.custom_vjp
def product(x: jax.Array, kernel_DF: jax.Array) -> jax.Array:
  """Computes x @ kernel, with the kernel's gradient as the product in the cheaper order.

  A CPU's matrix product transposes its first operand to sum over tokens. x comes first, since all
  kernels that read the same x share its transpose; the output's gradient comes first, as in JAX's
  own rule, only if x is at least twice as wide.
  """
  return jnp.dot(x, kernel_DF)


def _product_forward(x, kernel_DF):
  return jnp.dot(x, kernel_DF), (x, kernel_DF)


def _product_backward(operands, gradient):
  x, kernel_DF = operands
  tokens = tuple(range(x.ndim - 1))
  if kernel_DF.shape[0] < 2 * kernel_DF.shape[1]:
    kernel_gradient = jax.lax.dot_general(x, gradient, ((tokens, tokens), ((), ())))
  else:
    kernel_gradient = jax.lax.dot_general(gradient, x, ((tokens, tokens), ((), ()))).T
  return jnp.einsum("...f,df->...d", gradient, kernel_DF), kernel_gradient


product.defvjp(_product_forward, _product_backward)


class RMSNorm(nn.Module):
  """Computes x / rms(x) * scale over the last axis, without mean or bias (T5's layer norm)."""

  dtype: Any
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = weight(self, "scale", nn.initializers.ones, ("embed",), (x.shape[-1],))
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
    return (x * scale).astype(self.dtype)


class TokenEmbedder(nn.Module):
  """Looks up token embeddings in a table, [V, D]."""

  config: T5Config

  def setup(self):
    assert self.config.vocab_size is not None
    shape = (self.config.vocab_size, self.config.emb_dim)
    normal = nn.initializers.normal(stddev=1.0)
    self.embedding = weight(self, "embedding", normal, ("vocab", "embed"), shape)

  def __call__(self, tokens_BL: jax.Array) -> jax.Array:
    return jnp.take(self.embedding, tokens_BL, axis=0).astype(self.config.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "silu": jax.nn.silu,
  "gelu": jax.nn.gelu,  # the tanh approximation, as T5X and Hugging Face's gelu_new
  "relu": jax.nn.relu,
  "linear": lambda x: x,
}


class MlpBlock(nn.Module):
  """Computes the product of the activated projections, dropout, and the output projection."""

  config: T5Config

  @nn.compact
  def __call__(self, x_BLD: jax.Array, *, deterministic: bool) -> jax.Array:
    config = self.config
    parts = []
    for index, activation in enumerate(config.mlp_activations):
      name = "wi" if len(config.mlp_activations) == 1 else f"wi_{index}"
      part = Dense(config.mlp_dim, ("embed", "mlp"), config.dtype, name=name)(x_BLD)
      parts.append(ACTIVATIONS[activation](part))
    hidden_BLF = Dropout(config.dropout_rate)(math.prod(parts[1:], start=parts[0]), deterministic)
    hidden_BLF = nn.with_logical_constraint(hidden_BLF, ("batch", "length", "mlp"))
    return Dense(config.emb_dim, ("mlp", "embed"), config.dtype, name="wo")(hidden_BLF)
