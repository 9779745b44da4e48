"""The memory saved by chunked cross-entropy and blockwise attention, with the same results.

python benchmarks/memory.py [--student large] [--input-tokens 7168] [--output-tokens 1024]

Prints one line of JSON. For cross-entropy and for attention: the temporary memory of a forward
and backward pass by the compiler's analysis, at once and by parts (MiB), their ratio, and the
relative differences of loss and gradients, computed at a smaller size with as many parts. With
--student, also the memory of its training step for one example (two rows) on one device, with
all attention logits at once and by blocks, for each setting of remat (compiled, not run).
"""

import argparse
import dataclasses
import functools
import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dss_jax.config.gin_loader import Binding, load_config
from dss_jax.config.schema import MeshConfig, RunConfig
from dss_jax.data.packing import RowShape
from dss_jax.losses import cross_entropy
from dss_jax.model import attention
from dss_jax.parallel.mesh import make_mesh
from dss_jax.train.optimizer import make_optimizer
from dss_jax.train.step import Trainer

MIB = 2**20
VOCABULARY = 32_128
COMPARED_TOKENS = 1024

Arrays = dict[str, Any]


@contextmanager
def replaced(module: Any, name: str, value: float) -> Iterator[None]:
  """Sets a constant of a module to another value within the context."""
  before = getattr(module, name)
  setattr(module, name, value)
  try:
    yield
  finally:
    setattr(module, name, before)


def temporary_mib(function: Callable[[Arrays], Any], shapes: Arrays) -> float:
  analysis: Any = jax.jit(jax.grad(function)).lower(shapes).compile().memory_analysis()
  return analysis.temp_size_in_bytes / MIB


def random_arrays(shapes: Arrays) -> Arrays:
  generator = np.random.default_rng(0)
  return {
    name: generator.normal(size=leaf.shape, scale=0.3).astype(leaf.dtype)
    for name, leaf in shapes.items()
  }


def differences(one: Callable, other: Callable, inputs: Arrays) -> dict[str, float]:
  """Returns the relative differences of the loss and of the gradients (the largest)."""
  loss, gradient = jax.jit(jax.value_and_grad(one))(inputs)
  other_loss, other_gradient = jax.jit(jax.value_and_grad(other))(inputs)
  errors = [
    float(jnp.linalg.norm(gradient[name] - other_gradient[name]) / jnp.linalg.norm(gradient[name]))
    for name in inputs
  ]
  return {
    "loss_difference": abs(float(loss - other_loss) / float(loss)),
    "gradient_difference": max(errors),
  }


def whole_cross_entropy(inputs: Arrays, targets: np.ndarray) -> jax.Array:
  """Computes the plain formula, with all logits at once."""
  logits = jnp.einsum("rmd,dv->rmv", inputs["hidden"], inputs["kernel"])
  chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
  return -jnp.mean(chosen)


def chunked_cross_entropy(inputs: Arrays, targets: np.ndarray) -> jax.Array:
  token_weights = jnp.full(targets.shape, 1 / targets.size, jnp.float32)
  ids = jnp.asarray(targets)
  return cross_entropy.cross_entropy(inputs["hidden"], inputs["kernel"], ids, token_weights)[0]


def of_cross_entropy(tokens: int, width: int) -> dict[str, float]:
  def shapes(tokens: int) -> Arrays:
    return {
      "hidden": jax.ShapeDtypeStruct((1, tokens, width), np.float32),
      "kernel": jax.ShapeDtypeStruct((width, VOCABULARY), np.float32),
    }

  def targets(tokens: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, VOCABULARY, (1, tokens), np.int32)

  at_once = temporary_mib(
    functools.partial(whole_cross_entropy, targets=targets(tokens)), shapes(tokens)
  )
  by_parts = temporary_mib(
    functools.partial(chunked_cross_entropy, targets=targets(tokens)), shapes(tokens)
  )
  with replaced(cross_entropy, "CHUNK_BYTES", cross_entropy.CHUNK_BYTES * COMPARED_TOKENS / tokens):
    found = differences(
      functools.partial(whole_cross_entropy, targets=targets(COMPARED_TOKENS)),
      functools.partial(chunked_cross_entropy, targets=targets(COMPARED_TOKENS)),
      random_arrays(shapes(COMPARED_TOKENS)),
    )
  return {"tokens": tokens, **memory(at_once, by_parts), **found}


