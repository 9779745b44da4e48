"""The step profile: times of a trace, and operations of a compiled program."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def profile(monkeypatch):
  monkeypatch.syspath_prepend(BENCHMARKS)
  return importlib.import_module("step_profile")


def test_concurrent_operations_share_the_time(profile):
  events = [profile.Event(*event) for event in ((0, 10, "a"), (4, 8, "b"), (8, 10, "c"))]
  assert profile.time_taken(events) == {"a": 4 + 2 + 1, "b": 2, "c": 1}


def test_idle_time_belongs_to_the_operation_that_ended_last(profile):
  """b ends after a, though a began later; then c runs alone, and b again."""
  runs = ((0, 9, "b"), (2, 4, "a"), (12, 13, "c"), (15, 16, "b"))
  events = [profile.Event(*event) for event in runs]
  assert profile.time_taken(events) == {"b": 8 + 3 + 1, "a": 1, "c": 3}


PROGRAM = """HloModule jit__train_step

%fused.1 (p: f32[9,6]) -> f32[9,6] {
  %p = f32[9,6]{1,0} parameter(0)
  ROOT %dot.9 = f32[9,6]{1,0} dot(%p, %p), lhs_batch_dims={0}, metadata={op_name="inner"}
}

ENTRY %main (a: f32[9,6]) -> f32[9,6] {
  %ynn.1 = f32[9,6]{1,0} fusion(%a), calls=%fused.1, metadata={op_name="SCOPE/reduce_max"}
  ROOT %loop.2 = f32[9,6]{1,0} multiply(%ynn.1, %a), metadata={op_name="SCOPE/mul" id=3}
}
"""


def test_a_fusion_has_the_kind_of_what_is_fused_into_it(profile):
  found = profile.operations(PROGRAM.replace("SCOPE", "Transformer/layers_0/attention"))
  assert found["ynn.1"].scope == "Transformer/layers_0/attention/reduce_max"
  assert profile.kind(found["ynn.1"]) == "products of attention"
  assert profile.kind(found["loop.2"]) == "softmax of attention"


@pytest.mark.parametrize(
  ("text", "scope", "kind"),
  [
    ("dot.1 = f32[] dot(%x, %y)", "Transformer/attention/query/dot_general", "weights"),
    ("dot.1 = f32[] dot(%x, %y)", "jvp(cross_entropy)/dot_general", "the vocabulary"),
    ("exp.1 = f32[] exp(%x)", "jvp(cross_entropy)/exp", "softmax over the vocabulary"),
    ("transpose_copy.1 = f32[] fusion(%x)", "Transformer/mul", "copies and transposes"),
    ("select.1 = f32[] fusion(%x)", "Transformer/attention/dropout/select", "dropout"),
    ("add.1 = f32[] fusion(%x)", "Transformer/mlp/add", "norms, activations and sums"),
    ("add.1 = f32[] fusion(%x)", "optimizer/add", "optimizer"),
    ("add.1 = s32[] add(%x)", "step/add", "other"),
  ],
)
def test_kinds_of_work(profile, text, scope, kind):
  assert profile.kind(profile.Operation(text, scope)).removeprefix("products of ") == kind
