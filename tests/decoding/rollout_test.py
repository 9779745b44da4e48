"""Sampled targets against the softmax, and what each of them depends on."""

import jax
import numpy as np
import pytest
import scipy.stats

from dss_jax.config.schema import DecodingConfig, T5Config
from dss_jax.decoding.greedy import greedy
from dss_jax.decoding.rollout import TargetSampler
from dss_jax.model.t5 import Transformer

EOS_ID, PAD_ID = 1, 0
TOKENS = 12
CONFIG = T5Config(
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=32,
  num_encoder_layers=1,
  num_decoder_layers=1,
  vocab_size=8,
)
INPUTS = np.array(
  [[5, 6, 7, 3, 1, 0], [7, 3, 1, 0, 0, 0], [4, 2, 2, 5, 1, 0], [6, 6, 1, 0, 0, 0]] * 6
)
EXAMPLES = np.arange(len(INPUTS)) * 7
KINDS = np.arange(len(INPUTS)) % 2


@pytest.fixture(scope="module")
def params(random_params):
  """Weights of which some targets end soon and some do not end."""
  return random_params(CONFIG, seed=3, gain=1.5)


@pytest.fixture(scope="module")
def make_sampler(mesh_of):
  samplers = {}

  def make_sampler(*, devices=1, seed=0, max_tokens=TOKENS, **decoding):
    key = (devices, seed, max_tokens, *decoding.items())
    if key not in samplers:
      samplers[key] = TargetSampler(
        CONFIG,
        mesh_of(devices, 1),
        decoding=DecodingConfig(**{"temperature": 1.0, **decoding}),
        seed=seed,
        max_tokens=max_tokens,
        eos_id=EOS_ID,
        pad_id=PAD_ID,
      )
    return samplers[key]

  return make_sampler


@pytest.fixture(scope="module")
def sampled(params, make_sampler):
  """The targets of chosen rows of INPUTS at a step."""

  def sampled(rows=slice(None), step=5, **options):
    return np.asarray(
      make_sampler(**options)(
        params, INPUTS[rows], step=step, examples_B=EXAMPLES[rows], kinds_B=KINDS[rows]
      )
    )

  return sampled


def logits_after(params, inputs, beginning):
  """The whole network's logits of the token after a beginning."""
  decoder_inputs = np.array([[PAD_ID, *beginning]])
  inputs = inputs[None]
  logits = jax.jit(Transformer(CONFIG).apply)(
    {"params": params},
    inputs,
    (inputs != PAD_ID).astype(np.int32),
    decoder_inputs,
    np.ones_like(decoder_inputs),
  )
  return np.asarray(logits, np.float64)[0, -1]


@pytest.mark.parametrize(("temperature", "seen"), [(1.0, 1.0), (0.6, 0.6), (1.0, 1.3)])
def test_first_and_second_tokens_follow_the_softmax(params, make_sampler, temperature, seen):
  """Of another temperature's softmax, the same test says that they do not."""
  rows = 8000
  sample = make_sampler(temperature=temperature, max_tokens=2)
  tokens = np.asarray(
    sample(
      params,
      np.tile(INPUTS[:1], (rows, 1)),
      step=1,
      examples_B=np.arange(rows),
      kinds_B=np.zeros(rows, int),
    )
  )
  first = scipy.stats.mode(tokens[tokens[:, 0] != EOS_ID, 0]).mode
  for beginning, counted in (([], tokens[:, 0]), ([first], tokens[tokens[:, 0] == first, 1])):
    expected = scipy.special.softmax(logits_after(params, INPUTS[0], beginning) / seen)
    counts = np.bincount(counted, minlength=CONFIG.vocab_size)
    p = scipy.stats.chisquare(counts, expected * len(counted)).pvalue
    assert p > 0.001 if seen == temperature else p < 1e-6


def test_the_same_targets_whatever_their_neighbours(sampled):
  whole = sampled()
  np.testing.assert_array_equal(sampled(slice(8)), whole[:8])
  order = np.random.default_rng(0).permutation(len(INPUTS))
  np.testing.assert_array_equal(sampled(order), whole[order])


def test_eight_devices_sample_what_one_does(sampled):
  np.testing.assert_array_equal(sampled(devices=8), sampled())


def test_every_process_has_all_targets(params, make_sampler):
  targets = make_sampler(devices=8)(params, INPUTS, step=5, examples_B=EXAMPLES, kinds_B=KINDS)
  assert targets.is_fully_replicated


def test_seed_step_example_and_kind_sample_anew(params, make_sampler, sampled):
  one = sampled(slice(4))
  others = [sampled(slice(4), step=6), sampled(slice(4), seed=1)]
  for examples, kinds in ((EXAMPLES[:4] + 1, KINDS[:4]), (EXAMPLES[:4], 1 - KINDS[:4])):
    sample = make_sampler()
    others.append(sample(params, INPUTS[:4], step=5, examples_B=examples, kinds_B=kinds))
  for other in others:
    assert (np.asarray(other) != one).any(axis=1).all()
  np.testing.assert_array_equal(sampled(slice(4)), one)


def test_end_padding_and_length(sampled):
  targets = sampled()
  assert targets.shape == (len(INPUTS), TOKENS)
  assert targets.dtype == np.int32
  ends = [np.flatnonzero(row == EOS_ID) for row in targets]
  cut_off = [row for row, end in zip(targets, ends, strict=True) if not len(end)]
  assert 0 < len(cut_off) < len(targets)
  for row, end in zip(targets, ends, strict=True):
    if len(end):
      assert np.all(row[end[0] + 1 :] == PAD_ID)


def test_fewer_tokens_are_a_beginning(sampled):
  np.testing.assert_array_equal(sampled(max_tokens=4), sampled()[:, :4])


def test_a_row_of_padding_has_no_target(params, make_sampler, sampled):
  inputs = np.concatenate([INPUTS[:3], np.zeros((1, 6), int)])
  targets = make_sampler()(params, inputs, step=5, examples_B=EXAMPLES[:4], kinds_B=KINDS[:4])
  np.testing.assert_array_equal(targets[:3], sampled(slice(3)))
  assert not np.asarray(targets)[3].any()


def test_padding_of_inputs_changes_nothing(params, make_sampler, sampled):
  wider = np.pad(INPUTS[:8], [(0, 0), (0, 3)])
  targets = make_sampler()(params, wider, step=5, examples_B=EXAMPLES[:8], kinds_B=KINDS[:8])
  np.testing.assert_array_equal(targets, sampled(slice(8)))


def test_temperature_0_and_the_likeliest_token_are_greedy(params, sampled):
  decode = jax.jit(
    lambda inputs: greedy(
      params, CONFIG, inputs, max_decode_tokens=TOKENS, eos_id=EOS_ID, pad_id=PAD_ID
    )
  )
  expected = np.asarray(decode(INPUTS))
  np.testing.assert_array_equal(sampled(temperature=0.0), expected)
  np.testing.assert_array_equal(sampled(top_k=1), expected)
  assert (sampled(top_p=0.5) != expected).any()
