"""Where a student's answers end."""

from types import SimpleNamespace

import numpy as np
import pytest

from dss_jax.config.schema import MeshConfig, T5Config
from dss_jax.data.vocabularies import load_vocabulary
from dss_jax.parallel.mesh import make_mesh
from dss_jax.student.predictor import Predictor


@pytest.mark.parametrize("eos_id", [3, 20])
def test_inputs_and_answers_end_with_the_vocabularys_end_mark(random_params, train_pieces, eos_id):
  vocabulary = load_vocabulary(train_pieces(unk_id=1, eos_id=eos_id))
  config = T5Config(
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
    vocab_size=vocabulary.size,
  )
  drawn = random_params(config, seed=5, gain=1.0)

  def predictor(sign):
    """A student that writes its end mark or token 7 first, depending on the sign."""
    kernel = np.zeros_like(drawn["decoder"]["logits_dense"]["kernel"])
    kernel[:, eos_id], kernel[:, 7] = sign, -sign
    params = {**drawn, "decoder": {**drawn["decoder"], "logits_dense": {"kernel": kernel}}}
    student = SimpleNamespace(
      config=SimpleNamespace(model=config, data=SimpleNamespace(max_input_tokens=16)),
      card={"prefixes": {"label": "the "}},
      vocabulary=vocabulary,
      params=lambda mesh, scan_layers: params,
    )
    return Predictor(student, make_mesh(MeshConfig(data=1), 1), batch_size=1)

  ids = predictor(1)._encode("red box", "label")
  assert ids == [*vocabulary.encode("the red box"), eos_id]
  answers = [predictor(sign)._decode([ids], 8)[0].tolist() for sign in (1, -1)]
  assert [eos_id, *[0] * 7] in answers
