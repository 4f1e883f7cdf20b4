"""Write a global adapter as a folder that stock `peft.PeftModel.from_pretrained` loads with the same logits.

Every method's update is a product B A; its scale is folded into B, so lora_alpha equals r. Ravan becomes a LoRA of rank
h x r without loss.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from fedlora.errors import RunFolderError
from fedlora.federation.strategy import ServerState
from fedlora.federation.workbench import Workbench, build
from fedlora.files import atomic_folder
from fedlora.models import LoadedModel
from fedlora.runs.checkpoint import list_checkpoints, load_checkpoint
from fedlora.runs.folder import RunFolder, refuse_taken
from fedlora.sites import Site


def export_peft(
    folder: Path,
    loaded: LoadedModel,
    sites: Sequence[Site],
    factors: Sequence[tuple[Tensor, Tensor]],
    head: Mapping[str, Tensor],
    labels: Sequence[str],
) -> None:
    """Write adapter_config.json, adapter_model.safetensors and fedlora.json to `folder`, replacing it as a whole.

    Args:
        folder: Where to write.
        loaded: The model that the adapter belongs to.
        sites: Adapted projections in canonical order.
        factors: (B, A) per site, `[out, R]` and `[R, in]`; R may differ between sites, 0 leaves a site out.
        head: Task head by parameter name.
        labels: Class names in order; empty for a causal LM.
    """
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for site, (b, a) in zip(sites, factors, strict=True):
        if b.shape[1]:
            ranks[site.name] = b.shape[1]
            tensors[f"base_model.model.{site.name}.lora_A.weight"] = _plain(a)
            tensors[f"base_model.model.{site.name}.lora_B.weight"] = _plain(b)
    if not ranks:  # nothing merged yet: peft wants at least one target, so the first site carries a zero of rank 1
        site = sites[0]
        ranks[site.name] = 1
        tensors[f"base_model.model.{site.name}.lora_A.weight"] = torch.zeros(1, site.in_features)
        tensors[f"base_model.model.{site.name}.lora_B.weight"] = torch.zeros(site.out_features, 1)
    tensors |= {f"base_model.model.{name}": _plain(tensor) for name, tensor in head.items()}
    modules = sorted({_saved_module(name) for name in loaded.head})
    with atomic_folder(folder) as temporary:
        # Not safetensors' save_file: a full disk has to be an OSError.
        (temporary / "adapter_model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
        (temporary / "adapter_config.json").write_text(json.dumps(_config(loaded, sites, ranks, modules), indent=2) + "\n")
        about = {"base": loaded.source, "task": loaded.task, "labels": list(labels)}
        (temporary / "fedlora.json").write_text(json.dumps(about, indent=2) + "\n")


def export_state(bench: Workbench, state: ServerState, folder: Path) -> None:
    """Write a global state as a stock PEFT folder."""
    factors = [bench.aggregator.export_factors(index, site) for index, site in enumerate(state.adapter.sites)]
    export_peft(folder, bench.backbone.loaded, bench.backbone.sites, factors, state.adapter.head, bench.dataset.label_names)


def export_run(run_dir: Path, out: Path, round_number: int | None = None) -> int:
    """Export a checkpoint of a run to the new folder `out`; return its round.

    Raises:
        RunFolderError: No run, no such checkpoint, a damaged one, or `out` holds something already.
    """
    folder = RunFolder.open(run_dir)
    refuse_taken(out, "OUT")
    found = {int(path.name.rpartition("-")[2]): path for path in list_checkpoints(folder.checkpoints)}
    if not found:
        raise RunFolderError(f"{run_dir} has no checkpoint yet. Go on with it: fedlora simulate --resume {run_dir}")
    if round_number is not None and round_number not in found:
        raise RunFolderError(f"{run_dir} has no checkpoint of round {round_number}; it has {', '.join(map(str, sorted(found)))}")
    state = load_checkpoint(found[max(found) if round_number is None else round_number]).state
    export_state(build(folder.config), state, out)
    return state.round


def _config(loaded: LoadedModel, sites: Sequence[Site], ranks: dict[str, int], modules: list[str]) -> dict[str, Any]:
    rank = max(ranks.values())
    odd = {name: own for name, own in ranks.items() if own != rank}
    task = "CAUSAL_LM" if loaded.task == "causal-lm" else "SEQ_CLS" if loaded.kind == "text" else None
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": loaded.source,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": odd,
        "alpha_pattern": odd,
        "target_modules": list(ranks),
        "modules_to_save": modules or None,
        "fan_in_fan_out": any(site.transposed for site in sites),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def _saved_module(name: str) -> str:
    """Return the module that peft saves whole for a head layer; peft takes `classifier` and `score` whole by itself."""
    top = name.partition(".")[0]
    return top if top in ("classifier", "score") else name


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().float().contiguous().clone()
