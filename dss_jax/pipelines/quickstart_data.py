"""Synthetic rows for the quickstart: a description of a hotel, and a question about one part.

Each part has its own sixteen adjectives, eight good and eight bad. The label judges the part in
question; the rationale judges every part and ends with the label. A label thus gives the meaning
of one adjective, its rationale that of nine, which helps the student when there are few rows.
"""

import io
import os
import random
from collections.abc import Iterable

import sentencepiece

from dss_jax.data.records import Row
from dss_jax.storage.atomic import write_bytes

# part: (good adjectives, bad adjectives). None appears twice, so that its meaning can only be
# learnt from rows that use it.
_ADJECTIVES: dict[str, tuple[str, str]] = {
  "bed": (
    "soft springy snug plush roomy restful downy cushioned",
    "lumpy saggy creaky narrow hard sunken slanted threadbare",
  ),
  "bath": (
    "sparkling tiled scrubbed steamy gleaming sanitised heated spotless",
    "mouldy leaky clogged rusty slimy cracked dripping flooded",
  ),
  "food": (
    "tasty fresh savoury crisp juicy spicy ripe delicious",
    "stale burnt bland soggy greasy rancid raw salty",
  ),
  "staff": (
    "kind helpful polite cheerful attentive friendly patient gracious",
    "rude surly lazy careless impatient gruff sullen curt",
  ),
  "view": (
    "scenic sweeping sunny panoramic leafy coastal majestic picturesque",
    "blocked bleak walled grey grim obstructed dreary ugly",
  ),
  "wifi": (
    "fast stable instant reliable seamless unlimited quick strong",
    "slow patchy broken dropping capped laggy faint dead",
  ),
  "pool": (
    "clear warm deep inviting turquoise filtered shaded refreshing",
    "murky icy shallow crowded cloudy drained algal scummy",
  ),
  "lobby": (
    "grand airy elegant bright stylish marble welcoming polished",
    "dingy cramped smelly shabby draughty cluttered dusty gloomy",
  ),
  "garden": (
    "lush blooming fragrant tended peaceful flowering green trimmed",
    "weedy barren muddy overgrown wilted littered parched thorny",
  ),
}


def make_rows(seed: int, num_rows: int) -> list[Row]:
  """Returns `num_rows` rows with distinct inputs, a pure function of the arguments.

  A shorter list is a prefix of a longer one with the same seed, so training and held-out rows
  are slices of one call. Part and verdict are uniform: naming the part and guessing the verdict
  is right half the time.

  Returns:
    Rows with `input_text`, `output_text` (such as "pool bad") and `rationale`.
  """
  rng = random.Random(seed)
  adjectives = {part: (good.split(), bad.split()) for part, (good, bad) in _ADJECTIVES.items()}
  parts = list(adjectives)
  rows: dict[str, Row] = {}
  while len(rows) < num_rows:
    verdicts = {part: rng.choice(("good", "bad")) for part in parts}
    described = ", ".join(
      f"{rng.choice(adjectives[part][verdicts[part] == 'bad'])} {part}" for part in parts
    )
    asked = rng.choice(parts)
    label = f"{asked} {verdicts[asked]}"
    findings = " ".join(f"{part} {verdicts[part]}" for part in parts)
    text = f"how is the {asked} in a hotel with {described}"
    rows.setdefault(
      text, {"input_text": text, "output_text": label, "rationale": f"{findings} so {label}"}
    )
  return list(rows.values())


def write_vocabulary(path: str | os.PathLike[str], rows: Iterable[Row]) -> None:
  """Writes a SentencePiece model of the rows' words, with T5's ids for pad, end and unknown."""
  keys = ("input_text", "output_text", "rationale")
  texts = [f"predict: explain: {row[key]}" for row in rows for key in keys]
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts),
    model_writer=model,
    model_type="word",
    vocab_size=400,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    character_coverage=1.0,
    num_threads=1,
    minloglevel=2,
  )
  write_bytes(path, model.getvalue())
