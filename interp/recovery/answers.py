"""What R says: greedy answers of the base model with a restoration in place.

At every step the donor runs on the same tokens, so that its states are those of R's own text.
"""

from __future__ import annotations

import torch

from interp.data.query import Query
from interp.data.trajectories import Trajectory
from interp.models.decoding import stop_token_ids
from interp.recovery.batches import make_batch
from interp.recovery.engines.full import whole_model_restored
from interp.recovery.pair import Pair
from interp.recovery.sites import Restoration
from interp.recovery.states import record


def restored_answer(
    pair: Pair, query: Query, restoration: Restoration, *, num_tokens: int = 12
) -> str:
    """The greedy answer to a question under a restoration.

    Every step runs the whole text through both models: meant for looking at a few answers.

    Args:
        pair: the base model that answers and the donor.
        query: the question.
        restoration: what to put back; the empty one gives the base model's own answer.
        num_tokens: longest answer, in tokens.

    Raises:
        ValueError: `num_tokens` is below 1.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens must be at least 1, not {num_tokens}")
    base, donor = pair.base, pair.donor
    prompt_ids = base.encode(query.prompt)
    answer_ids: tuple[int, ...] = ()
    with torch.inference_mode():
        for _ in range(num_tokens):
            length = len(prompt_ids) + len(answer_ids)
            text = Trajectory(
                query=query,
                prompt_ids=prompt_ids,
                answer_ids=answer_ids,
                answer="",
                scored=range(length - 1, length),
            )
            batch = make_batch([text], device=base.device)
            states = record(donor.anatomy, batch, restoration.sites).layers
            where = batch.restored(restoration.positions)
            with whole_model_restored(pair, restoration, states, where):
                state = base.anatomy.body(**batch.inputs(base.anatomy.body)).last_hidden_state
                token = int(base.anatomy.logits(state[0, -1]).argmax())
            if token in stop_token_ids(base):
                break
            answer_ids += (token,)
    return base.decode(answer_ids)
