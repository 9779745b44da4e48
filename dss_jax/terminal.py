"""The terminal: output that survives any text, any encoding, and a reader that has left."""

import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

from dss_jax.errors import ReaderGone, UserError

# Joiners are part of words and emoji, and change nothing around them.
_SHOWN_CONTROLS = frozenset("\n\t\u200c\u200d")
# Control, format (such as a change of direction), surrogate, line and paragraph separator.
_ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
  """Returns the text with characters that a terminal obeys, or does not show, as escapes.

  Rows, file names and servers' answers may contain escape sequences, changes of direction and
  unpaired surrogates; shown as \\x1b or \\u202e they can do no harm. Line feeds and tabs stay.
  """
  if text.isascii() and text.isprintable():
    return text
  return "".join(map(_shown, text))


def echo(text: str) -> None:
  """Prints a command's output on standard output, made printable."""
  print(printable(text), flush=True)


def prepare() -> None:
  """Makes the standard streams usable, whatever they are; called once, by the command.

  Characters that an encoding lacks become escapes. A descriptor that is closed is opened, or the
  next file would get its number, and with it what is printed. Standard output raises ReaderGone
  where nobody reads it any more, and UserError where it cannot be written. Standard error, which
  has only notes, never fails: a run goes on when its terminal has gone.
  """
  for number, name in enumerate(("stdin", "stdout", "stderr")):
    if getattr(sys, name) is None:
      _open_closed(number, name)
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="backslashreplace")
  if not isinstance(sys.stdout, _Stream):
    sys.stdout = _Output(sys.stdout)
    sys.stderr = _Notes(sys.stderr)


def _shown(character: str) -> str:
  if character in _SHOWN_CONTROLS or unicodedata.category(character) not in _ESCAPED_CATEGORIES:
    return character
  return character.encode("unicode_escape").decode("ascii")


def _open_closed(number: int, name: str) -> None:
  # Read-only for output: writing to it fails, as to a closed descriptor.
  opened = os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
  if opened != number:
    os.dup2(opened, number)
    os.close(opened)
  setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


class _Stream:
  """A text stream whose failures `_failing` handles."""

  def __init__(self, stream: Any):
    self._stream = stream

  def write(self, text: str) -> int:
    # click finds out with an empty text what a stream takes, and would swallow a failure.
    if text != "":
      with self._failing():
        self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    with self._failing():
      self._stream.flush()

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def _failing(self) -> contextlib.AbstractContextManager[None]:
    raise NotImplementedError


class _Notes(_Stream):
  def _failing(self) -> contextlib.AbstractContextManager[None]:
    return contextlib.suppress(OSError)


class _Output(_Stream):
  @contextlib.contextmanager
  def _failing(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      self._discard()
      if isinstance(error, BrokenPipeError):
        raise ReaderGone from None
      raise UserError(
        f"standard output cannot be written ({error.strerror}); send it where there is room"
      ) from None

  def _discard(self) -> None:
    """Sends what the stream still holds nowhere, or Python would fail on it at its exit."""
    with contextlib.suppress(OSError, ValueError):
      null = os.open(os.devnull, os.O_WRONLY)
      os.dup2(null, self._stream.fileno())
      os.close(null)
