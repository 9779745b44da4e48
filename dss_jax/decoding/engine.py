"""An engine that decodes rows of any length: ended rows leave their slots and waiting ones enter.

Inputs are packed for the encoder, so that it has little padding to work through; each is encoded
once, however many candidates are decoded of it. The shapes of the programs are few: caches have
one of the lengths of CACHE_LENGTHS or what short answers need, cross-attention a padded_length.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from dss_jax.config.schema import DecodingConfig, T5Config
from dss_jax.decoding import slots as device
from dss_jax.decoding.beam import beam_search
from dss_jax.decoding.decoder import encode
from dss_jax.decoding.input_packing import PackedInputs, pack, padded_length
from dss_jax.decoding.sampling import Sampling
from dss_jax.decoding.weights import decoding_weights
from dss_jax.model.layer_stacks import unrolled_config
from dss_jax.parallel.sharding import logical_rules

# The lengths of caches beyond answers of 64 tokens; each is compiled once.
CACHE_LENGTHS = tuple(64 * 4**n for n in range(6))
# The most tokens that are decoded before the host looks at them.
STEPS = 16
# How many of the most likely tokens a program lists; rows take the first of them, as many as asked.
_TOP_COUNTS = (0, 5, 20)


@dataclasses.dataclass(frozen=True)
class Request:
  """An input without padding, and the most tokens of an answer to it.

  Attributes:
    decoding: how the answers are chosen, but for beams and weights; None as the engine does.
    start_id: the token from which answers start; None for the pad token, as T5 has it.
  """

  ids: Sequence[int]
  max_tokens: int
  decoding: DecodingConfig | None = None
  start_id: int | None = None


@dataclasses.dataclass(frozen=True)
class Piece:
  """The next tokens of an answer.

  Attributes:
    request: the number of the request, from 0 on.
    candidate: the number of the answer among those to the request.
    ids: new tokens; the end token is the last one if the model has written it.
    log_probabilities: of these tokens, if they were asked for.
    alternatives: at each of these tokens, the ids and log-probabilities of the most likely ones,
      if they were asked for.
    is_last: whether the answer ends here.
    score: of a beam.
  """

  request: int
  candidate: int
  ids: list[int]
  log_probabilities: list[float]
  is_last: bool
  score: float | None = None
  alternatives: list[list[tuple[int, float]]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Row:
  """A candidate of a request, with its tokens so far."""

  number: int
  candidate: int
  request: Request
  decoding: DecodingConfig
  place: int = 0  # of its input in the encoder's flattened output
  ids: list[int] = dataclasses.field(default_factory=list)


class Engine:
  """Decodes with the weights of one network.

  Attributes:
    weights: its DecodingWeights.
  """

  def __init__(
    self,
    params: Any,
    model: T5Config,
    decoding: DecodingConfig,
    mesh: jax.sharding.Mesh,
    *,
    slots: int,
    eos_id: int,
    pad_id: int,
  ):
    """Rearranges the weights.

    Args:
      params: the network's parameters on the mesh.
      slots: rows decoded at a time, a multiple of the mesh's data axis.
    """
    self._model = unrolled_config(model)
    self._decoding = decoding
    self._mesh = mesh
    self._rules = logical_rules(self._model, mesh)
    self._slots = slots
    self._eos_id, self._pad_id = eos_id, pad_id
    data = mesh.shape["data"]
    # Of a slot table for the last rows, which are few.
    self._few_slots = max(slots // 4 // data, 1) * data
    # A CPU is busy with a few hundred tokens; an accelerator needs more of them.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    self._packed_rows = -(-(2 if on_cpu else max(2, slots // 4)) // data) * data
    with self._on_mesh():
      # Not compiled as one program, so that what stays as it is takes no further memory.
      self.weights = decoding_weights(params, self._model, decoding.weights)
    self._encode = jax.jit(functools.partial(encode, config=self._model))
    self._empty = jax.jit(
      functools.partial(device.empty_slots, self._model), static_argnums=(0, 1, 2)
    )
    self._admit = jax.jit(device.admit, donate_argnums=0)
    self._lengthen = jax.jit(device.lengthened, static_argnames=("cache_length", "source_length"))
    self._gather = jax.jit(device.gathered)
    self._advance = jax.jit(
      functools.partial(device.advance, model=self._model, eos_id=eos_id, steps=STEPS),
      donate_argnums=1,
      static_argnames=("is_plain", "top_count"),
    )
    self._search = jax.jit(
      functools.partial(
        beam_search,
        config=self._model,
        eos_id=eos_id,
        pad_id=pad_id,
        beams=decoding.beams,
        alpha=decoding.brevity_penalty,
      ),
      static_argnames="max_decode_tokens",
    )

  def decode(
    self,
    requests: Iterable[Request],
    *,
    is_complete: Callable[[int, list[int]], bool] | None = None,
  ) -> Iterator[Piece]:
    """Yields the answers' tokens as they are decoded; requests are taken as slots get free.

    Args:
      is_complete: called with the number of a request and an answer's tokens so far; True ends
        the answer.
    """
    if self._decoding.beams > 1:
      yield from self._searched(requests)
    else:
      yield from _Run(self, requests, is_complete).pieces()

  def _searched(self, requests: Iterable[Request]) -> Iterator[Piece]:
    """Yields the best beams of each request, which are known at the end only."""
    data = self._mesh.shape["data"]
    size = max(self._slots // self._decoding.beams // data, 1) * data
    numbered = enumerate(requests)
    while batch := list(itertools.islice(numbered, size)):
      longest = padded_length(max(len(request.ids) for _, request in batch), 32)
      tokens = np.full((size, longest), self._pad_id, np.int32)
      starts = np.full(size, self._pad_id, np.int32)
      for row, (_, request) in enumerate(batch):
        tokens[row, : len(request.ids)] = request.ids
        starts[row] = self.start_of(request)
      most = -(-max(request.max_tokens for _, request in batch) // 8) * 8
      with self._on_mesh():
        found = self._search(
          self.weights,
          encoder_input_tokens_BL=tokens,
          max_decode_tokens=most,
          start_tokens_B=starts,
        )
      ids, scores = map(np.asarray, found)
      for row, (number, request) in enumerate(batch):
        for candidate in range(self._decoding.num_candidates):
          answer = ids[row, candidate, : request.max_tokens].tolist()
          if self._eos_id in answer:
            answer = answer[: answer.index(self._eos_id) + 1]
          yield Piece(number, candidate, answer, [], True, float(scores[row, candidate]))

  def start_of(self, request: Request) -> int:
    """Returns the token from which the answers to a request start."""
    return self._pad_id if request.start_id is None else request.start_id

  @contextlib.contextmanager
  def _on_mesh(self) -> Iterator[None]:
    with jax.set_mesh(self._mesh), nn.logical_axis_rules(self._rules):
      yield


class _Run:
  """The requests of one call of Engine.decode on their way through the slots."""

  def __init__(
    self,
    engine: Engine,
    requests: Iterable[Request],
    is_complete: Callable[[int, list[int]], bool] | None,
  ):
    self._engine = engine
    self._requests = enumerate(requests)
    self._is_complete = is_complete
    self._waiting: collections.deque[_Row] = collections.deque()
    self._encoded: collections.deque[_Row] = collections.deque()
    self._packed: list[jax.Array] = []
    self._rows: list[_Row | None] = []
    self._keep = np.ones(0, bool)
    self._slots: device.Slots | None = None

  def pieces(self) -> Iterator[Piece]:
    while True:
      with self._engine._on_mesh():
        self._fill()
        if not any(self._rows):
          return
        self._make_room()
        decoded = self._advance()
      yield from self._harvest(decoded)

  def _take(self) -> None:
    """Takes requests until every slot could be filled with a row that waits."""
    while len(self._waiting) < self._engine._slots:
      taken = next(self._requests, None)
      if taken is None:
        return
      number, request = taken
      decoding = request.decoding or self._engine._decoding
      candidates = range(decoding.num_candidates)
      self._waiting.extend(_Row(number, candidate, request, decoding) for candidate in candidates)

  def _fill(self) -> None:
    """Encodes waiting rows and admits them while there are free slots."""
    engine = self._engine
    while True:
      self._take()
      if not any(self._rows) and not self._encoded:
        # The table of slots is made anew for the rows that are there.
        few = len(self._waiting) <= engine._few_slots
        self._rows = [None] * (engine._few_slots if few else engine._slots)
        self._slots = None
      if not self._encoded:
        if not self._waiting or all(self._rows):
          return
        self._encode()
      free = [number for number, row in enumerate(self._rows) if row is None]
      if not free:
        return
      self._admit(free[: self._admitted_at_a_time])

  @property
  def _admitted_at_a_time(self) -> int:
    return max(self._engine._slots // 8, 1)

  def _encode(self) -> None:
    """Encodes as many of the first waiting rows as fit into the encoder's packed rows."""
    engine = self._engine
    inputs: dict[int, Sequence[int]] = {row.number: row.request.ids for row in self._waiting}
    packed: PackedInputs = pack(
      inputs, engine._packed_rows, engine._mesh.shape["data"], engine._pad_id
    )
    for _ in range(len(self._waiting)):
      row = self._waiting.popleft()
      if row.number in packed.places:
        row.place = packed.places[row.number]
        self._encoded.append(row)
      else:
        self._waiting.append(row)
    self._packed = engine._encode(
      engine.weights, tokens_BL=packed.tokens_RW, segment_ids_BL=packed.segment_ids_RW
    )
    source = padded_length(max(len(row.request.ids) for row in self._encoded), 32)
    if self._slots is None:
      cache = _cache_length([row.request.max_tokens for row in self._encoded], 0)
      self._slots = engine._empty(len(self._rows), cache, source)
      self._keep = np.ones(len(self._rows), bool)
    else:
      self._lengthen(source=source)

  def _admit(self, free: list[int]) -> None:
    assert self._slots is not None
    count, length = self._admitted_at_a_time, self._slots.source_length
    entering = list(zip(self._encoded, free, strict=False))
    admission = device.Admission(
      slots_A=np.full(count, len(self._rows), np.int32),
      sources_AL=np.zeros((count, length), np.int32),
      masks_AL=np.zeros((count, length), bool),
      starts_A=np.zeros(count, np.int32),
      limits_A=np.zeros(count, np.int32),
      identities_A2=np.zeros((count, 2), np.uint32),
      sampling=Sampling.of([row.decoding for row, _ in entering], count),
    )
    for index, slot in enumerate(free[: len(self._encoded)]):
      row = self._encoded.popleft()
      self._rows[slot] = row
      ids = row.request.ids
      admission.slots_A[index] = slot
      admission.sources_AL[index, : len(ids)] = row.place + np.arange(len(ids))
      admission.masks_AL[index, : len(ids)] = True
      admission.starts_A[index] = self._engine.start_of(row.request)
      admission.limits_A[index] = row.request.max_tokens
      admission.identities_A2[index] = identity(ids), row.candidate
      self._keep[slot] = True
    self._slots = self._engine._admit(self._slots, self._packed, admission)

  def _make_room(self) -> None:
    """Lengthens the cache if it is full, and moves the last rows, if few, to fewer slots."""
    assert self._slots is not None
    live = [row for row in self._rows if row is not None]
    limits = [row.request.max_tokens for row in live]
    position = max(len(row.ids) for row in live)
    length = self._slots.cache_length
    # Full, or made for shorter answers than those of rows that have entered since.
    if position >= length or (max(limits) > length and length not in CACHE_LENGTHS):
      self._lengthen(cache=_cache_length(limits, position))
    few = self._engine._few_slots
    is_tail = not (self._waiting or self._encoded) and len(live) <= few < len(self._rows)
    if is_tail and max(row.request.max_tokens - len(row.ids) for row in live) >= STEPS:
      self._move_to(few)

  def _lengthen(self, *, cache: int = 0, source: int = 0) -> None:
    assert self._slots is not None
    cache = max(cache, self._slots.cache_length)
    source = max(source, self._slots.source_length)
    if (cache, source) != (self._slots.cache_length, self._slots.source_length):
      self._slots = self._engine._lengthen(self._slots, cache_length=cache, source_length=source)

  def _move_to(self, size: int) -> None:
    order = [number for number, row in enumerate(self._rows) if row is not None]
    spare = size - len(order)
    self._rows = [*(self._rows[number] for number in order), *[None] * spare]
    self._slots = self._engine._gather(
      self._slots, np.array(order + [0] * spare, np.int32), np.arange(size) < len(order)
    )
    self._keep = np.ones(size, bool)

  def _advance(self) -> device.Decoded:
    assert self._slots is not None
    live = [row for row in self._rows if row is not None]
    room = self._slots.cache_length - max(len(row.ids) for row in live)
    waits = bool(self._waiting or self._encoded)
    # Rows that wait enter a few at a time, since each visit of the host takes time, too.
    most_ends = self._admitted_at_a_time if waits else len(self._rows) + 1
    most_listed = max(row.decoding.top_log_probabilities for row in live)
    top_count = next(count for count in _TOP_COUNTS if count >= most_listed)
    self._slots, decoded = self._engine._advance(
      self._engine.weights,
      self._slots,
      self._keep,
      np.int32(min(room, STEPS)),
      np.int32(most_ends),
      is_plain=not any(row.decoding.temperature or row.decoding.log_probabilities for row in live),
      top_count=min(top_count, self._engine._model.vocab_size or top_count),
    )
    return jax.device_get(decoded)

  def _harvest(self, decoded: device.Decoded) -> Iterator[Piece]:
    """Yields the new tokens of each row, and frees the slots of rows that have ended."""
    for slot, row in enumerate(self._rows):
      if row is None:
        continue
      count = decoded.counts_B[slot]
      ids = decoded.tokens_SB[:count, slot].tolist()
      row.ids += ids
      is_last = not decoded.live_B[slot]
      if not is_last and self._is_complete and self._is_complete(row.number, row.ids):
        is_last = True
      if is_last:
        self._rows[slot] = None
        self._keep[slot] = False
      logs: list[float] = []
      if row.decoding.log_probabilities:
        logs = decoded.log_probabilities_SB[:count, slot].tolist()
      alternatives = []
      if most := row.decoding.top_log_probabilities:
        listed = (decoded.top_tokens_SBJ, decoded.top_log_probabilities_SBJ)
        ids_and_logs = (values[:count, slot, :most].tolist() for values in listed)
        alternatives = [list(zip(*step, strict=True)) for step in zip(*ids_and_logs, strict=True)]
      yield Piece(row.number, row.candidate, ids, logs, is_last, alternatives=alternatives)


def _cache_length(limits: Sequence[int], position: int) -> int:
  """Returns a length of caches for rows with these limits, the longest of which is at position."""
  needed = -(-max(limits) // 8) * 8
  return min(next((length for length in CACHE_LENGTHS if length > position), needed), needed)


def identity(ids: Sequence[int]) -> int:
  """Returns a number of 32 bits that tells an input from others, whatever its place in a file."""
  digest = hashlib.sha256(np.asarray(ids, np.int32).tobytes()).digest()
  return int.from_bytes(digest[:4], "little")
