"""Engines side by side: seconds, memory, and the same numbers.

One process, one pair (a model and the same with noise on its layers' weights), ten questions,
windows of five layers. Every engine first runs once on three windows. `plain hooks` is
`engines/full.py` with all questions in one batch. The floor divides the multiplications that no
exact method can leave out by the speed of a large matrix product measured in the same run. Memory
is the peak beyond the two models.
"""

import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from benchmarks.floor import products
from benchmarks.measuring import matrix_speed, peak_memory, timed
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import interp
from interp.recovery import ENGINES, NOTHING, Pair, count_shared_tokens, get_own_gram, make_windows

COUNTRIES = ["France", "Germany", "Italy", "Spain", "Japan", "China", "Russia", "Egypt", "India"]
COUNTRIES += ["Brazil"]
EXAMPLES = {"Poland": "Warsaw", "Peru": "Lima", "Kenya": "Nairobi", "Greece": "Athens"}
EXAMPLES |= {"Cuba": "Havana", "Iran": "Tehran", "Norway": "Oslo", "Chile": "Santiago"}
EXAMPLES |= {"Austria": "Vienna", "Iraq": "Baghdad", "Syria": "Damascus", "Ghana": "Accra"}
PROMPT = "Question: What is the capital of {}?\nAnswer: The"
FLOOR_SITES = {"coef", "attn", "coef+attn", "value"}

SHAPES = {
    "tiny": LlamaConfig(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
    ),
    "llama-2-7b": LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
    ),
}
"""Random models by the shape that they have."""

ROWS = {
    "layered": ("layered", {}),
    "losses alone": ("layered", {"answers": False}),
    "plain hooks": ("full", {"batch_size": 10}),
    "nnsight": ("nnsight", {"batch_size": 10, "invokes": 1}),
    "nnsight, 4 invokes": ("nnsight", {"batch_size": 10, "invokes": 4}),
    "transformer_lens": ("transformer_lens", {"batch_size": 10}),
}
"""What is compared: an engine and how it is called."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings.

    Attributes:
        model: gemma-3-270m, or a random model of a shape out of `SHAPES`.
        sites: what is restored.
        prefix: tokens of few-shot examples, about, that all questions begin with.
        rows: names out of `ROWS`; those whose package is missing are named and left out.
        repeats: how often each is timed.
    """

    model: str = "gemma-3-270m"
    sites: tuple[str, ...] = ("coef",)
    prefix: int = 0
    rows: tuple[str, ...] = tuple(ROWS)
    repeats: int = 3
    device: str = "cpu"
    dtype: str = "float32"


