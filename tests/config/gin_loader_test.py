"""The strict gin loader: what gin accepts silently is one sentence with the binding's name."""

import dataclasses
import math
import re

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dss_jax.cli import main as cli
from dss_jax.config.gin_loader import Binding, load_config, parse_binding, to_gin
from dss_jax.config.schema import (
  DEFAULT_STUDENT,
  DataConfig,
  EvaluationConfig,
  LossConfig,
  MeshConfig,
  OptimizerConfig,
  RunConfig,
  SweepConfig,
  T5Config,
  flatten,
  shipped_folder,
)
from dss_jax.errors import UserError

GIN = shipped_folder("gin_configs")
# Those of t5x/ are for T5X's own loader (tests/t5x/gin_files_test.py).
SHIPPED = sorted(path for path in GIN.rglob("*.gin") if path.parent.name != "t5x")


@pytest.fixture
def load(tmp_path):
  """Returns a function that loads runs/distill.gin and then mine.gin, which has the text."""

  def load(text="", overrides=(), model_dir="MODEL_DIR = 'runs/x'\n"):
    (tmp_path / "mine.gin").write_text(model_dir + text, encoding="utf-8")
    return load_config(RunConfig, ["runs/distill.gin", str(tmp_path / "mine.gin")], overrides)

  return load


@pytest.fixture
def refused(load):
  """Returns a function from gin text to its error message, without the place, which it checks."""

  def refused(text, line=2, **more):
    with pytest.raises(UserError) as caught:
      load(text, **more)
    sentence = str(caught.value)
    assert "\n" not in sentence
    place = f"mine.gin:{line}: "
    assert place in sentence, sentence
    return sentence.split(place)[1]

  return refused


def test_values_are_set_in_their_fields(load):
  config = load("TRAIN_STEPS = 7\nMeshConfig.model = 2\nOptimizerConfig.clip_norm = None\n")
  assert config.train_steps == 7
  assert config.mesh == MeshConfig(data=None, model=2)
  assert config.optimizer.clip_norm is None
  assert config.student == "small"
  assert config.model.mlp_dim == 1024


def test_an_unknown_binding_is_refused_with_a_suggestion(refused):
  assert refused("RunConfig.trian_steps = 3\n").startswith(
    "nothing is named 'RunConfig.trian_steps'; did you mean RunConfig.train_steps"
  )
  assert refused("OptimiserConfig.name = 'adamw'\n").startswith("nothing is named")
  assert refused("seqio.SentencePieceVocabulary.extra_ids = 100\n").startswith("nothing is named")
  assert refused("train.RunConfig.seed = 1\n").startswith("nothing is named")


def test_an_unused_macro_is_refused(refused):
  assert refused("TRAIN_STEP = 3\n") == "no binding uses 'TRAIN_STEP'; did you mean TRAIN_STEPS?"
  # A macro that only another unused macro uses is unused as well.
  assert "no binding uses 'OUTER'" in refused("OUTER = %INNER\nINNER = 1\n")


def test_an_undefined_macro_is_refused(refused):
  sentence = refused("RunConfig.seed = %SEDE\n")
  assert sentence.startswith("RunConfig.seed uses the macro %SEDE, which nothing defines")
  assert "did you mean SEED" in sentence
  assert "%SEDE" in refused("SEED = %SEDE\n")
  assert "%LONG" in refused("TASK_FEATURE_LENGTHS = {'inputs': %LONG, 'targets': 3}\n")


def test_a_macro_of_itself_is_refused(refused):
  assert "the macro %SEED is defined by itself" in refused("SEED = %SEED\n")
  assert "defined by itself" in refused("SEED = %OTHER\nOTHER = %SEED\n", line=3)


def test_an_unset_required_is_refused(load, tmp_path):
  with pytest.raises(UserError, match=r"MODEL_DIR is required; set it with --gin.MODEL_DIR=VALUE"):
    load(model_dir="")
  with pytest.raises(UserError, match=r"mine\.gin:2: RunConfig\.seed is required"):
    load("RunConfig.seed = %gin.REQUIRED\n")
  with pytest.raises(UserError, match=r"RunConfig\.student is not set; set it with --gin\.Run"):
    load_config(RunConfig, [], [Binding("RunConfig.model_dir", "x", "here")])


