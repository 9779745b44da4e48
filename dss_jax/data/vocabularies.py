"""Vocabularies: text to token ids and back, as in SeqIO, without importing SeqIO.

Padding is id 0 in all of them. `encode` adds no end mark; `decode` stops at the first one.
"""

import abc
import hashlib
import os
import pathlib
import struct
import threading
import urllib.request
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dss_jax.errors import UserError
from dss_jax.storage.atomic import make_folder, write_bytes
from dss_jax.storage.cache import cache_folder
from dss_jax.storage.files import is_url, open_bytes, reason

T5_VOCABULARY = "gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model"
MT5_VOCABULARY = "gs://t5-data/vocabs/mc4.250000.100extra/sentencepiece.model"

# T5X reserves 100 sentinels after a SentencePiece model's pieces; ByT5 has 384 ids in all.
SENTENCEPIECE_EXTRA_IDS = 100
BYTE_EXTRA_IDS = 125
_FIRST_SENTINEL = b"<extra_id_0>"

_COPY_NAME = "sentencepiece.model"
_FETCH_SECONDS = 60.0
_CONTEXT_IDS = 16
_PUBLIC_BUCKET = "gs://t5-data/"
_FIX = "pass a file of your own (`--vocabulary FILE`) or `--vocabulary bytes`"


class RoundTrip(NamedTuple):
  """What becomes of a text when it is encoded and decoded.

  Attributes:
    tokens: number of its ids, without an end mark.
    text: the text of these ids: what the vocabulary can write of the given one.
    has_unknown: whether the vocabulary lacks some of its characters.
  """

  tokens: int
  text: str
  has_unknown: bool