def engines(config: Config) -> None:
    """Print the table."""
    vanilla = load(config)
    unlearned = interp.LanguageModel(perturbed(vanilla.model), vanilla.tokenizer, name="perturbed")
    answers = questions(vanilla, config.prefix)
    restorations = [
        NOTHING,
        *(
            item
            for site in config.sites
            for item in make_windows(site, num_layers=vanilla.num_layers)
        ),
    ]
    dtype = getattr(torch, config.dtype)
    speed = matrix_speed(device=config.device, dtype=dtype)
    floor = 2 * products(vanilla, answers, config.sites) / speed
    lengths = [len(item.prompt_ids) for item in answers], [len(item.answer_ids) for item in answers]
    where = f"{torch.get_num_threads()} CPU threads"
    if config.device == "cuda":
        where = torch.cuda.get_device_name()
    print(
        f"\n{config.model}, {config.dtype}, {where}: {', '.join(config.sites)}; "
        f"{len(restorations) - 1} windows × {len(answers)} questions, "
        f"prompts of {min(lengths[0])} to {max(lengths[0])} tokens ({count_shared_tokens(answers)} "
        f"shared), answers of {min(lengths[1])} to {max(lengths[1])}"
    )
    print(f"matrix products: {speed / 1e12:.2f} TFLOP/s; arithmetic floor {floor:.3g} s")
    (once,), _ = timed(lambda: get_own_gram(vanilla.anatomy.unembed), 1, device=config.device)
    print(f"Gram matrix of the unembedding, once per vanilla model: {once:.2g} s")
    print(f"\n{'':20}{'median':>9}{'least':>9}{'most':>9}{'ratio':>7}{'memory':>11}{'KRS':>9}")
    fastest, reference = None, None
    for name in config.rows:
        engine, options = ROWS[name]

        def run(items: Sequence = restorations, engine=engine, options=options) -> torch.Tensor:
            # A new pair each time: nothing is known but V's Gram matrix, kept as long as V.
            pair = Pair(vanilla=vanilla, unlearned=unlearned)
            return ENGINES[engine](pair, answers, items, **options).losses

        try:
            run(restorations[:4])
        except ImportError as error:
            print(f"{name:20} {error}")
            continue
        seconds, losses = timed(run, config.repeats, device=config.device)
        median = statistics.median(seconds)
        fastest = median if fastest is None else fastest
        scores = krs(losses)
        reference = scores if reference is None else reference
        memory = peak_memory(run, device=config.device) / 2**30
        columns = [f"{value:8.2f}s" for value in (median, min(seconds), max(seconds))]
        difference = (scores - reference).abs().max()
        print(
            f"{name:20}{''.join(columns)}{median / fastest:7.1f}{memory:7.2f} GiB{difference:9.0e}"
        )
        if name == "layered":
            print(f"{'floor / median':20}{floor / median:9.2f}")


def load(config: Config) -> interp.LanguageModel:
    """Load the vanilla model."""
    dtype = getattr(torch, config.dtype)
    if config.model not in SHAPES:
        return interp.load(config.model, device=config.device, dtype=dtype)
    torch.manual_seed(0)
    with torch.device(config.device):
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = LlamaForCausalLM(SHAPES[config.model]).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(default)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    )
    return interp.LanguageModel(model, tokenizer, name=f"random {config.model}")


def perturbed(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model, with noise of 2 % on the layers' weights; embeddings share its memory."""
    kept = [model.get_input_embeddings(), model.get_output_embeddings()]
    memo = {id(module.weight): module.weight for module in kept}
    other = copy.deepcopy(model, memo=memo)
    torch.manual_seed(0)
    for parameter in other.parameters():
        if id(parameter) not in memo:
            parameter.data += torch.randn_like(parameter) * parameter.std() * 0.02
    return other


def questions(vanilla: interp.LanguageModel, prefix: int) -> list[interp.Trajectory]:
    """Ask ten questions behind few-shot examples; V's answers have 30 tokens.

    A random model, whose tokenizer knows no words, has random tokens.
    """
    if vanilla.name.startswith("random"):
        torch.manual_seed(0)
        vocab_size = vanilla.model.config.vocab_size

        def ids(count: int) -> tuple[int, ...]:
            return tuple(torch.randint(3, vocab_size, (count,)).tolist())

        shared = ids(prefix)
        return [
            interp.Trajectory(
                query=interp.Query(id=str(number), language="en", prompt="random"),
                prompt_ids=shared + ids(20),
                answer_ids=ids(30),
                answer="",
                scored=range(prefix + 19, prefix + 49),
            )
            for number in range(len(COUNTRIES))
        ]
    examples, preamble = list(EXAMPLES.items()), ""
    while len(vanilla.encode(preamble)) < prefix:
        country, capital = examples[preamble.count("\n\n") % len(examples)]
        preamble += PROMPT.format(country) + f" capital of {country} is {capital}.\n\n"
    queries = [
        interp.Query(id=name, language="en", prompt=preamble + PROMPT.format(name))
        for name in COUNTRIES
    ]
    return interp.trajectories(vanilla, queries)


def krs(losses: torch.Tensor) -> torch.Tensor:
    """Compute KRS of every restoration; the first row is U's own loss."""
    means = losses.mean(1)
    return 1 - means[1:] / means[0]