@pytest.mark.parametrize(
  ("binding", "must_be"),
  [
    ("RunConfig.train_steps = '300'", "a whole number"),
    ("RunConfig.train_steps = 300.0", "a whole number"),
    ("RunConfig.train_steps = True", "a whole number"),
    ("RunConfig.model_dir = 3", "a text in quotes"),
    ("RunConfig.model_dir = None", "a text in quotes"),
    ("LossConfig.alpha = '0.5'", "a number"),
    ("LossConfig.alpha = False", "a number"),
    ("EvaluationConfig.early_stopping = 1", "True or False"),
    ("EvaluationConfig.early_stopping = 'False'", "True or False"),
    ("DataConfig.dataset = ['a.jsonl']", "a text in quotes or None"),
    ("DataConfig.label_source = 'silver'", "one of 'gold', 'teacher'"),
    ("OptimizerConfig.name = 'sgd'", "one of 'adafactor', 'adamw'"),
    ("OptimizerConfig.clip_norm = 'no'", "a number or None"),
    ("T5Config.mlp_activations = ('swish',)", "each one of 'gelu', 'relu', 'silu', 'linear'"),
    ("T5Config.mlp_activations = 'gelu'", "a tuple"),
    ("T5Config.mlp_activations = ()", "a tuple of at least one"),
    ("TASK_FEATURE_LENGTHS = {'inputs': 10}", "the key 'targets' too"),
    ("TASK_FEATURE_LENGTHS = {'inputs': 10, 'targets': 'all'}", "a whole number"),
    ("TASK_FEATURE_LENGTHS = {'inputs': 10, 'outputs': 10}", "one of 'inputs', 'targets'"),
    ("TASK_FEATURE_LENGTHS = {'inputs': 1, 'targets': 10}", "at least 2"),
    ("TeacherConfig.filters = ('shape',)", "each one of 'agreement', 'gold'"),
    ("TeacherConfig.rationale_words = (3,)", "a tuple of 2"),
    ("TeacherConfig.rationale_words = (3, -1)", "each at least 0"),
    ("TASK_FEATURE_LENGTHS = 512", "a dictionary"),
  ],
)
def test_a_wrong_type_is_refused(refused, binding, must_be):
  sentence = refused(binding + "\n")
  assert " must be " in sentence
  assert must_be in sentence.split(" must be ")[1]


@pytest.mark.parametrize(
  ("binding", "must_be"),
  [
    ("TRAIN_STEPS = 0", "at least 1"),
    ("BATCH_SIZE = -24", "at least 1"),
    ("ALPHA = 1.5", "from 0 to 1"),
    ("ALPHA = -0.1", "from 0 to 1"),
    ("SEED = -1", "from 0 to 4294967295"),
    ("SEED = 4294967296", "from 0 to 4294967295"),
    ("DROPOUT_RATE = 1.0", "from 0 to 0.99"),
    ("LEARNING_RATE_MULTIPLIER = -1", "at least 0"),
    ("LEARNING_RATE_MULTIPLIER = 1e999", "a finite number"),
    (f"LEARNING_RATE_MULTIPLIER = 1{'0' * 400}", "a finite number"),
    ("OptimizerConfig.clip_norm = 0", "at least 1e-09"),
    ("T5Config.vocab_size = 0", "at least 1"),
  ],
)
def test_a_value_out_of_bounds_is_refused(refused, binding, must_be):
  assert must_be in refused(binding + "\n")


def test_the_bounds_themselves_are_allowed(load):
  config = load("ALPHA = 1\nSEED = 4294967295\nDROPOUT_RATE = 0.99\nTRAIN_STEPS = 1\n")
  assert config.loss.alpha == 1.0
  assert isinstance(config.loss.alpha, float)
  assert config.seed == 2**32 - 1


def test_nan_is_refused(load):
  binding = Binding("ALPHA", math.nan, "--alpha")
  with pytest.raises(UserError, match=r"^--alpha: LossConfig.alpha = nan must be a finite number"):
    load(overrides=[binding])


def test_an_error_names_the_place_of_the_literal_behind_a_macro(load):
  with pytest.raises(UserError, match=r"^--batch-size: RunConfig.batch_size = 0 must be at least"):
    load(overrides=[Binding("BATCH_SIZE", 0, "--batch-size")])


def test_later_bindings_win(load):
  assert load("SEED = 1\nSEED = 2\n").seed == 2
  assert load("SEED = 1\n", overrides=[Binding("SEED", 3, "a"), Binding("SEED", 4, "b")]).seed == 4


