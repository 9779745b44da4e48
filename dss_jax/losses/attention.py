"""Relations between the positions of a sequence, in the self-attention of one layer."""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from dss_jax.config.kinds import AttentionConfig
from dss_jax.config.schema import T5Config
from dss_jax.errors import UserError
from dss_jax.losses.base import StateLoss, StateTerm
from dss_jax.losses.feature import check_layer
from dss_jax.losses.response import kl
from dss_jax.losses.signals import NetworkOutputs
from dss_jax.model.attention import Bias, query_block
from dss_jax.model.states import self_attention_products


@dataclasses.dataclass(frozen=True)
class AttentionLoss(StateLoss):
  """The divergence of self-attention relations (MiniLMv2: Wang et al. 2021, section 3.1).

  The queries of a layer are split into A relation heads of width d, in the teacher and in the
  student, whatever their own heads are. A head's relations are softmax_l(q_p . q_l / sqrt(d)) over
  the positions l of p's own sequence, in the decoder up to p. The same with keys and values:

  sum_p 1/A sum_a sum_{queries, keys, values} KL(teacher's relations of p || student's)

  over real positions p, by whose number in the whole batch it is divided. In float32, a block of
  positions at a time, forwards and backwards: no array [A, L, L] is kept.

  Attributes:
    layers: of the student and of the teacher, from 1.
  """

  stack: str
  layers: tuple[int, int]
  relation_heads: int

  @property
  def student_layers(self) -> Mapping[str, tuple[int, ...]]:  # type: ignore[override]
    return {self.stack: (self.layers[0] - 1,)}

  @property
  def teacher_layers(self) -> Mapping[str, tuple[int, ...]]:  # type: ignore[override]
    return {self.stack: (self.layers[1] - 1,)}

  def total(
    self,
    student: NetworkOutputs,
    teacher: NetworkOutputs | None,
    batch: Mapping[str, jax.Array],
    projections: Mapping[str, jax.Array],
  ) -> jax.Array:
    """See StateLoss."""
    del projections
    assert teacher is not None
    segments_BL = batch[f"{self.stack}_segment_ids"]
    bias = Bias(segments_BL, segments_BL, causal=self.stack == "decoder")
    teachers = self._products(teacher, self.layers[1])
    students = self._products(student, self.layers[0])
    return relation_divergence(teachers, students, bias) / self.relation_heads

  def denominator(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    """See StateLoss: the number of real positions."""
    return jnp.sum(batch[f"{self.stack}_segment_ids"] > 0, dtype=jnp.float32)

  def _products(self, network: NetworkOutputs, layer: int) -> jax.Array:
    """Computes queries, keys and values, scaled, by relation head: float32 [3, B, A, L, K]."""
    assert network.config is not None
    state_BLD = network.states(self.stack)[layer - 1]
    products = jnp.stack(
      self_attention_products(network.params, network.config, self.stack, layer, state_BLD)
    ).astype(jnp.float32)
    heads = products.reshape(*products.shape[:3], self.relation_heads, -1).swapaxes(2, 3)
    # Both factors of a product have half of 1 / sqrt(d). Positions lie on all devices of a row.
    heads = heads * heads.shape[-1] ** -0.25
    return nn.with_logical_constraint(heads, (None, "batch", None, None, None))


def relation_divergence(teacher: jax.Array, student: jax.Array, bias: Bias) -> jax.Array:
  """Computes the sum of the divergences over products, heads and real positions.

  Args:
    teacher, student: [3, B, A, L, K], each position's products, whose widths may differ.
    bias: which positions are compared.
  """
  _, rows, heads, length, _ = student.shape
  # Relations of both networks, and their gradients, are in memory for one product at a time. All
  # devices of the model axis have the same.
  mesh = jax.sharding.get_abstract_mesh()
  copies = 1 if mesh.empty else mesh.shape["model"]
  block = query_block(bias, 4 * heads * copies) or length
  blocks = math.ceil(length / block)

  def split(x: jax.Array, axis: int) -> jax.Array:
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, blocks * block - length)
    x = jnp.pad(x, padding)
    shape = (*x.shape[:axis], blocks, block, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)

  def log_relations(some_BAqK: jax.Array, all_BALK: jax.Array, masks: jax.Array) -> jax.Array:
    products = jnp.einsum("baqk,balk->baql", some_BAqK, all_BALK)
    return jax.nn.log_softmax(products + masks, axis=-1)

  @jax.checkpoint
  def of_block(number, segments_Bq, teacher_block, student_block, teacher, student):
    masks = bias.of_queries(number * block, segments_Bq)
    real_BAq = jnp.broadcast_to(segments_Bq[:, None] > 0, (rows, heads, block))
    total = jnp.zeros((), jnp.float32)
    for kind in range(len(student)):
      divergence_BAq = kl(
        log_relations(teacher_block[kind], teacher[kind], masks),
        log_relations(student_block[kind], student[kind], masks),
      )
      total += jnp.sum(divergence_BAq, where=real_BAq)
    return total

  def visit(total, numbered_block):
    return total + of_block(*numbered_block, teacher, student), None

  by_block = (split(bias.query_segments_BQ, 1), split(teacher, 3), split(student, 3))
  zero = jnp.zeros((), jnp.float32)
  return jax.lax.scan(visit, zero, (jnp.arange(blocks), *by_block))[0]


def attention_terms(
  name: str,
  weight: float,
  config: AttentionConfig,
  student: T5Config,
  teacher: T5Config,
  source: str,
) -> tuple[StateTerm, ...]:
  """Returns one term for each stack that is compared; they share the weight equally.

  Raises UserError for a layer that a network does not have, for heads that do not divide, and if
  there is nothing to compare.
  """
  chosen = {
    "encoder": (config.encoder, student.num_encoder_layers, teacher.num_encoder_layers),
    "decoder": (config.decoder, student.num_decoder_layers, teacher.num_decoder_layers),
  }
  heads = config.relation_heads
  for who, network in (("student", student), ("teacher", teacher)):
    width = network.num_heads * network.head_dim
    if width % heads:
      raise UserError(
        f"AttentionConfig.relation_heads = {heads}: the {who}'s queries of width {width} cannot be "
        "split into so many; give a number that divides the widths of both networks"
      )
  losses = []
  for stack, (layers, *counts) in chosen.items():
    if layers is None:
      continue
    pair = (counts[0], counts[1]) if layers == "last" else layers
    for who, layer, count in zip(("student", "teacher"), pair, counts, strict=True):
      check_layer(layer, count, who, f"AttentionConfig.{stack}", first=1)
    losses.append(AttentionLoss(stack, pair, heads))
  if not losses:
    raise UserError(
      "AttentionConfig.encoder and AttentionConfig.decoder are both None, so nothing is compared; "
      "set one of them, or leave out --kind attention"
    )
  return tuple(
    StateTerm(f"{name}_{loss.stack}", weight / len(losses), loss, source) for loss in losses
  )
