"""`interp queries`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from interp.cli.commands import OptionSet, has_options
from interp.cli.options import ChatOptions, QueryOptions, check_output_file, read_chat_options


@has_options(lambda _args: OptionSet(configs=(QueryOptions, ChatOptions)))
def queries(
    name: Annotated[Positional[str], arg(metavar="NAME")],
    *,
    out: Annotated[Path, arg(metavar="FILE")],
    form: Literal["question", "cloze"] = "question",
    wording: int = 1,
    **options: Any,
) -> None:
    """Write queries as JSON Lines: built-in facts, or the entries of a data set.

    Built in are capitals, currencies, official-languages and continents. Data sets are named with
    their reader: bmlama:FILE, flores:FILE, tofu:FILE, uds:FILE, rwku:FILE, concepts:FILE, where
    FILE may be a Hub name, hub:OWNER/NAME[@REVISION][:CONFIG][:SPLIT].

    Args:
        name: the set, such as `capitals` or `bmlama:forget-32.jsonl`.
        out: the .jsonl file to write.
        form: question, or cloze: a sentence that the answer completes.
        wording: which of the built-in wordings of that form, from 1.
    """
    from interp.data.queries import queries as read
    from interp.data.query import write_queries

    check_output_file(out)
    options |= read_chat_options(options)
    rows = read(name, form=form, wording=wording, **options)
    write_queries(rows, out)
    counts = Counter(query.language for query in rows)
    print(f"{len(rows)} queries in {out}: {', '.join(f'{k} {n}' for k, n in counts.items())}")
