"""The command line of `limbeck export`, and no logic of its own."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="The folder of a run, of a pipeline (its last stage), or of a student.")],
    to: Annotated[Path | None, typer.Option(help="The new folder; by default beside the run.")] = None,
    format: Annotated[str | None, typer.Option(help="hf (the default), gguf (for llama.cpp) or vllm.")] = None,
    quantize: Annotated[str | None, typer.Option(help="How GGUF rounds: f32, f16, bf16, q8_0 (the default), q5_1, q5_0, q4_1, q4_0; with llama.cpp "
                                                      "here q2_k, q3_k_m, q4_k_m, q5_k_m, q6_k and their like.")] = None,
    push: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Put the folder on the hub, private.")] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: for everyone to see.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --push: list what would be uploaded, and upload nothing.")] = False,
    accept_license: Annotated[list[str] | None, typer.Option(help="With --push: a licence or terms that you may learn from, by name.")] = None,
) -> None:  # fmt: skip
    """Let a student leave its run: a Hugging Face folder with a model card, a GGUF file, a folder for vLLM; and put it on the hub."""
    from limbeck.exporting import export as make

    made = make(run, to, format, quantize, push, public, dry_run, accept_license or [])
    for name, size in made.files:
        print(f"{size:>15,}  {name}")
    print(f"folder: {made.folder}")
    if push:
        print(f"on the hub: {made.url}" if made.url else f"would be uploaded to {push}, {'public' if public else 'private'}; nothing was")
