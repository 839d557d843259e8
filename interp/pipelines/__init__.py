"""Teaching and unlearning from start to end: trained, probed and reported.

    corpus = build_corpus(CorpusConfig(source="de", mix="combined"))
    taught = contaminate(vanilla, corpus, out="runs/de")
    unlearned = unlearn(taught.model, corpus.forget, corpus.retain, method="npo",
                        probes=corpus.queries, out="runs/de-npo")
    unlearned.accuracy()
    unlearned.figure()

Accuracies are those of candidates ranked by the model (`interp.behaviour.probing`). Before and
after they are measured in the model's own precision, on the way in bfloat16.
"""

from interp.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