def attention_loss(inputs: Arrays, *, at_once: bool) -> jax.Array:
  """Computes the sum of squares of an encoder self-attention's output, with its bias."""
  segments = jnp.ones((1, inputs["query"].shape[1]), jnp.int32)
  bias = attention.Bias(segments, segments, inputs["table"])
  mix = attention._mixed if at_once else attention._mixed_by_blocks
  mixed = mix(
    inputs["query"], inputs["key"], inputs["value"], bias.whole() if at_once else bias, 0.0, None
  )
  return jnp.sum(jnp.square(mixed))


def of_attention(tokens: int, heads: int, head_dim: int) -> dict[str, float]:
  def shapes(tokens: int) -> Arrays:
    one = jax.ShapeDtypeStruct((1, tokens, heads, head_dim), np.float32)
    table = jax.ShapeDtypeStruct((heads, 32), np.float32)
    return {"query": one, "key": one, "value": one, "table": table}

  whole = functools.partial(attention_loss, at_once=True)
  by_blocks = functools.partial(attention_loss, at_once=False)
  at_once, by_parts = (temporary_mib(way, shapes(tokens)) for way in (whole, by_blocks))
  smaller = attention.LOGITS_BYTES * (COMPARED_TOKENS / tokens) ** 2
  with replaced(attention, "LOGITS_BYTES", smaller):
    found = differences(whole, by_blocks, random_arrays(shapes(COMPARED_TOKENS)))
  return {"tokens": tokens, "heads": heads, **memory(at_once, by_parts), **found}


def memory(at_once: float, by_parts: float) -> dict[str, float]:
  return {"at_once_mib": at_once, "by_parts_mib": by_parts, "ratio": at_once / by_parts}


def of_step(config: RunConfig, shape: RowShape) -> dict[str, float]:
  """Returns the memory in GiB of a training step on one device: state and batch, temporaries."""
  mesh = make_mesh(MeshConfig(data=1), 1)
  trainer = Trainer(config, make_optimizer(config.optimizer, config.train_steps), mesh)
  analysis: Any = trainer.lower(shape).compile().memory_analysis()
  state = analysis.argument_size_in_bytes
  new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
  return {
    "state_gib": state / 2**30,
    "temporary_gib": analysis.temp_size_in_bytes / 2**30,
    "peak_gib": (state + new + analysis.temp_size_in_bytes) / 2**30,
  }


def of_student(name: str, dtype: str, shape: RowShape) -> dict[str, Any]:
  settings = [
    Binding("MODEL_DIR", "unused", "--student"),
    Binding("T5Config.vocab_size", VOCABULARY, "--student"),
    Binding("T5Config.scan_layers", True, "--student"),
    Binding("T5Config.dtype", dtype, "--student"),
  ]
  config = load_config(RunConfig, ["runs/distill.gin", f"models/{name}.gin"], settings)
  found: dict[str, Any] = {"student": name, "dtype": dtype, **shape._asdict()}
  for remat in ("none", "minimal", "full"):
    run = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))
    with replaced(attention, "LOGITS_BYTES", 2**60):
      at_once = of_step(run, shape)
    found[remat] = {"at_once": at_once, "by_blocks": of_step(run, shape)}
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--student")
  parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
  parser.add_argument("--input-tokens", type=int, default=7168)
  parser.add_argument("--output-tokens", type=int, default=1024)
  options = parser.parse_args()
  found: dict[str, Any] = {
    "cross_entropy": of_cross_entropy(tokens=16_384, width=512),
    "attention": of_attention(options.input_tokens, heads=16, head_dim=64),
  }
  if options.student:
    shape = RowShape(2, options.input_tokens, options.output_tokens)
    found["step"] = of_student(options.student, options.dtype, shape)
  machine = {"platform": jax.devices()[0].platform, "machine": platform.machine()}
  print(json.dumps({**found, "jax": jax.__version__, **machine}))


if __name__ == "__main__":
  main()
