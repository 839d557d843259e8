"""Generated answers of V, U and R beside each other: what makes a heatmap believable.

All three answer greedily, as V does for its trajectories. R writes its own text: at every token the
donor runs on the same tokens, so that its states are those of R's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from interp.data.query import Query, list_questions
from interp.data.trajectories import Trajectory, encode_prompt, find_ends
from interp.models.generation import generate_continuations
from interp.models.language_model import LanguageModel
from interp.models.pairs import check_pair
from interp.recovery.pair import Direction, Pair
from interp.recovery.restored_model import apply_restoration
from interp.recovery.site_names import translate_site_name
from interp.recovery.sites import Positions
from interp.recovery.sweep_config import SweepConfig

if TYPE_CHECKING:
    import pandas as pd


def restored_answers(
    vanilla: LanguageModel,
    unlearned: LanguageModel,
    queries: Sequence[Query] | Sequence[Trajectory],
    *,
    site: str | Sequence[str] = "coef+attn",
    layer: int | Sequence[int] | None = None,
    window: int = 5,
    num_tokens: int = 30,
    positions: Positions = "all",
    direction: Direction = "restore",
    batch_size: int = 32,
    progress: bool = True,
) -> pd.DataFrame:
    """Generate the answers of V, U and R to every question, beside each other.

    Args:
        vanilla: V.
        unlearned: U, of the same architecture and tokenizer.
        queries: the questions (of trajectories, their questions).
        site: a site or several joined by "+"; or several such, a row each.
        layer: the window's centre, or several, a row each; every layer if None.
        window: number of layers restored together, odd.
        num_tokens: the longest answer, in tokens.
        positions: where activation sites are restored: `all`, `prompt` or `answer`.
        direction: `restore` puts V's parts into U, `corrupt` U's parts into V.
        batch_size: questions answered at once.
        progress: show a progress bar on standard error, if it takes over two seconds.

    Returns:
        A table with the columns language, query_id, concept, prompt, vanilla, unlearned, restored
        (the three answers), site, layer, first_layer and last_layer (the window), with a row per
        site, window and question, questions in their order.

    Raises:
        ValueError: no queries; a setting is not valid; the models do not match; or a prompt does
            not fit the model's context with its answer.
    """
    import pandas as pd

    queries = list_questions(queries, "queries", Query, Trajectory)
    if num_tokens < 1:
        raise ValueError(f"num_tokens must be at least 1, not {num_tokens}")
    check_pair(vanilla, unlearned)
    sites = [site] if isinstance(site, str) else site
    config = SweepConfig(
        sites=tuple(translate_site_name(name, unlearned) for name in sites),
        window=window,
        positions=positions,
        direction=direction,
    )
    config.check_models(vanilla, unlearned)
    restorations = config.restorations(vanilla.num_layers)
    if layer is not None:
        centres = {layer} if isinstance(layer, int) else set(layer)
        if missing := centres - {item.centre for item in restorations}:
            raise ValueError(
                f"layer {min(missing)} of {', '.join(config.sites)} is out of range "
                f"0 to {vanilla.num_layers - 1}"
            )
        restorations = [item for item in restorations if item.centre in centres]
    questions = [item.query if isinstance(item, Trajectory) else item for item in queries]
    prompts = [encode_prompt(vanilla, query, num_tokens) for query in questions]
    ends = find_ends(vanilla, questions)
    bar = tqdm(
        total=len(prompts) * (2 + len(restorations)),
        desc="answers",
        unit="answer",
        delay=2,
        disable=not progress,
    )

    def generate(model: LanguageModel) -> list[str]:
        texts = {}
        for number, answer in generate_continuations(
            model, prompts, num_tokens=num_tokens, batch_size=batch_size, ends=ends
        ):
            texts[number] = model.decode(answer)
            bar.update()
        return [texts[number] for number in range(len(prompts))]

    pair = Pair(vanilla=vanilla, unlearned=unlearned, direction=direction)
    rows = []
    with bar:
        of_vanilla, of_unlearned = generate(vanilla), generate(unlearned)
        for item in restorations:
            with apply_restoration(pair, item):
                of_restored = generate(pair.base)
            layers = item.layers or (item.centre,)
            for query, *texts in zip(questions, of_vanilla, of_unlearned, of_restored, strict=True):
                rows.append(
                    {
                        "language": query.language,
                        "query_id": query.id,
                        "concept": query.concept,
                        "prompt": query.prompt,
                        **dict(zip(("vanilla", "unlearned", "restored"), texts, strict=True)),
                        "site": item.site,
                        "layer": item.centre,
                        "first_layer": layers[0],
                        "last_layer": layers[-1],
                    }
                )
    return pd.DataFrame(rows)
