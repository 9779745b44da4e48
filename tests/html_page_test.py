"""Pages without requests: the policy allows their own script and style, and texts are escaped."""

import base64
import hashlib
import re

from dss_jax import html_page

EVIL = '<script>alert(1)</script> & "quoted"'


def page_of(**options):
  rows = [f"<tr>{html_page.text_cell(EVIL)}{html_page.key_cell('two', 2)}</tr>"]
  table = html_page.row_table(["text", EVIL], rows, count=1, note=" <more>")
  return "".join(html_page.page(EVIL, table, **options))


def test_the_policy_names_the_hashes_of_script_and_style():
  text = page_of(style="p{color:red}")
  hashes = {
    tag: base64.b64encode(
      hashlib.sha256(re.search(f"<{tag}>(.*?)</{tag}>", text, re.S)[1].encode()).digest()
    ).decode()
    for tag in ("script", "style")
  }
  assert (
    f"default-src &#x27;none&#x27;; script-src &#x27;sha256-{hashes['script']}&#x27;; "
    f"style-src &#x27;sha256-{hashes['style']}&#x27;"
  ) in text
  assert "p{color:red}" in text


def test_texts_are_escaped_and_nothing_is_requested():
  text = page_of()
  assert "alert(1)</script>" not in text
  assert text.count("&lt;script&gt;alert(1)") == 3
  assert "&lt;more&gt;" in text
  assert not re.search(r"https?://|url\(|@import|\bsrc=|\bhref=|\bon[a-z]+=|\bstyle=", text)


def test_long_texts_are_cut():
  assert html_page.cut("x" * 20_000) == "x" * 20_000
  assert html_page.cut("x" * 20_001) == "x" * 20_000 + " ... (cut)"
