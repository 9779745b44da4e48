"""`dss quickstart`. Imports nothing heavy."""

import click

from dss_jax.cli import options


@click.command(short_help="Make data, train two students, compare.")
@options.model_dir(default="runs/quickstart", show_default=True,
                   help="The folder for the data and both students.")  # fmt: skip
@options.seed("Of the data and of both students.", use_default=True)
@options.GIN
def quickstart(model_dir: str, seed: int, gin: tuple[str, ...]) -> None:
  """Make data, train a student on labels alone and one step by step, and compare them."""
  from dss_jax.config.gin_loader import parse_binding

  bindings = [parse_binding(text, f"--gin {text}") for text in gin]
  from dss_jax.pipelines import quickstart as quickstarts
  from dss_jax.storage.cache import keep_compiled_programs

  keep_compiled_programs()
  results = quickstarts.run(model_dir, seed, bindings)
  quickstarts.show(results, model_dir)
