"""The configuration's dataclasses: defaults, bounds, flattening, and that every field is read."""

import ast
import dataclasses
import typing

import pytest

from dss_jax.config import schema as configs
from dss_jax.config.schema import (
  Bounds,
  DataConfig,
  DecodingConfig,
  RunConfig,
  T5Config,
  check_decoding,
  flatten,
)
from dss_jax.errors import UserError

MODEL = T5Config(
  emb_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_encoder_layers=1, num_decoder_layers=1
)
RUN = RunConfig(model_dir="runs/x", student="tiny", model=MODEL, data=DataConfig(dataset="a.jsonl"))


def test_defaults_are_the_design_s():
  assert (RUN.train_steps, RUN.batch_size, RUN.loss.alpha, RUN.seed) == (300, 24, 0.5, 0)
  assert (RUN.data.max_input_tokens, RUN.data.max_output_tokens) == (7168, 1024)
  assert (RUN.optimizer.name, RUN.optimizer.base_learning_rate) == ("adafactor", 1e-3)
  assert (RUN.optimizer.schedule, RUN.optimizer.learning_rate_multiplier) == ("constant", 1.0)
  assert RUN.evaluation.interval_steps == 20
  assert RUN.evaluation.early_stopping
  assert RUN.evaluation.checkpoint_selection


@pytest.mark.parametrize(
  ("bounds", "words"),
  [
    (Bounds(1), "at least 1"),
    (Bounds(0, 0.99), "from 0 to 0.99"),
    (Bounds(high=3), "at most 3"),
    (Bounds(0, 2**32 - 1), "from 0 to 4294967295"),
  ],
)
def test_bounds_in_words(bounds, words):
  assert str(bounds) == words


def parts_of(cls):
  """Yields (the field that holds it, a dataclass of a run), those within others, too."""
  for field in dataclasses.fields(cls):
    if dataclasses.is_dataclass(field.type):
      yield field.name, field.type
      yield from parts_of(field.type)


PARTS = dict(parts_of(RunConfig))
FIELDS = [
  (part, field)
  for part in (RunConfig, *PARTS.values(), configs.DistributedConfig)
  for field in dataclasses.fields(part)
]


def test_flatten_names_every_field_of_every_part():
  flat = flatten(RUN)
  assert flat["RunConfig.seed"] == 0
  assert flat["T5Config.emb_dim"] == 8
  assert flat["DataConfig.dataset"] == "a.jsonl"
  names = {
    f"{part.__name__}.{field.name}"
    for part, field in FIELDS
    if part in (RunConfig, *PARTS.values()) and not dataclasses.is_dataclass(field.type)
  }
  assert set(flat) == names


def test_fields_that_may_change_on_resume_exist():
  assert set(configs.MUTABLE_ON_RESUME) <= set(flatten(RUN))


@pytest.mark.parametrize(
  ("part", "field"), FIELDS, ids=lambda value: getattr(value, "__name__", None) or value.name
)
def test_every_number_has_bounds(part, field):
  def plain_numbers(hint):
    """Yields int and float wherever no Annotated gives them bounds."""
    if hint in (int, float):
      yield hint
    elif typing.get_origin(hint) is not typing.Annotated:
      for argument in typing.get_args(hint):
        yield from plain_numbers(argument)

  assert not list(plain_numbers(field.type)), f"{part.__name__}.{field.name} takes any number"


@pytest.fixture(scope="module")
def attributes_read():
  """Every attribute that the package reads, as (the last word before its point, its name)."""
  package = configs.shipped_folder("tasks").parent / "dss_jax"
  found = set()
  for path in package.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        owner = getattr(node.value, "attr", getattr(node.value, "id", ""))
        # The schema's own properties read a field of `self`.
        found.add(("config" if path.name == "schema.py" and owner == "self" else owner, node.attr))
  return found


@pytest.mark.parametrize(
  ("part", "field"), FIELDS, ids=lambda value: getattr(value, "__name__", None) or value.name
)
def test_every_field_is_read_by_the_package(attributes_read, part, field):
  """A field is read as config.FIELD, or by the name of its part, such as config.model.FIELD."""
  owners = {"config", "_config", *(name for name, cls in PARTS.items() if cls is part)}
  readers = {(owner, field.name) for owner in owners}
  assert readers & attributes_read, f"nothing reads {part.__name__}.{field.name}"


def test_shipped_students():
  assert {"tiny", "mini", "small", "base", "large", "xl", "xxl"} <= set(configs.student_names())


@pytest.mark.parametrize(
  ("settings", "sentence"),
  [
    ({"top_k": 5}, "--top-k 5 has no effect on the most likely tokens"),
    ({"top_p": 0.5}, "--top-p 0.5 has no effect on the most likely tokens"),
    ({"num_candidates": 2}, "--num-candidates 2 would be the same answer again"),
    ({"num_candidates": 4, "beams": 3}, "--num-candidates 4 would be the same answer again"),
    ({"beams": 4, "temperature": 0.5}, "--beams 4 searches and --temperature 0.5 samples"),
    ({"beams": 4, "log_probabilities": True}, "--log-probabilities are those of one answer"),
    ({"beams": 4, "stop": ("x",)}, "--stop 'x' does not end the beams of --beams 4"),
    ({"stop": ("x", "")}, "--stop '' is empty"),
    ({"temperature": float("nan")}, "--temperature nan is not a number"),
    ({"temperature": 1.0, "top_p": float("nan")}, "--top-p nan is not a number"),
  ],
)
def test_a_setting_of_decoding_without_effect_is_refused(settings, sentence):
  with pytest.raises(UserError) as caught:
    check_decoding(DecodingConfig(**settings))
  assert sentence in str(caught.value)
  assert "\n" not in str(caught.value)


def test_settings_of_decoding_that_go_together():
  check_decoding(DecodingConfig())
  check_decoding(DecodingConfig(temperature=1.0, top_k=5, top_p=0.5, num_candidates=3, stop=("x",)))
  check_decoding(DecodingConfig(beams=3, num_candidates=3))
