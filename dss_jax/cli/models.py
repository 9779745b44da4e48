"""The registry's commands, `dss models list | show | alias | delete`. Imports nothing heavy."""

import json
from typing import Any

import click

from dss_jax.cli import options
from dss_jax.cli.options import option
from dss_jax.terminal import echo


@click.group(short_help="List, show, alias and delete registered students.")
def models() -> None:
  """The registry of students: `dss distill --display-name NAME` adds to it."""


_MODEL = click.argument("model", metavar="NAME[@VERSION]")


@models.command("list")
@options.REGISTRY
@options.json_output("versions")
def list_models(registry: str | None, as_json: bool) -> None:
  """List every version of every student."""
  from dss_jax.student.registry import Registry

  registered = Registry(registry)
  versions = [version for name in registered.names() for version in registered.versions(name)]
  if as_json:
    echo(json.dumps([_without_report(version) for version in versions], indent=2))
    return
  if not versions:
    echo(f"no student is registered in {registered.root}; dss distill --display-name registers one")
    return
  rows = [
    [
      version.reference,
      ", ".join(version.aliases),
      str(version.record["student"]),
      f"{version.record['parameters']:,}",
      _size(version.record["size_bytes"]),
      _accuracy(version.record["metrics"]),
      str(version.record["created"]),
    ]
    for version in versions
  ]
  head = ["version", "aliases", "student", "parameters", "size", "label accuracy", "created"]
  widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
  for row in [head, *rows]:
    cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    echo("  ".join(cells).rstrip())


@models.command(short_help="Show where a version comes from, and its metrics.")
@_MODEL
@options.REGISTRY
@options.json_output("version, with the report on its data,")
def show(model: str, registry: str | None, as_json: bool) -> None:
  """Show a version: where it comes from, and how it was evaluated."""
  from dss_jax.student.registry import Registry

  version = Registry(registry).version(model)
  if as_json:
    echo(json.dumps(version.to_json(), indent=2))
    return
  for name, value in _without_report(version).items():
    parts = value.items() if isinstance(value, dict) else [("", value)]
    for key, part in parts:
      shown = ", ".join(part) if isinstance(part, list) else part
      echo(f"{f'{name} {key}'.rstrip()}: {'-' if shown in (None, '') else shown}")


@models.command(short_help="Give a version an alias, or take it away.")
@_MODEL
@click.argument("alias", metavar="ALIAS")
@options.REGISTRY
@option("--remove", is_flag=True, help="Take the alias from the version.")
def alias(model: str, alias: str, registry: str | None, remove: bool) -> None:
  """Give a version an alias, which another version of the student may have had.

  NAME alone means NAME@default; NAME@latest is always the newest version.
  """
  from dss_jax.student.registry import Registry

  version = Registry(registry).merge_aliases(model, [f"-{alias}" if remove else alias])
  echo(json.dumps({"version": version.reference, "aliases": list(version.aliases)}))


@models.command(short_help="Delete a version that nothing uses, or a model.")
@_MODEL
@options.REGISTRY
def delete(model: str, registry: str | None) -> None:
  """Delete a version, or with NAME alone all versions; refused while an alias uses it."""
  from dss_jax.student.registry import Registry

  echo(json.dumps({"deleted": Registry(registry).delete(model)}))


def _without_report(version: Any) -> dict[str, Any]:
  return {name: value for name, value in version.to_json().items() if name != "report"}


def _accuracy(metrics: dict[str, float]) -> str:
  accuracy = metrics.get("label/eval_accuracy")
  return "-" if accuracy is None else f"{accuracy:.4f}"


def _size(size_bytes: int) -> str:
  for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
    if size_bytes >= 10**power:
      return f"{size_bytes / 10**power:.1f} {unit}"
  return f"{size_bytes} B"
