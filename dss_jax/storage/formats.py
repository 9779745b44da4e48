"""What a file is by its first bytes, where it is not the text that it should be."""

HEAD_BYTES = 512
GZIP = b"\x1f\x8b"

_DECOMPRESS = "decompress it first, or compress it with gzip, which is read as it is"
_FORMATS = (
  (b"\x28\xb5\x2f\xfd", f"compressed with zstd; {_DECOMPRESS}"),
  (b"\xfd7zXZ\x00", f"compressed with xz; {_DECOMPRESS}"),
  (b"BZh", f"compressed with bzip2; {_DECOMPRESS}"),
  (b"\x04\x22\x4d\x18", f"compressed with lz4; {_DECOMPRESS}"),
  (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it, and give a file of it"),
  (b"PK\x03\x04", "a zip archive (or a spreadsheet); unpack it, and give a file of it"),
  (b"PK\x05\x06", "an empty zip archive; give a file of text"),
  (b"PAR1", "a Parquet file; write it as JSON lines, as pandas' to_json(lines=True) does"),
  (b"ARROW1", "an Arrow file; write it as JSON lines, as datasets' to_json does"),
  (b"\xff\xff\xff\xff", "an Arrow stream; write it as JSON lines, as datasets' to_json does"),
  (b"Obj\x01", "an Avro file; write it as JSON lines"),
  (b"SQLite format 3\x00", "an SQLite database; write its rows as JSON lines"),
  (b"\x89HDF", "an HDF5 file; write it as JSON lines"),
  (b"\x80\x04\x95", "a Python pickle; write it as JSON lines"),
  (b"%PDF-", "a PDF; give a file of text"),
  (b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself with git lfs pull"),
  # UTF-32's mark begins as UTF-16's does.
  (b"\xff\xfe\x00\x00", "text in UTF-32; save the file as UTF-8"),
  (b"\x00\x00\xfe\xff", "text in UTF-32; save the file as UTF-8"),
  (b"\xff\xfe", "text in UTF-16; save the file as UTF-8"),
  (b"\xfe\xff", "text in UTF-16; save the file as UTF-8"),
)
_TAR_AT = 257


def foreign_format(head: bytes) -> str | None:
  """Returns what a file with these first bytes is, and what to do; None if it may be text."""
  for beginning, what in _FORMATS:
    if head.startswith(beginning):
      return what
  if head[_TAR_AT : _TAR_AT + 5] == b"ustar":
    return "a tar archive; unpack it, and give a file of it"
  # Without a mark, every other byte (UTF-16) or three of four (UTF-32) of ASCII text are null.
  zeros = tuple(byte == 0 for byte in head[:4])
  if zeros in ((False, True, True, True), (True, True, True, False)):
    return "text in UTF-32; save the file as UTF-8"
  if zeros in ((False, True, False, True), (True, False, True, False)):
    return "text in UTF-16; save the file as UTF-8"
  return None
