"""Every kind of adapter with every start: U computes what peft serves, or one sentence refuses it.

The table holds what peft makes with what is installed for tests. Besides, LoftQ needs bitsandbytes,
CorDA and Arrow need data or other adapters, and are refused (`test_adapter_limits`).
"""

from __future__ import annotations

import copy

import pytest
import torch

import interp
from tests.helpers.tiny_models import save, tiny
from tests.models.test_adapters import logits, train

peft = pytest.importorskip("peft")

from peft.tuners.lora.config import (  # noqa: E402
    BdLoraConfig,
    KasaConfig,
    LoraGAConfig,
    MontecloraConfig,
    VeloraConfig,
)

pytestmark = pytest.mark.filterwarnings("ignore")

BOTH = {"target_modules": ["q_proj", "down_proj"]}
TEXTS = {"task_type": "CAUSAL_LM"}


def lora(**settings: object) -> tuple[str, dict]:
    return "LoraConfig", BOTH | {"r": 2} | settings


def other(kind: str, **settings: object) -> tuple[str, dict]:
    return kind, BOTH | settings


def start(kind: str, *starts: object, **settings: object) -> dict[str, tuple[str, dict]]:
    """List a kind with each of its starts."""
    name = kind.removesuffix("Config").lower()
    return {f"{name} {how}": other(kind, init_weights=how, **settings) for how in starts}


