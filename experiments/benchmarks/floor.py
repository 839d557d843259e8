"""Arithmetic that no exact layer sweep can leave out."""

from collections.abc import Sequence

import interp
from interp.models import LayerParts
from interp.recovery import count_shared_tokens, make_windows


def products(
    vanilla: interp.LanguageModel, answers: Sequence[interp.Trajectory], sites: Sequence[str]
) -> float:
    """Count multiplications of a sweep over coef, attn, coef+attn or value: weights, attention.

    V and U run once. Two windows of a site that begin alike are one row until they part. Within a
    window what is restored is not computed, and at its first layer nothing but what follows from
    the restored part. Tokens that all questions begin with count once. In the last layer queries,
    outputs and MLP are needed at scored positions only. The Gram matrix of the unembedding, which
    is made once per vanilla model, is not in it.
    """
    num_layers = vanilla.num_layers
    prefix = count_shared_tokens(answers)
    num_tokens = prefix + sum(item.scored.stop - prefix for item in answers)
    num_scored = sum(len(item.scored) for item in answers)
    # Every token attends to itself and those before it.
    attended = triangle(prefix) + sum(
        triangle(item.scored.stop) - triangle(prefix) for item in answers
    )
    attended_last = sum(position + 1 for item in answers for position in item.scored)
    config = vanilla.model.config
    d_model, num_heads = config.hidden_size, config.num_attention_heads
    d_head = getattr(config, "head_dim", None) or d_model // num_heads
    d_attn, d_kv = num_heads * d_head, config.num_key_value_heads * d_head

    def layer_cost(parts: LayerParts, *, last: bool) -> dict[str, float]:
        here = num_scored if last else num_tokens
        attn = d_model * (2 * d_attn * here + 2 * d_kv * num_tokens)
        # Scores and values.
        attn += 2 * d_attn * (attended_last if last else attended)
        keys = sum(key.get_parameter("weight").numel() for key in parts.keys)
        values = parts.values.get_parameter("weight").numel()
        return {"attn": attn, "keys": keys * here, "values": values * here}

    costs = [
        layer_cost(parts, last=layer == num_layers - 1)
        for layer, parts in enumerate(vanilla.anatomy.layers)
    ]
    total = 2 * sum(sum(cost.values()) for cost in costs)
    known: set[tuple[str, int]] = set()
    rows: set[tuple[str, tuple[int, ...]]] = set()
    for site in sites:
        for item in make_windows(site, num_layers=num_layers):
            for layer in range(item.layers[0], num_layers):
                history = tuple(index for index in item.layers if index <= layer)
                inside, fresh = layer in item.layers, layer == item.layers[0]
                if (site, (*history, -layer)) in rows:
                    continue
                rows.add((site, (*history, -layer)))
                cost = costs[layer]
                if not inside:
                    total += sum(cost.values())
                elif site == "attn":
                    total += cost["keys"] + cost["values"]
                elif site == "coef":
                    total += 0 if fresh else cost["attn"]
                elif site == "value" and not fresh:
                    total += sum(cost.values())
                # The known MLP output: once per layer, whatever the row or the site.
                of = "value" if site == "value" else "coef"
                if inside and site != "attn" and (fresh or site != "value"):
                    total += 0 if (of, layer) in known else cost["values"]
                    known.add((of, layer))
    return total


def triangle(count: int) -> float:
    """Compute 1 + 2 + … + count."""
    return count * (count + 1) / 2
