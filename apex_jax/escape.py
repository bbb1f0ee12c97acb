"""Text that stays on its line, whatever a file is called.

Beside everything that says or shows a name: names of files are bytes, which need not be
text, and can hold what turns a terminal or a page upside down.
"""

from __future__ import annotations

import unicodedata

# Characters that reorder or break the text around them.
_BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_BREAKS = {"Cc", "Cs", "Zl", "Zp"}


def readable(text: str, *, breaks: bool = False) -> str:
    r"""Text that stays on its line and reads in its order, whatever a file is called.

    Line breaks, other control characters, characters that turn the direction of the
    text, and bytes of a name that are not UTF-8 appear as their escapes.

    Args:
      text: what may hold a name from anywhere.
      breaks: whether line breaks and tabs are the text's own and stay.

    >>> readable("two\nlines")
    'two\\nlines'
    """
    if text.isprintable():  # the embedded files, millions of letters each, are
        return text
    return "".join(
        c.encode("unicode_escape").decode("ascii")
        if not (breaks and c in "\n\t")
        and (
            unicodedata.category(c) in _BREAKS or unicodedata.bidirectional(c) in _BIDI
        )
        else c
        for c in text
    )
