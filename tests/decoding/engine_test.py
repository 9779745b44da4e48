"""The engine against greedy decoding in one batch: slots, order and neighbours change no answer."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from dss_jax.config.schema import DecodingConfig, MeshConfig
from dss_jax.decoding import engine as engines
from dss_jax.decoding.beam import beam_search
from dss_jax.decoding.engine import Engine, Request
from dss_jax.decoding.greedy import greedy
from dss_jax.model.t5 import Transformer
from dss_jax.parallel.mesh import make_mesh
from tests.fixtures.networks import TINY

EOS_ID, PAD_ID = 1, 0
LONGEST_INPUT, LONGEST = 50, 40
SAMPLED = DecodingConfig(temperature=1.0, num_candidates=2, seed=7, log_probabilities=True)


@pytest.fixture(scope="module")
def params(random_params):
  return random_params(TINY, seed=18, gain=2.0)


@pytest.fixture(scope="module")
def requests():
  generator = np.random.default_rng(3)
  return [
    Request(
      [*generator.integers(2, 24, generator.integers(1, LONGEST_INPUT)).tolist(), EOS_ID], limit
    )
    for limit in (3, 40, 40, 8, 25, 40, 40, 1, 40, 40, 12, 40, 40, 40)
  ]


def engine_of(params, decoding=DecodingConfig(), *, slots=4, config=TINY, mesh=None):  # noqa: B008
  mesh = mesh or make_mesh(MeshConfig(data=1), slots)
  return Engine(params, config, decoding, mesh, slots=slots, eos_id=EOS_ID, pad_id=PAD_ID)


def answers_of(engine, requests, **options):
  """The ids and log-probabilities of each request's candidates."""
  found = {}
  for piece in engine.decode(requests, **options):
    ids, logs, ended = found.setdefault((piece.request, piece.candidate), ([], [], []))
    assert not ended, "nothing follows the end of an answer"
    assert piece.ids
    ids += piece.ids
    logs += piece.log_probabilities
    ended += [True] * piece.is_last
  assert all(ended for _, _, ended in found.values())
  return {key: (ids, logs) for key, (ids, logs, _) in sorted(found.items())}


def ids_of(answers):
  return [ids for ids, _ in answers.values()]


@pytest.fixture(scope="module")
def expected(params, requests):
  """Each request decoded greedily in one batch."""
  tokens = np.zeros((len(requests), max(len(each.ids) for each in requests)), np.int32)
  for row, request in enumerate(requests):
    tokens[row, : len(request.ids)] = request.ids
  decode = functools.partial(
    greedy, config=TINY, max_decode_tokens=LONGEST, eos_id=EOS_ID, pad_id=PAD_ID
  )
  written = np.asarray(jax.jit(decode)(params, encoder_input_tokens_BL=tokens))
  answers = []
  for row, request in zip(written, requests, strict=True):
    ends = np.flatnonzero(row == EOS_ID)
    length = min(ends[0] + 1 if len(ends) else LONGEST, request.max_tokens)
    answers.append(row[:length].tolist())
  return answers


def test_the_answers_differ_in_length(expected):
  """Else the tests here would pass with slots that are wrong."""
  assert len({len(ids) for ids in expected}) >= 6
  assert max(map(len, expected)) == LONGEST


def started(params, requests, start):
  """Each request decoded greedily in one batch, from a start token."""
  tokens = np.zeros((len(requests), max(len(each.ids) for each in requests)), np.int32)
  for row, request in enumerate(requests):
    tokens[row, : len(request.ids)] = request.ids
  starts = np.full(len(requests), start, np.int32)
  decode = functools.partial(
    greedy, config=TINY, max_decode_tokens=LONGEST, eos_id=EOS_ID, pad_id=PAD_ID
  )
  written = jax.jit(decode)(params, encoder_input_tokens_BL=tokens, start_tokens_B=starts)
  return np.asarray(written)


@pytest.mark.parametrize("slots", [1, 4])
def test_answers_start_from_their_requests_token(params, requests, slots):
  """Also where a request with another start, or with none, was in the slot before."""
  few = [dataclasses.replace(each, max_tokens=LONGEST) for each in requests[:3]]
  starts = (None, PAD_ID, EOS_ID)
  asked = [dataclasses.replace(each, start_id=start) for each in few for start in starts]
  answers = ids_of(answers_of(engine_of(params, slots=slots), asked))
  for number, start in enumerate(starts):
    for ids, row in zip(answers[number::3], started(params, few, start or 0), strict=True):
      assert ids == row[: len(ids)].tolist()
      assert EOS_ID in ids or len(ids) == LONGEST
  assert answers[0::3] == answers[1::3]
  assert answers[0::3] != answers[2::3]