class Vocabulary(abc.ABC):
  """A mapping of text to token ids 0 to `size` - 1, the extra ids (sentinels) last.

  Attributes:
    spec: the argument of load_vocabulary.
    size: number of ids, extra ids included.
    digest: equal for two vocabularies if and only if they give the same ids.
    special_pieces: the texts of the ids pad_id, eos_id and unk_id.
  """

  spec: str
  size: int
  digest: str
  # SeqIO's and T5X's; a file with another one is refused.
  pad_id = 0
  eos_id: int
  unk_id: int
  extra_ids: int
  special_pieces: tuple[str, str, str]

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """Returns the ids of the text, without an end mark."""

  @abc.abstractmethod
  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text up to the first end mark; ignores padding; accepts unknown ids."""

  def texts_after(self, before: Sequence[int], ids: Sequence[int]) -> list[str]:
    """Returns what each of the ids would add to the text of those before it.

    At the start of the text, without a space. The end mark adds its name, `</s>`.
    """
    # More ids change nothing but the time.
    last = list(before[-_CONTEXT_IDS:])
    length = len(self.decode(last))
    _, end, _ = self.special_pieces
    return [end if one == self.eos_id else self.decode([*last, one])[length:] for one in ids]

  @abc.abstractmethod
  def count_tokens(self, texts: Sequence[str]) -> list[int]:
    """Returns the number of ids of each text, without end marks."""

  @abc.abstractmethod
  def round_trips(self, texts: Sequence[str]) -> list[RoundTrip]:
    """Returns what becomes of each text when it is encoded and decoded."""

  def writable(self, texts: Iterable[str]) -> list[str]:
    """Returns each text as this vocabulary can write it: decode(encode(text)).

    A SentencePiece model merges spaces, normalises characters and has no pieces for some.
    """
    return [trip.text for trip in self.round_trips(list(texts))]

  @abc.abstractmethod
  def to_seqio(self) -> Any:
    """Returns the SeqIO vocabulary with the same ids; imports seqio, and so TensorFlow."""

  @abc.abstractmethod
  def save_copy(
    self, directory: str | os.PathLike[str], name: str = _COPY_NAME
  ) -> pathlib.Path | None:
    """Writes the model file into an existing directory; returns its path, None without a file."""

  def _until_eos(self, ids: Iterable[int]) -> list[int]:
    kept = [int(i) for i in ids]
    return kept[: kept.index(self.eos_id)] if self.eos_id in kept else kept


class ByteVocabulary(Vocabulary):
  """ByT5's ids: pad 0, end 1, unknown 2, byte b is b + 3, then 125 sentinels (384 in all)."""

  spec = "bytes"
  eos_id = 1
  unk_id = 2
  special_pieces = ("<pad>", "</s>", "<unk>")
  extra_ids = BYTE_EXTRA_IDS
  size = 3 + 256 + BYTE_EXTRA_IDS
  digest = "bytes-384"

  def encode(self, text: str) -> list[int]:
    return [byte + 3 for byte in text.encode("utf-8")]

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text; ids that are not bytes, and invalid UTF-8, are dropped as in SeqIO."""
    kept = bytes(i - 3 for i in self._until_eos(ids) if 3 <= i < 259)
    return kept.decode("utf-8", errors="ignore")

  def count_tokens(self, texts: Sequence[str]) -> list[int]:
    return [len(text.encode("utf-8")) for text in texts]

  def round_trips(self, texts: Sequence[str]) -> list[RoundTrip]:
    return [RoundTrip(len(text.encode("utf-8")), text, has_unknown=False) for text in texts]

  def to_seqio(self) -> Any:
    import seqio

    return seqio.ByteVocabulary(extra_ids=self.extra_ids)

  def save_copy(self, directory: str | os.PathLike[str], name: str = _COPY_NAME) -> None:
    return None


class SentencePieceVocabulary(Vocabulary):
  """A SentencePiece model with 100 sentinels after its pieces, `<extra_id_0>` last.

  Equal to seqio.SentencePieceVocabulary(file, extra_ids=100). A model with sentinels of its own,
  such as mT5's, gets no more: extra_ids=0.
  """

  extra_ids = SENTENCEPIECE_EXTRA_IDS

  def __init__(self, spec: str, path: pathlib.Path, model: bytes):
    """Raises UserError if `model`, the bytes of the file at `path`, is not a usable model."""
    self.spec = spec
    self.path = path
    self._model = model
    if _FIRST_SENTINEL in model:
      # mT5's model has its sentinels, and its checkpoints have no embedding rows for more.
      self.extra_ids = 0
    self._processor = _load_processor(spec, model, self.extra_ids)
    self.size = self._processor.GetPieceSize()
    self.eos_id = self._processor.eos_id()
    self.unk_id = self._processor.unk_id()
    pad, eos, unk = map(self._processor.IdToPiece, (self.pad_id, self.eos_id, self.unk_id))
    self.special_pieces = (pad, eos, unk)
    self.digest = hashlib.sha256(model + b"+%d" % self.extra_ids).hexdigest()

  @property
  def serialized(self) -> bytes:
    """The model as a protocol buffer, sentinels included."""
    return self._model + _sentinel_bytes(self.extra_ids)

  def encode(self, text: str) -> list[int]:
    return self._processor.EncodeAsIds(text)

  def decode(self, ids: Iterable[int]) -> str:
    known = [i if 0 <= i < self.size else self.unk_id for i in self._until_eos(ids)]
    return self._processor.DecodeIds([i for i in known if i != self.pad_id])

  def count_tokens(self, texts: Sequence[str]) -> list[int]:
    return [len(ids) for ids in self._processor.Encode(list(texts), out_type=int)]

  def round_trips(self, texts: Sequence[str]) -> list[RoundTrip]:
    encoded = self._processor.Encode(list(texts), out_type=int)
    written = self._processor.Decode(encoded) if encoded else []
    return [
      RoundTrip(len(ids), text, has_unknown=self.unk_id in ids)
      for ids, text in zip(encoded, written, strict=True)
    ]

  def to_seqio(self) -> Any:
    import seqio

    return seqio.SentencePieceVocabulary(str(self.path), extra_ids=self.extra_ids)

  def save_copy(self, directory: str | os.PathLike[str], name: str = _COPY_NAME) -> pathlib.Path:
    """Writes the model file atomically and returns its path."""
    target = pathlib.Path(directory) / name
    write_bytes(target, self._model)
    return target


def load_vocabulary(spec: str | os.PathLike[str]) -> Vocabulary:
  """Returns the vocabulary of `spec`: "bytes", or the path or URL of a SentencePiece model.

  A URL is fetched once, within a minute, into DSS_CACHE_DIR (~/.cache/dss_jax), and then read
  from there. The public bucket of T5's vocabularies needs no driver.

  Raises:
    UserError: there is no such file, it cannot be fetched, or it is not a SentencePiece model
      with an end mark and with id 0 for padding.
  """
  spec = os.fspath(spec)
  if spec == "bytes":
    return ByteVocabulary()
  if not spec:
    raise UserError(f"the vocabulary is an empty name; {_FIX}")
  if is_url(spec):
    return _load_from_url(spec)
  try:
    with open_bytes(spec) as binary:
      model = binary.read()
  except UserError as error:
    problem = str(error).partition(";")[0]
    raise UserError(f"the vocabulary {problem}; {_FIX}") from None
  return SentencePieceVocabulary(spec, pathlib.Path(spec).absolute(), model)


def _load_from_url(url: str) -> Vocabulary:
  cached = _cache_path(url)
  if cached.is_file():
    return SentencePieceVocabulary(url, cached, cached.read_bytes())
  model = _fetch_within(url, _FETCH_SECONDS)
  # Checked before it is cached: a log-in page instead of the model must not be.
  vocabulary = SentencePieceVocabulary(url, cached, model)
  try:
    make_folder(cached.parent)
    write_bytes(cached, model)
  except UserError as error:
    raise UserError(
      f"the vocabulary cannot be cached at {cached} ({reason(error)}); set DSS_CACHE_DIR to a"
      " folder that you may write to"
    ) from None
  return vocabulary


def _cache_path(url: str) -> pathlib.Path:
  key = hashlib.sha256(url.encode("utf-8")).hexdigest()[:16]
  return cache_folder("vocabularies") / f"{key}.model"


def _fetch_within(url: str, seconds: float) -> bytes:
  """Returns the bytes at the URL; raises UserError if it fails or takes too long."""
  outcome: list[bytes | BaseException] = []

  def fetch() -> None:
    try:
      outcome.append(_fetch(url, seconds))
    except Exception as error:
      outcome.append(error)

  # Name look-ups and a cloud's credential search ignore our timeout; a daemon thread can be
  # abandoned.
  worker = threading.Thread(target=fetch, daemon=True, name="vocabulary-fetch")
  worker.start()
  worker.join(seconds)
  result = outcome[0] if outcome else TimeoutError(f"no answer within {seconds:g} seconds")
  if isinstance(result, bytes):
    return result
  cause = reason(result).removeprefix(f"{url}: ")
  raise UserError(f"the vocabulary {url} cannot be fetched ({cause}); {_FIX}") from None


def _fetch(url: str, seconds: float) -> bytes:
  if url.startswith(_PUBLIC_BUCKET):
    address = "https://storage.googleapis.com/" + url.removeprefix("gs://")
    with urllib.request.urlopen(address, timeout=seconds) as reply:
      return reply.read()
  with open_bytes(url) as binary:
    return binary.read()


def _load_processor(spec: str, model: bytes, extra_ids: int) -> Any:
  import sentencepiece

  processor = sentencepiece.SentencePieceProcessor()
  try:
    # An empty file is a valid protocol buffer without pieces: it loads, and fails later at random.
    if not model:
      raise RuntimeError("the file is empty")
    processor.LoadFromSerializedProto(model)
    processor.LoadFromSerializedProto(model + _sentinel_bytes(extra_ids))
  except RuntimeError:
    raise UserError(f"the vocabulary {spec} is not a SentencePiece model; {_FIX}") from None
  _check_reserved_ids(spec, processor)
  return processor


def _check_reserved_ids(spec: str, processor: Any) -> None:
  """Raises UserError unless there is an end mark, and id 0, the padding of SeqIO and T5X, is free.

  Without a padding piece, id 0 may be another control piece, since no text is encoded to one.
  """
  pad, eos = processor.pad_id(), processor.eos_id()
  mend = "train it with --pad_id=0 --eos_id=1 --unk_id=2, or pass `--vocabulary bytes`"
  if eos < 0:
    raise UserError(
      f"the vocabulary {spec} has no end mark (its eos_id is {eos}), without which a student cannot"
      f" end an answer; {mend}"
    )
  if pad > 0 or eos == 0 or not processor.IsControl(0):
    raise UserError(
      f"the vocabulary {spec} has padding at id {pad} (pad_id), but SeqIO and T5X pad with id 0,"
      f' which is "{processor.IdToPiece(0)}" there; {mend}'
    )


def _sentinel_bytes(extra_ids: int) -> bytes:
  """Returns protocol-buffer bytes that, appended to a ModelProto, add sentinels to its pieces.

  Concatenated messages are one message with their repeated fields concatenated, so no protobuf
  library is needed. Fields of a piece: 1 text, 2 score (float 0), 3 type (4, user-defined).
  """
  parts = []
  for number in reversed(range(extra_ids)):
    text = f"▁<extra_id_{number}>".encode()
    piece = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", 0.0) + b"\x18\x04"
    parts.append(b"\x0a" + bytes([len(piece)]) + piece)
  return b"".join(parts)
