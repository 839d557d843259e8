"""Free memory, what models take of it, and that a pair costs what differs.

Peaks are read in processes of their own: the most that was resident (VmHWM) since they began.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from interp.models.memory import count_bytes, measure_free_memory
from interp.models.pairs import copy_with_shared_tensors
from tests.helpers import ROOT
from tests.helpers.tiny_models import save, tiny, wrap

CPU = torch.device("cpu")

needs_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="not Linux")
needs_peft = pytest.mark.skipif(
    find_spec("peft") is None, reason="the extra `unlearning` is not installed"
)


def machine(root: Path, available_kib: int, cgroup: str = "", **files: str) -> Path:
    """Make a root directory that reports memory as Linux does; dots in names are slashes."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal:  99999999 kB\nMemFree:  5 kB\nMemAvailable:   {available_kib} kB\n"
    )
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_what_the_machine_has_left(tmp_path):
    assert measure_free_memory(CPU, root=machine(tmp_path, 3000)) == 3000 * 1024


def test_what_a_container_has_left(tmp_path):
    """Used are 700,000, of which 100,000 are files that could be dropped: 400,000 are left."""
    files = {
        "memory.max": "1000000\n",
        "memory.current": "700000\n",
        "memory.stat": "anon 600000\ninactive_file 100000\n",
    }
    assert (
        measure_free_memory(CPU, root=machine(tmp_path / "a", 3000, "0::/\n", **files)) == 400_000
    )
    # The path that the host knows is not mounted in the container.
    outside = "0::/system.slice/docker-1.scope\n"
    assert measure_free_memory(CPU, root=machine(tmp_path / "b", 3000, outside, **files)) == 400_000
    assert measure_free_memory(CPU, root=machine(tmp_path / "c", 3, "0::/\n", **files)) == 3 * 1024


def test_what_a_batch_job_has_left(tmp_path):
    """Of the groups around the process the tightest counts; one has no limit."""
    root = machine(
        tmp_path,
        3000,
        "0::/job/step/task\n",
        **{
            "job/memory.max": "500000",
            "job/memory.current": "300000",
            "job/step/memory.max": "900000",
            "job/step/memory.current": "200000",
            "job/step/task/memory.max": "max",
            "job/step/task/memory.current": "100000",
        },
    )
    assert measure_free_memory(CPU, root=root) == 200_000


def test_the_first_kind_of_control_groups(tmp_path):
    root = machine(
        tmp_path,
        3000,
        "9:cpu,cpuacct:/job\n5:memory:/job\n",
        **{
            "memory/job/memory.limit_in_bytes": "600000",
            "memory/job/memory.usage_in_bytes": "650000",
            "memory/job/memory.stat": "total_inactive_file 60000",
        },
    )
    assert measure_free_memory(CPU, root=root) == 10_000


def test_a_group_that_is_full_has_nothing_left(tmp_path):
    files = {"memory.max": "1000", "memory.current": "2000"}
    assert measure_free_memory(CPU, root=machine(tmp_path, 3000, "0::/\n", **files)) == 0


@needs_linux
def test_this_machine():
    assert 1 << 20 < measure_free_memory(CPU) < 1 << 50


def test_bytes_of_models():
    vanilla = tiny("llama_biases")
    # Embedding 50 × 16, tied; final norm 16; five layers: q, o 16 × 16 + 16, k, v 16 × 8 + 8,
    # gate, up 16 × 24 + 24, down 24 × 16 + 16, two norms 16. Two buffers of d_head / 2 = 2.
    layer = 2 * (256 + 16) + 2 * (128 + 8) + 2 * (384 + 24) + 384 + 16 + 32
    total = 4 * (800 + 16 + 5 * layer)
    num_bytes = count_bytes(vanilla, vanilla, tiny("llama_biases", seed=1))
    assert num_bytes == [total + 16, 0, total + 16]
    name = "model.layers.1.mlp.down_proj.weight"
    assert count_bytes(vanilla, wrap(copy_with_shared_tensors(vanilla.model, {name})))[1] == 384 * 4


PROGRAM = """
import sys
import peft
import torch, transformers.models.llama.modeling_llama
from interp.models.loading import load
from interp.recovery.engines import layered
from interp.recovery.pair import Pair
from interp.recovery.sites import NOTHING, Restoration
from tests.helpers.tiny_models import mixed_trajectories

torch.set_num_threads(1)
vanilla = unlearned = load(sys.argv[1])
if len(sys.argv) > 2:
    unlearned = load(sys.argv[2], like=vanilla)
pair = Pair(vanilla=vanilla, unlearned=unlearned)
sites = [("coef",), ("attn",), ("value",), ("coef", "attn")]
rows = [NOTHING, *(Restoration(sites=site, layers=(10, 11, 12)) for site in sites)]
layered.measure(pair, mixed_trajectories(2), rows).losses
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) * 1024)
"""


def peak(*arguments: str) -> int:
    """Return the most memory that a process held which loads models and runs a sweep's losses."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


@pytest.mark.slow
@needs_linux
@needs_peft
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_peaks_of_a_lora_pair_and_of_one_that_differs_in_four_layers(tmp_path):
    """Models of 384 MiB, 24 layers: at most 1.1 and 1.3 times what V takes alone."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=512,
            intermediate_size=2048,
            num_hidden_layers=24,
            num_attention_heads=8,
        )
    )
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert size > 380 << 20
    vanilla = save(wrap(model), tmp_path / "v")
    with torch.no_grad():
        for layer in model.model.layers[-4:]:
            for parameter in layer.parameters():
                parameter.mul_(1.1)
    unlearned = save(wrap(model), tmp_path / "u")
    settings = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(tmp_path / "lora")
    alone = peak(vanilla)
    assert (peak(vanilla, unlearned) - alone) / size < 0.3
    assert (peak(vanilla, str(tmp_path / "lora")) - alone) / size < 0.1