def test_beams_start_from_their_requests_token(params, requests):
  """One batch has requests of both."""
  few = [dataclasses.replace(each, max_tokens=8) for each in requests[:2]]
  asked = [dataclasses.replace(each, start_id=start) for each in few for start in (None, EOS_ID)]
  engine = engine_of(params, DecodingConfig(beams=2), slots=8)
  together = ids_of(answers_of(engine, asked))
  for number, request in enumerate(asked):
    assert ids_of(answers_of(engine, [request])) == [together[number]]
  assert together[0::2] != together[1::2]


@pytest.mark.parametrize("slots", [1, 3, 4, 16])
def test_slots_change_no_answer(params, requests, expected, slots):
  assert ids_of(answers_of(engine_of(params, slots=slots), requests)) == expected


def test_caches_grow_without_changing_an_answer(params, requests, expected, monkeypatch):
  monkeypatch.setattr(engines, "CACHE_LENGTHS", (8, 16, 32))
  monkeypatch.setattr(engines, "STEPS", 5)
  assert ids_of(answers_of(engine_of(params), requests)) == expected


def test_the_order_of_requests_changes_no_answer(params, requests, expected):
  backwards = ids_of(answers_of(engine_of(params), requests[::-1]))
  assert backwards[::-1] == expected


def test_requests_are_taken_as_slots_get_free(params, requests):
  taken = []

  def arriving():
    for number, request in enumerate(requests):
      taken.append(number)
      yield request

  pieces = engine_of(params, slots=2).decode(arriving())
  next(pieces)
  assert len(taken) < len(requests)


@pytest.mark.parametrize("axes", [{"data": 4, "model": 2}, {"data": 2, "model": 4}])
def test_a_mesh_changes_no_answer(params, requests, expected, axes):
  mesh = make_mesh(MeshConfig(**axes), 8)
  assert ids_of(answers_of(engine_of(params, slots=8, mesh=mesh), requests)) == expected


def test_a_sampled_answer_depends_on_its_row_alone(params, requests):
  together = answers_of(engine_of(params, SAMPLED, slots=4), requests)
  wider = answers_of(engine_of(params, SAMPLED, slots=16), requests)
  assert ids_of(together) == ids_of(wider)
  backwards = answers_of(engine_of(params, SAMPLED, slots=3), requests[::-1])
  for (number, candidate), (ids, _) in backwards.items():
    assert ids == together[len(requests) - 1 - number, candidate][0]
  alone = answers_of(engine_of(params, SAMPLED, slots=4), requests[5:6])
  assert [alone[0, n][0] for n in (0, 1)] == [together[5, n][0] for n in (0, 1)]


def test_candidates_and_seeds_differ(params, requests):
  answers = answers_of(engine_of(params, SAMPLED), requests[1:3])
  assert answers[0, 0][0] != answers[0, 1][0]
  other = answers_of(engine_of(params, dataclasses.replace(SAMPLED, seed=8)), requests[1:3])
  assert ids_of(other) != ids_of(answers)


def teacher_forced(params, request, ids):
  """The log-probabilities of all tokens at each position of an answer, [T, V]."""

  def padded(ids, length):
    return np.pad([ids], [(0, 0), (0, length - len(ids))])

  source, shifted = padded(request.ids, LONGEST_INPUT), padded([PAD_ID, *ids[:-1]], LONGEST)
  segments = padded([1] * len(request.ids), LONGEST_INPUT), padded([1] * len(ids), LONGEST)
  logs = log_probabilities(params, source, segments[0], shifted, segments[1])
  return np.asarray(logs)[0, : len(ids)]


@jax.jit
def log_probabilities(params, *arguments):
  return jax.nn.log_softmax(Transformer(TINY).apply({"params": params}, *arguments))


