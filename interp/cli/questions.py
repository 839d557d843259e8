"""`interp queries`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from interp.cli.options import OptionalCodes


def queries(
    name: Annotated[Positional[str], arg(metavar="NAME")],
    *,
    out: Annotated[Path, arg(metavar="FILE")],
    languages: OptionalCodes = None,
    limit: Annotated[int | None, arg(metavar="INT")] = None,
    form: Literal["question", "cloze"] = "question",
    wording: int = 1,
) -> None:
    """Write queries as JSON Lines: built-in facts, or the entries of a data set.

    Built in are capitals, currencies, official-languages and continents. Data sets are named with
    their reader: bmlama:FILE, flores:FILE, tofu:FILE, rwku:FILE, concepts:FILE, where FILE may be a
    Hub name, hub:OWNER/NAME[@REVISION][:CONFIG][:SPLIT].

    Args:
        name: The set, such as `capitals` or `bmlama:forget-32.jsonl`.
        out: The .jsonl file to write.
        languages: BCP-47 codes; all that the set has by default.
        limit: At most this many queries per language; all by default.
        form: question, or cloze: a sentence that the answer completes.
        wording: Which of the built-in wordings of that form, from 1.
    """
    from interp.data.queries import queries as read
    from interp.data.query import write_queries

    found = read(name, languages=languages, limit=limit, form=form, wording=wording)
    write_queries(found, out)
    counts = Counter(query.language for query in found)
    print(f"{len(found)} queries in {out}: {', '.join(f'{k} {n}' for k, n in counts.items())}")
