"""Low-rank adapters on a student, through peft: what they are, putting them on, folding them in."""

from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from limbeck.config import Part, part
from limbeck.distributed import is_sharded
from limbeck.errors import ModelError, RecipeError
from limbeck.lazy import torch


@part
class LoRA(Part):
    """Low-rank adapters (arXiv 2106.09685); on 4-bit weights this is QLoRA (arXiv 2305.14314).

    targets: names of the linear layers, or "all-linear" for all of them but the head.
    """

    rank: int = 16
    alpha: int = 32
    targets: list[str] | Literal["all-linear"] = "all-linear"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1:
            raise RecipeError(f"adapters need a rank and an alpha of at least 1, found {self.rank} and {self.alpha}")


def add_lora(module: Any, lora: LoRA, quantized: bool) -> Any:
    """Freeze a model and put adapters on it; they begin alike in every run and on every rank."""
    import peft

    if quantized:
        module = peft.prepare_model_for_kbit_training(module, use_gradient_checkpointing=False)
    try:
        settings = peft.LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets, lora_dropout=0.0, task_type="CAUSAL_LM", **lora.options
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return peft.get_peft_model(module, settings)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200].removesuffix(".")
        raise ModelError(f"cannot put adapters on the student: {reason}; change lora.targets or lora.options") from None


def save_folded(module: Any, folder: Path) -> None:
    """Save an adapted model as a plain one, its adapters folded into the weights; the live model stays as it is.

    All weights must be here; of a model that ranks share, `state_dict` would put the shares back in their place.
    """
    module.merge_adapter()
    try:
        causal = module.get_base_model()
        named = causal.named_parameters() if is_sharded() else causal.state_dict().items()
        state = {_plain_name(name): weight.detach() for name, weight in named if "lora_" not in name}
        causal.save_pretrained(folder, state_dict=state)
    finally:
        module.unmerge_adapter()


def _plain_name(name: str) -> str:
    return name.replace(".base_layer.", ".")