def test_a_field_wins_over_the_macro_of_a_file_before_it(load):
  """The shipped file binds the field to a macro, which is then unused, but not by mistake."""
  assert load("RunConfig.seed = 5\n").seed == 5
  assert load("SEED = %OTHER\nOTHER = 3\n", [Binding("SEED", 6, "a")]).seed == 6


def test_an_include_and_what_follows_it(tmp_path):
  (tmp_path / "inner.gin").write_text("SEED = 5\nTRAIN_STEPS = 5\n")
  outer = tmp_path / "outer.gin"
  outer.write_text(
    f"include 'runs/distill.gin'\ninclude '{tmp_path}/inner.gin'\nSEED = 6\nMODEL_DIR = 'x'\n"
  )
  config = load_config(RunConfig, [str(outer)])
  assert (config.seed, config.train_steps) == (6, 5)


def test_a_missing_file_is_named_with_the_includer(refused_file):
  assert "there is no gin file 'absent.gin'" in refused_file("include 'absent.gin'\n")
  with pytest.raises(UserError, match=r"^there is no gin file 'absent.gin'"):
    load_config(RunConfig, ["absent.gin"])


def test_a_file_that_includes_itself_is_refused(tmp_path, refused_file):
  assert "includes itself" in refused_file(f"include '{tmp_path}/mine.gin'\n")
  (tmp_path / "other.gin").write_text(f"include '{tmp_path}/mine.gin'\n")
  assert "includes itself" in refused_file(f"include '{tmp_path}/other.gin'\n")


@pytest.fixture
def refused_file(tmp_path):
  """Returns a function from a gin file's content to its error message."""

  def refused_file(content):
    path = tmp_path / "mine.gin"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
      load_config(RunConfig, [str(path)])
    assert "\n" not in str(caught.value)
    assert "mine.gin" in str(caught.value)
    return str(caught.value)

  return refused_file


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("import os\n", "imports code"),
    ("from os import path\n", "imports code"),
    ("RunConfig.seed = @os.getpid()\n", "@os.getpid would call code"),
    ("RunConfig.seed = @anything\n", "@anything would call code"),
    ("TASK_FEATURE_LENGTHS = {'inputs': @a(), 'targets': 3}\n", "@a would call code"),
    ("train/RunConfig.seed = 1\n", "the scope 'train' means nothing here"),
    ("RunConfig.seed =\n", "this is not gin"),
    ("RunConfig.seed = unquoted\n", "this is not gin"),
    ("RunConfig.seed = 1 +\n", "this is not gin"),
    ("RunConfig.seed = (1,\n", "this is not gin"),
    ("RunConfig.model_dir = 'open\n", "this is not gin"),
    ("= 3\n", "this is not gin"),
    ("{}\n", "this is not gin"),
    (b"RunConfig.model_dir = '\xff'\n", "cannot be read as UTF-8 text"),
  ],
)
def test_a_file_of_anything_but_literal_bindings_is_refused(refused_file, text, words):
  if isinstance(text, str) and text.startswith("TASK"):
    text = f"include 'runs/distill.gin'\nMODEL_DIR = 'x'\n{text}"
  assert words in refused_file(text)


@pytest.mark.parametrize(
  "text",
  ["", "SEED", "SEED=", "=3", "SEED=1\nSEED=2", "import os", "a/SEED=1", "SEED=x", "SEED=(1"],
)
def test_a_flag_that_is_not_one_binding_is_refused(text):
  with pytest.raises(UserError, match=r"^--gin: [^\n]*$"):
    parse_binding(text, "--gin")


def test_a_flag_cannot_include_a_file():
  with pytest.raises(UserError, match=r"^--gin: includes a file, which a flag cannot"):
    parse_binding("include 'gin_configs/runs/tune.gin'", "--gin")


@pytest.mark.parametrize(
  ("text", "name", "value"),
  [
    ("SEED=3", "SEED", 3),
    ("RunConfig.model_dir='a b'", "RunConfig.model_dir", "a b"),
    ('MODEL_DIR = "x"', "MODEL_DIR", "x"),
    ("T5Config.mlp_activations=('relu',)", "T5Config.mlp_activations", ("relu",)),
  ],
)
def test_a_flag_is_parsed_as_a_binding(text, name, value):
  assert parse_binding(text, "--gin") == Binding(name, value, "--gin")


text_values = st.text(min_size=0, max_size=20)
lengths = st.fixed_dictionaries({"inputs": st.integers(2, 9999), "targets": st.integers(2, 9999)})
finite = st.floats(0, 1e6, allow_nan=False)