KINDS = {
    **{
        f"lora {s}": lora(init_lora_weights=s)
        for s in (True, False, "gaussian", "olora", "pissa", "pissa_niter_4", "orthogonal", "mica")
    },
    "lora eva": lora(init_lora_weights="eva", eva_config=peft.EvaConfig()),
    "lora lora_ga": lora(init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()),
    "lora rslora": lora(use_rslora=True),
    "lora dora": lora(use_dora=True),
    "lora dora rslora": lora(use_dora=True, use_rslora=True),
    "lora dora olora": lora(use_dora=True, init_lora_weights="olora"),
    "lora dora pissa": lora(use_dora=True, init_lora_weights="pissa"),
    "lora dora embedding": lora(use_dora=True, target_modules=["embed_tokens", "q_proj"]),
    "lora bias all": lora(bias="all"),
    "lora bias lora_only": lora(bias="lora_only"),
    "lora lora_bias": lora(lora_bias=True),
    "lora olora rslora": lora(use_rslora=True, init_lora_weights="olora"),
    "lora pissa rslora": lora(use_rslora=True, init_lora_weights="pissa"),
    "lora embedding": lora(target_modules=["embed_tokens", "q_proj"]),
    "lora unembedding": lora(target_modules=["lm_head", "q_proj"]),
    "lora both embeddings": lora(target_modules=["embed_tokens", "lm_head"]),
    "lora tied": lora(target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True),
    "lora olora embedding": lora(
        target_modules=["embed_tokens", "q_proj"], init_lora_weights="olora"
    ),
    "lora olora unembedding": lora(target_modules=["lm_head", "q_proj"], init_lora_weights="olora"),
    "lora pissa unembedding": lora(target_modules=["lm_head", "q_proj"], init_lora_weights="pissa"),
    "lora saved unembedding": lora(modules_to_save=["lm_head"]),
    "lora saved embedding": lora(modules_to_save=["embed_tokens"]),
    "lora saved both": lora(modules_to_save=["embed_tokens", "lm_head"]),
    "lora saved tied": lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "lora saved norm": lora(modules_to_save=["norm"]),
    "lora saved norms": lora(modules_to_save=["input_layernorm"]),
    "lora saved olora": lora(modules_to_save=["lm_head"], init_lora_weights="olora"),
    "lora saved mlp": lora(target_modules=["q_proj"], modules_to_save=["mlp"]),
    "lora tokens": lora(trainable_token_indices={"embed_tokens": [5, 9]}),
    "lora tokens list": lora(trainable_token_indices=[5, 9]),
    "lora tokens both": lora(trainable_token_indices={"embed_tokens": [5, 9], "lm_head": [5, 9]}),
    "lora tokens tied": lora(trainable_token_indices=[5, 9], ensure_weight_tying=True),
    "lora parameters": lora(target_parameters=["mlp.up_proj.weight"]),
    "lora parameters alone": lora(target_modules=[], target_parameters=["q_proj.weight"]),
    "lora layers": lora(layers_to_transform=[1]),
    "lora layer": lora(layers_to_transform=0, layers_pattern="layers"),
    "lora ranks": lora(rank_pattern={"q_proj": 4}, alpha_pattern={"q_proj": 3}),
    "lora ranks by pattern": lora(
        rank_pattern={r"layers\.1\..*q_proj": 4}, alpha_pattern={"^model.*down_proj": 3}
    ),
    "lora pattern": lora(target_modules=r".*\.1\..*(q_proj|up_proj)"),
    "lora all linear": lora(target_modules="all-linear"),
    "lora excluded": lora(target_modules="all-linear", exclude_modules=["k_proj"]),
    "lora excluded pattern": lora(target_modules="all-linear", exclude_modules=r".*layers\.0.*"),
    "lora large": lora(r=32),
    "lora alpha 0": lora(lora_alpha=0),
    "lora dropout": lora(lora_dropout=0.5),
    "lora alora": lora(alora_invocation_tokens=[9, 13], task_type="CAUSAL_LM"),
    "lora qalora": lora(use_qalora=True, qalora_group_size=4),
    "lora velora": lora(velora_config=VeloraConfig()),
    "lora monteclora": lora(monteclora_config=MontecloraConfig()),
    "lora bdlora": lora(use_bdlora=BdLoraConfig(["q_proj"], ["down_proj"], nblocks=2)),
    "lora kasa": lora(kasa_config=KasaConfig()),
    "adalora": other("AdaLoraConfig", total_step=10),
    "adalora ranks": other("AdaLoraConfig", total_step=10, init_r=6, target_r=2),
    "adalora start False": other("AdaLoraConfig", total_step=10, init_lora_weights=False),
    "adamss orthogonal": other("AdamssConfig", init_weights="orthogonal", r=4, num_subspaces=2),
    "adamss None": other("AdamssConfig", init_weights=None, r=4, num_subspaces=2),
    "adamss asa": other("AdamssConfig", r=4, num_subspaces=2, use_asa=True, asa_target_subspaces=2),
    "adamss dynamic": other("AdamssConfig", r=4, num_subspaces=2, use_dynamic_rank=True),
    "adaption prompt": (
        "AdaptionPromptConfig",
        {"adapter_len": 4, "adapter_layers": 1, "task_type": "CAUSAL_LM"},
    ),
    **{
        f"beft {s}": ("BeftConfig", {"target_modules": ["q_proj"], "init_weights": s})
        for s in (True, False)
    },
    **start("BOFTConfig", True, False, boft_block_size=4),
    "boft blocks": other("BOFTConfig", boft_block_size=0, boft_block_num=2),
    "boft factor 2": other("BOFTConfig", boft_block_size=4, boft_n_butterfly_factor=2),
    "boft bias": other("BOFTConfig", boft_block_size=4, bias="boft_only"),
    **start(
        "C3AConfig", True, False, "gaussian", "kaiming_uniform", "xavier_uniform", block_size=8
    ),
    "c3a pattern": other("C3AConfig", block_size=8, block_size_pattern={"q_proj": 4}),
    **start("DeftConfig", True, False, r=2),
    "deft qr": other("DeftConfig", r=2, decomposition_method="qr"),
    "deft para": other("DeftConfig", r=2, para=True),
    **start("DeloraConfig", True, False, r=2),
    "delora ranks": other(
        "DeloraConfig", r=2, rank_pattern={"q_proj": 4}, lambda_pattern={"q_proj": 3.0}
    ),
    **start("FourierFTConfig", True, False, n_frequency=8),
    "fourierft pattern": other("FourierFTConfig", n_frequency=8, n_frequency_pattern={"q_proj": 4}),
    **start("FrodConfig", True, False),
    "frod not saved": other("FrodConfig", save_projection=False),
    **start("GloraConfig", True, False, r=2),
    "glora vector": other(
        "GloraConfig", r=2, config_A_B="vector", config_C="vector", config_D_E="vector"
    ),
    "glora constant": other(
        "GloraConfig", r=2, config_A_B="constant", config_C="none", config_D_E="none"
    ),
    **start("GraloraConfig", True, False, r=4),
    "gralora hybrid": other("GraloraConfig", r=4, hybrid_r=2),
    **start("HiraConfig", True, False, "gaussian", r=2),
    "hira ranks": other("HiraConfig", r=2, rank_pattern={"q_proj": 4}),
    **start("HRAConfig", True, False, r=4),
    "hra gs": other("HRAConfig", r=4, apply_GS=True),
    "ia3": (
        "IA3Config",
        {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    ),
    "ia3 attention": ("IA3Config", {"target_modules": ["k_proj"], "feedforward_modules": []}),
    "ia3 pattern": (
        "IA3Config",
        {"target_modules": r".*(k_proj|down_proj)", "feedforward_modules": r".*down_proj"},
    ),
    "ia3 start False": (
        "IA3Config",
        {
            "target_modules": ["k_proj", "down_proj"],
            "feedforward_modules": ["down_proj"],
            "init_ia3_weights": False,
        },
    ),
    "ln tuning": ("LNTuningConfig", {"target_modules": ["input_layernorm"]}),
    "ln tuning all": ("LNTuningConfig", {"target_modules": ["input_layernorm", "norm"]}),
    **start("LilyConfig", True, False, r=2),
    **start("LoHaConfig", True, False, r=2),
    "loha ranks": other("LoHaConfig", r=2, rank_pattern={"q_proj": 4}),
    **start("LoKrConfig", True, False, "lycoris", r=2),
    "lokr both": other("LoKrConfig", r=2, decompose_both=True, decompose_factor=4),
    **start("MissConfig", True, False, r=2),
    "miss bat": ("MissConfig", {"target_modules": ["q_proj"], "r": 4, "init_weights": "bat"}),
    "miss mini": (
        "MissConfig",
        {"target_modules": ["q_proj"], "r": 4, "mini_r": 4, "init_weights": "mini"},
    ),
    **start("OFTConfig", True, False, r=0, oft_block_size=4),
    "oft coft": other("OFTConfig", r=0, oft_block_size=4, coft=True, eps=0.1),
    "oft shared": other("OFTConfig", r=0, oft_block_size=4, block_share=True),
    "oft exact": other("OFTConfig", r=0, oft_block_size=4, use_cayley_neumann=False),
    "oft r": other("OFTConfig", r=2, oft_block_size=0),
    "oft embedding": (
        "OFTConfig",
        {"target_modules": ["q_proj"], "r": 0, "oft_block_size": 4, "modules_to_save": ["lm_head"]},
    ),
    **start("OSFConfig", True, False, effective_rank=4),
    "osf ranks": other("OSFConfig", effective_rank=4, rank_pattern={"q_proj": 6}),
    **start("PeanutConfig", True, False, r=2),
    "peanut deep": other("PeanutConfig", r=2, depth=2),
    **start("PolyConfig", True, False, r=2),
    **start("PsoftConfig", True, False, r=4),
    "psoft pissa": other("PsoftConfig", r=4, ab_svd_init="pissa_init"),
    "psoft lowrank": other("PsoftConfig", r=4, psoft_svd="lowrank"),
    **start("PveraConfig", True, False, r=4),
    "pvera sample": other("PveraConfig", r=4, sample_at_inference=True),
    **start("RandLoraConfig", True, False, r=2),
    "randlora sparse": other("RandLoraConfig", r=2, sparse=True),
    **start("RoadConfig", True, False, group_size=4),
    "road 2": other("RoadConfig", group_size=4, variant="road_2"),
    "road 4": other("RoadConfig", group_size=4, variant="road_4"),
    **start("ShadowConfig", True, r=2),
    **start("ShiraConfig", True, False, r=2),
    "shira seed": other("ShiraConfig", r=2, random_seed=7),
    **start("SupertuningConfig", True, False, sparsity=0.9),
    "supertuning not saved": other(
        "SupertuningConfig", sparsity=0.9, save_precomputed_indices=False
    ),
    **start("TinyLoraConfig", True, False, "uniform", u=8),
    "tinylora not saved": other("TinyLoraConfig", u=8, save_projection=False),
    "trainable tokens": (
        "TrainableTokensConfig",
        {"target_modules": ["embed_tokens"], "token_indices": [5, 9]},
    ),
    "trainable tokens head": (
        "TrainableTokensConfig",
        {"target_modules": ["lm_head"], "token_indices": [5, 9]},
    ),
    **start("UniLoraConfig", True, False, r=2, theta_d_length=16),
    "vblora": other("VBLoRAConfig", r=2, num_vectors=8, vector_length=8),
    "vblora topk": other(
        "VBLoRAConfig", r=2, num_vectors=8, vector_length=8, save_only_topk_weights=True
    ),
    **start("VeraConfig", True, False, r=4),
    "vera not saved": other("VeraConfig", r=4, save_projection=False),
    **start("WaveFTConfig", True, False, n_frequency=8),
    "waveft no idwt": other("WaveFTConfig", n_frequency=8, use_idwt=False),
    "waveft db2": other("WaveFTConfig", n_frequency=8, wavelet_family="db2"),
    "prompt tuning": ("PromptTuningConfig", {"num_virtual_tokens": 2, "task_type": "CAUSAL_LM"}),
    "multitask prompt": (
        "MultitaskPromptTuningConfig",
        {"num_virtual_tokens": 2, "task_type": "CAUSAL_LM"},
    ),
    "p tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 2, "task_type": "CAUSAL_LM"}),
    "prefix tuning": ("PrefixTuningConfig", {"num_virtual_tokens": 2, "task_type": "CAUSAL_LM"}),
    "cpt": (
        "CPTConfig",
        {
            "cpt_token_ids": [5, 9],
            "cpt_mask": [1, 1],
            "cpt_tokens_type_mask": [1, 2],
            "task_type": "CAUSAL_LM",
        },
    ),
    "cartridge": ("CartridgeConfig", {"num_virtual_tokens": 2, "task_type": "CAUSAL_LM"}),
}

REFUSED = {
    "lora pissa_niter_4": "differs at every load (pissa_niter_4)",
    "lora lora_bias": "cannot be merged into the weights of",
    "lora alora": "acts on a part of each text alone",
    "adaption prompt": "kind ADAPTION_PROMPT that adds attention over trained tokens",
    "beft True": "(BEFT) cannot be merged into the weights of",
    "beft False": "(BEFT) cannot be merged into the weights of",
    "lily True": "kind LILY that shares matrices",
    "lily False": "kind LILY that shares matrices",
    "poly True": "kind POLY that mixes its matrices",
    "poly False": "kind POLY that mixes its matrices",
    "pvera sample": "kind PVERA that draws its weights anew",
    "shadow True": "kind SHADOW that adds a second model",
    **dict.fromkeys(
        ("prompt tuning", "multitask prompt", "p tuning", "prefix tuning", "cpt", "cartridge"),
        "that adds tokens instead of changing weights and cannot be merged",
    ),
}
"""Cases that no change of weights is, or that nobody can make again; the rest is served."""

QUICK = (
    "lora True",
    "lora olora",
    "lora pissa",
    "lora embedding",
    "lora unembedding",
    "lora tied",
    "lora saved unembedding",
)


def test_every_kind_of_peft_is_in_the_table():
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    tried = {getattr(peft, kind) for kind, _ in KINDS.values()}
    # XLoRA needs other adapters, see `test_adapter_limits`.
    assert set(PEFT_TYPE_TO_CONFIG_MAPPING.values()) - tried == {peft.XLoraConfig}
    assert len(KINDS) >= 98
    assert KINDS.keys() >= REFUSED.keys() | set(QUICK)


@pytest.mark.parametrize("name", ["lora bias all", "lora lora_bias", "beft True", "boft bias"])
def test_biases_of_an_adapter_are_merged_into_those_of_the_base(name, tmp_path):
    """On a base with biases; on one without, the second and third have no place."""
    kind, settings = KINDS[name]
    base = tiny("llama_biases", num_layers=2)
    train(base.model, getattr(peft, kind)(**settings), tmp_path)
    served = peft.PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path).eval()
    before, wanted = base.content_hash(), logits(served)
    unlearned = interp.load(tmp_path, like=base)
    assert (logits(unlearned.model) - wanted).abs().max() < 5e-6
    biases = [
        (unlearned.model.get_parameter(path) - base.model.get_parameter(path)).abs().max()
        for path in ("model.layers.0.self_attn.q_proj.bias", "model.layers.1.self_attn.q_proj.bias")
    ]
    assert min(biases) > 1e-2
    assert base.content_hash() == before


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in KINDS],
)
def test_an_adapter_is_what_peft_serves(name, tied, tmp_path):
    kind, settings = KINDS[name]
    base = tiny(num_layers=2, tie_word_embeddings=tied)
    save(base, tmp_path / "V")
    torch.manual_seed(11)
    try:
        train(base.model, getattr(peft, kind)(**settings), tmp_path / "A")
    except ImportError as error:
        pytest.skip(str(error))
    vanilla = interp.load(tmp_path / "V")
    before = vanilla.content_hash()
    if name in REFUSED:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            interp.load(tmp_path / "A", like=vanilla)
        assert REFUSED[name] in str(caught.value)
        assert "\n" not in str(caught.value)
    else:
        served = peft.PeftModel.from_pretrained(copy.deepcopy(base.model), tmp_path / "A").eval()
        wanted = logits(served)
        assert (wanted - logits(base.model)).abs().max() > 1e-3 or name == "lora alpha 0"
        for _ in range(2):
            unlearned = interp.load(tmp_path / "A", like=vanilla)
            assert (logits(unlearned.model) - wanted).abs().max() < 5e-6
    assert vanilla.content_hash() == before
    assert (vanilla.model.lm_head.weight is vanilla.model.model.embed_tokens.weight) == tied
