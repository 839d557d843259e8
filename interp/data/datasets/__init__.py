"""Readers for the public data sets of the field, from local files or from the Hugging Face Hub.

Every reader has one form: `read_x(source, languages=None)` gives a `Dataset`, which is its typed
records, one per entry and language, and the list of what is missing; `make_queries` turns records
into queries.

    facts = read_bmlama("forget-32.jsonl", languages=["en", "hi"])
    facts.gaps                      # entries that a language lacks, with the reason
    make_queries(facts)               # [Query(id="bmlama53-forget-32:1", language="en", …), …]

| reader | data set | source | licence as far as known |
|---|---|---|---|
| `read_bmlama` | BMLAMA-53 | Qi et al. 2023, released by Choi et al. 2024 | not stated |
| `read_flores` | FLORES-200 | NLLB Team 2022; also as released by Choi et al. 2024 | CC BY-SA 4.0 |
| `read_tofu` | TOFU | Maini et al. 2024, `locuslab/TOFU` | MIT |
| `read_uds` | UDS, of TOFU | Lee, Kim & Jo 2026, `gnueaj/unlearning-depth-score` | Apache-2.0 |
| `read_rwku` | RWKU | Jin et al. 2024, `jinzhuoran/RWKU` | CC BY 4.0 |
| `read_concepts` | ConceptVectors | Hong et al. 2024a, `YihuaiHong/ConceptVectors` | CC BY 4.0 |
| `read_concepts` | concept files of Hong et al. 2024b | released with that paper | not stated |

news-truthful (Lu & Koehn 2024, `TaiMingLu/news-truthful`) holds articles:
`experiments.cross_lingual.news` reads it.
"""

from interp.data.datasets.language_codes import normalize_code
from interp.data.datasets.parallel import read_bmlama, read_flores
from interp.data.datasets.questions import read_concepts, read_rwku, read_tofu, read_uds
from interp.data.datasets.records import (
    ClozeFact,
    ConceptRecord,
    Dataset,
    EntityQuestion,
    Gap,
    QuestionAnswer,
    Sentence,
    make_queries,
    make_unrelated_queries,
)

__all__ = [
    "ClozeFact",
    "ConceptRecord",
    "Dataset",
    "EntityQuestion",
    "Gap",
    "QuestionAnswer",
    "Sentence",
    "make_queries",
    "make_unrelated_queries",
    "normalize_code",
    "read_bmlama",
    "read_concepts",
    "read_flores",
    "read_rwku",
    "read_tofu",
    "read_uds",
]