@given(
  st.builds(
    RunConfig,
    model_dir=text_values,
    student=text_values,
    model=st.builds(
      T5Config,
      emb_dim=st.integers(1, 99),
      num_heads=st.integers(1, 99),
      head_dim=st.integers(1, 99),
      mlp_dim=st.integers(1, 99),
      num_encoder_layers=st.integers(1, 99),
      num_decoder_layers=st.integers(1, 99),
      vocab_size=st.none() | st.integers(1, 99),
      mlp_activations=st.sampled_from([("relu",), ("gelu", "linear")]),
      dtype=st.sampled_from(["float32", "bfloat16"]),
    ),
    data=st.builds(
      DataConfig, dataset=st.none() | text_values, feature_lengths=lengths, vocabulary=text_values
    ),
    loss=st.builds(LossConfig, alpha=st.floats(0, 1), z_loss=finite),
    optimizer=st.builds(
      OptimizerConfig, base_learning_rate=finite, clip_norm=st.none() | st.floats(1e-9, 1e9)
    ),
    evaluation=st.builds(EvaluationConfig, early_stopping=st.booleans()),
    mesh=st.builds(MeshConfig, data=st.none() | st.integers(1, 9)),
    seed=st.integers(0, 2**32 - 1),
  )
)
def test_to_gin_round_trips(tmp_path_factory, config):
  path = tmp_path_factory.getbasetemp() / "config.gin"
  path.write_text(to_gin(config), encoding="utf-8")
  assert load_config(RunConfig, [str(path)]) == config


def test_to_gin_names_every_field(load):
  text = to_gin(load())
  assert [line.split(" = ")[0] for line in text.splitlines()] == sorted(flatten(load()))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(GIN)))
class TestShippedFile:
  def test_loads(self, path):
    kind = path.parent.name
    if kind == "sweeps":
      for name, values in load_config(SweepConfig, [str(path)]).grid.items():
        # A kind and a student are gin files.
        for value in values if name not in ("KIND", "STUDENT") else ():
          overrides = [Binding("MODEL_DIR", "x", "test"), Binding(name, value, "test")]
          load_config(RunConfig, ["runs/distill.gin"], overrides)
      return
    files = [str(path)] if kind == "runs" else ["runs/distill.gin", str(path)]
    config = load_config(RunConfig, files, [Binding("MODEL_DIR", "x", "test")])
    if kind == "models":
      assert config.student == path.stem

  def test_opens_with_a_command_that_exists(self, path):
    lines = path.read_text(encoding="utf-8").splitlines()
    opening = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    text = "\n".join(line.removeprefix("#").strip() for line in opening)
    command = re.search(r"^dss .*(?:\\\n.*)*", text, re.MULTILINE)
    assert command, "its opening comment contains no `dss` command"
    name, *words = command.group().replace("\\\n", " ").split()[1:]
    flags = [word.split("=")[0] for word in words if word.startswith("--")]
    options = cli.dss.get_command(click.Context(cli.dss), name).params
    known = {option for parameter in options for option in parameter.opts}
    for flag in flags:
      assert flag in known or (name == "train" and flag.startswith("--gin.")), flag
    for word in re.findall(r"gin_configs/\S+\.gin", text):
      assert (GIN.parent / word).is_file(), word
    # A kind of distillation is written with hyphens.
    assert path.stem.replace("-", "_") in command.group().replace("-", "_")

  def test_is_40_lines_or_less(self, path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40


def test_there_are_shipped_files():
  assert len(SHIPPED) >= 9


def test_the_shipped_run_has_the_schema_s_defaults():
  """distill.gin repeats defaults, to define the macros; here they are held equal."""
  config = load_config(RunConfig, ["runs/distill.gin"], [Binding("MODEL_DIR", "x", "test")])
  assert config.student == DEFAULT_STUDENT
  sizes = [field for field in dataclasses.fields(T5Config) if field.default is dataclasses.MISSING]
  model = T5Config(**{field.name: getattr(config.model, field.name) for field in sizes})
  assert config == RunConfig(model_dir="x", student=DEFAULT_STUDENT, model=model, data=DataConfig())


def test_tune_is_distill_with_the_label_alone():
  bindings = [Binding("MODEL_DIR", "x", "test")]
  tune = load_config(RunConfig, ["runs/tune.gin"], bindings)
  distill = load_config(RunConfig, ["runs/distill.gin"], bindings)
  assert tune.loss.alpha == 1.0
  assert dataclasses.replace(tune, loss=distill.loss) == distill
