"""Merge: the metrics of several processes as one page; each figure gets its process as a label.

Figures are not added up: a process that is started again counts from zero, and a sum that falls by
one process's part looks to Prometheus as if all had begun anew. It adds up rates by itself:
`sum without (process) (rate(...))`.
"""

import re
from collections.abc import Mapping
from typing import Final

_FAMILY: Final = re.compile(r"^# HELP ", re.MULTILINE)
_WITH_LABELS: Final = re.compile(r"^(\w+)\{", re.MULTILINE)
_WITHOUT: Final = re.compile(r"^(\w+) ", re.MULTILINE)


def merge(pages: Mapping[str, str]) -> str:
    """Return one page in Prometheus' text format, in which each family stands once.

    Labels are written into the text, so figures stay as they are, to the last digit; reading and
    writing each of a hundred processes' pages anew would hold up the loop for a second.

    Args:
        pages: by process, as `generate_latest` writes them.
    """
    families: dict[str, list[str]] = {}
    for process, page in pages.items():
        label = f'process="{process}"'
        for family in _FAMILY.split(page)[1:]:
            explained, typed, samples = family.split("\n", 2)
            samples = _WITH_LABELS.sub(rf"\1{{{label},", samples)
            samples = _WITHOUT.sub(rf"\1{{{label}}} ", samples)
            families.setdefault(f"# HELP {explained}\n{typed}\n", []).append(samples)
    return "".join(head + "".join(samples) for head, samples in families.items())
