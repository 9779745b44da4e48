"""Self-attention relations by hand, from a network's own products, in blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dss_jax.config.kinds import AttentionConfig
from dss_jax.errors import UserError
from dss_jax.losses.attention import AttentionLoss, attention_terms, relation_divergence
from dss_jax.losses.signals import NetworkOutputs
from dss_jax.model import attention as blocks
from dss_jax.model.attention import Bias

SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 2, 2]], np.int32)


def bias_of(causal):
  return Bias(jnp.asarray(SEGMENTS), jnp.asarray(SEGMENTS), causal=causal)


def drawn(seed, width, heads=2):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(3, *SEGMENTS.shape, heads, width)).swapaxes(2, 3).astype(np.float32)


def by_hand(teacher, student, causal):
  """The sum over products, rows, heads and real positions, one softmax at a time."""
  total = 0.0
  for kind, row, head, position in np.ndindex(*student.shape[:4]):
    segment = SEGMENTS[row, position]
    if not segment:
      continue
    seen = [
      other for other in np.flatnonzero(SEGMENTS[row] == segment) if not causal or other <= position
    ]
    relations = []
    for network in (teacher, student):
      states = network[kind, row, head]
      scores = np.exp([states[position] @ states[other] for other in seen])
      relations.append(scores / scores.sum())
    total += np.sum(relations[0] * np.log(relations[0] / relations[1]))
  return total


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("logits_bytes", [2**26, 1], ids=["at once", "in blocks"])
def test_by_hand(monkeypatch, causal, logits_bytes):
  monkeypatch.setattr(blocks, "LOGITS_BYTES", logits_bytes)
  teacher, student = drawn(0, 4), drawn(1, 3)
  total = jax.jit(relation_divergence)(teacher, student, bias_of(causal))
  np.testing.assert_allclose(total, by_hand(teacher, student, causal), rtol=1e-5)
  assert float(relation_divergence(student, student, bias_of(causal))) == pytest.approx(0, abs=1e-5)


def test_blocks_are_shorter_than_long_rows(monkeypatch):
  """Padding of the last block adds nothing, and the gradient is that of the whole."""
  rng = np.random.default_rng(0)
  segments = jnp.asarray([[1] * 9 + [2] * 11 + [0]], jnp.int32)
  bias = Bias(segments, segments, causal=True)
  teacher, student = (rng.normal(size=(3, 1, 2, 21, 4)).astype(np.float32) for _ in range(2))

  def differentiate(student):
    return jax.value_and_grad(lambda student: relation_divergence(teacher, student, bias))(student)

  whole = jax.jit(lambda student: differentiate(student))(student)
  monkeypatch.setattr(blocks, "LOGITS_BYTES", 1)
  assert blocks.query_block(bias, 8) == 8
  text = str(jax.make_jaxpr(differentiate)(student))
  assert "f32[1,2,8,21]" in text
  assert "f32[1,2,21,21]" not in text
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
    jax.jit(lambda student: differentiate(student))(student),
    whole,
  )


def test_numerical_gradient():
  teacher, student = 0.5 * drawn(0, 4), 0.5 * drawn(1, 3)
  check_grads(
    jax.jit(lambda student: relation_divergence(teacher, student, bias_of(True))),
    (student,),
    order=1,
    modes=["rev"],
    atol=3e-2,
    rtol=3e-2,
  )


def test_the_products_are_those_of_the_layer(make_config, random_params):
  """Zero between a network and itself; relation heads are cut from the joined width."""
  model = make_config(model={"num_encoder_layers": 2}).model
  params = random_params(model)
  rng = np.random.default_rng(0)
  state = rng.normal(size=(*SEGMENTS.shape, 16)).astype(np.float32)
  loss = AttentionLoss("encoder", (2, 2), relation_heads=8)
  assert loss.student_layers == {"encoder": (1,)}
  network = NetworkOutputs(None, None, {1: state}, {}, params, model)
  layer = params["encoder"]["layers_1"]
  normed = state / np.sqrt(np.mean(state**2, axis=-1, keepdims=True) + 1e-6)
  normed = normed * layer["pre_attention_layer_norm"]["scale"]
  queries, keys, values = loss._products(network, 2)
  for name, got in (("query", queries), ("key", keys), ("value", values)):
    joined = normed @ layer["attention"][name]["kernel"]
    want = joined.reshape(*SEGMENTS.shape, 8, 2).swapaxes(1, 2) / 2**0.25
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  batch = {"encoder_segment_ids": SEGMENTS}
  assert float(loss.total(network, network, batch, {})) == pytest.approx(0.0, abs=1e-5)
  assert float(loss.denominator(batch)) == 11.0


def test_terms(make_config):
  student = make_config().model
  teacher = make_config(model={"num_encoder_layers": 3, "num_heads": 6}).model

  def terms(**settings):
    config = AttentionConfig(**{"relation_heads": 8, **settings})
    return attention_terms("attention", 1.0, config, student, teacher, "teacher")

  encoder, decoder = terms()
  assert (encoder.name, encoder.weight, encoder.loss.layers) == ("attention_encoder", 0.5, (1, 3))
  assert (decoder.name, decoder.weight, decoder.loss.layers) == ("attention_decoder", 0.5, (1, 1))
  (one,) = terms(encoder=(1, 2), decoder=None)
  assert (one.weight, one.loss.layers) == (1.0, (1, 2))
  for settings, sentence in (
    ({"relation_heads": 16}, "= 16: the teacher's queries of width 24 cannot"),
    ({"relation_heads": 3}, "= 3: the student's queries of width 16 cannot"),
    ({"encoder": (1, 4)}, "AttentionConfig.encoder: the teacher has no layer 4; give one of 1"),
    ({"encoder": None, "decoder": None}, "so nothing is compared"),
  ):
    with pytest.raises(UserError, match=sentence):
      terms(**settings)