@pytest.mark.parametrize("temperature", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_log_probabilities_are_those_of_a_teacher_forced_pass(params, requests, temperature):
  decoding = DecodingConfig(temperature=temperature, log_probabilities=True)
  for (number, _), (ids, logs) in answers_of(engine_of(params, decoding), requests[:6]).items():
    want = teacher_forced(params, requests[number], ids)[np.arange(len(ids)), ids]
    np.testing.assert_allclose(logs, want, atol=1e-4)


@pytest.mark.parametrize("axes", [{"data": 1}, {"data": 2, "model": 4}])
def test_alternatives_are_the_likeliest_of_a_teacher_forced_pass(params, requests, axes):
  """Rows that ask for different numbers of them, or for none, are decoded side by side."""
  numbers = [0, 3, 20, 5, 1, 0]
  asked = [
    dataclasses.replace(
      request,
      decoding=DecodingConfig(
        temperature=number % 2, log_probabilities=number > 1, top_log_probabilities=number
      ),
    )
    for request, number in zip(requests, numbers, strict=False)
  ]
  pieces = list(engine_of(params, mesh=make_mesh(MeshConfig(**axes), 4)).decode(asked))
  for number, (request, count) in enumerate(zip(asked, numbers, strict=True)):
    own = [piece for piece in pieces if piece.request == number]
    ids = [one for piece in own for one in piece.ids]
    alternatives = [one for piece in own for one in piece.alternatives]
    if not count:
      assert not alternatives
      continue
    want = teacher_forced(params, request, ids)
    order = np.argsort(-want, axis=1)[:, :count]
    assert [[token for token, _ in step] for step in alternatives] == order.tolist()
    logs = [[log for _, log in step] for step in alternatives]
    np.testing.assert_allclose(logs, np.take_along_axis(want, order, axis=1), atol=1e-4)


def test_no_more_alternatives_than_tokens(params):
  config = dataclasses.replace(TINY, vocab_size=7)
  small = {
    **params,
    "token_embedder": {"embedding": params["token_embedder"]["embedding"][:7]},
    "decoder": {
      **params["decoder"],
      "logits_dense": {"kernel": params["decoder"]["logits_dense"]["kernel"][:, :7]},
    },
  }
  decoding = DecodingConfig(top_log_probabilities=20)
  (piece, *_) = engine_of(small, decoding, config=config).decode([Request([3, 4, EOS_ID], 4)])
  assert [len(step) for step in piece.alternatives] == [7] * len(piece.ids)


def test_programs_of_two_sizes_list_alternatives(params):
  """However many numbers of them rows ask for; none lists what nobody asks for."""
  engine = engine_of(params, slots=1)
  advance, counts = engine._advance, []

  def noting(*arguments, top_count, **options):
    counts.append(top_count)
    return advance(*arguments, top_count=top_count, **options)

  engine._advance = noting
  for number in (0, 1, 5, 6, 20):
    list(engine.decode([Request([3, EOS_ID], 2, DecodingConfig(top_log_probabilities=number))]))
  assert sorted(set(counts)) == [0, 5, 20]


def test_an_answer_ends_when_it_is_complete(params, requests, expected):
  number = max(range(len(expected)), key=lambda n: len(expected[n]))
  stop = expected[number][10]

  def is_complete(request, ids):
    return request == number and stop in ids

  ended = ids_of(answers_of(engine_of(params), requests, is_complete=is_complete))
  assert ended[number] == expected[number][: len(ended[number])]
  assert stop in ended[number]
  assert len(ended[number]) <= 10 + engines.STEPS
  del ended[number]
  assert ended == expected[:number] + expected[number + 1 :]


def test_beams_are_those_of_the_search(params, requests):
  decoding = DecodingConfig(beams=3, num_candidates=2)
  some = [dataclasses.replace(each, max_tokens=8) for each in requests[:5]]
  found = {}
  for piece in engine_of(params, decoding, slots=6).decode(some):
    found[piece.request, piece.candidate] = piece
  search = functools.partial(
    beam_search, config=TINY, max_decode_tokens=8, beams=3, eos_id=EOS_ID, pad_id=PAD_ID
  )
  for number, request in enumerate(some):
    ids, scores = jax.jit(search)(params, encoder_input_tokens_BL=np.array([request.ids]))
    for candidate in (0, 1):
      piece = found[number, candidate]
      want = np.asarray(ids)[0, candidate]
      assert piece.ids == want[want != PAD_ID].tolist()
      assert piece.score == pytest.approx(float(scores[0, candidate]), abs=1e-4)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_narrower_weights_answer_nearly_the_same(params, requests, expected, weights):
  engine = engine_of(params, DecodingConfig(weights=weights, log_probabilities=True))
  answers = answers_of(engine, requests)
  assert ids_of(answers) != expected or weights == "bfloat16"
  first = [ids[0] for ids in ids_of(answers)]
  assert sum(a == b[0] for a, b in zip(first, expected, strict=True)) >= 11
