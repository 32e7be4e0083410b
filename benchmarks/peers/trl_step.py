"""One on-policy distillation step of TRL's `DistillationTrainer` on CPU, timed from outside; runs under the peer's interpreter.

    /path/to/trl/bin/python benchmarks/peers/trl_step.py --teacher FOLDER --student FOLDER --prompts FILE.jsonl \
        --dtype bfloat16 --steps 4

A step is: `--batch` prompts (rows {"prompt": text or messages}, by the teacher's chat template, in the file's order), exactly
`--new-tokens` tokens each sampled by the student at temperature 1, the teacher's forward, reverse KL, backward, clipping at
norm 1, fused AdamW. The student's masters are float32; in bfloat16 the teacher's weights are bfloat16.

Settings: bf16 by `--dtype`, beta=1, no gradient checkpointing, accumulation 1, sdpa, dynamic key-value cache, no dataloader
worker, no logging, no saving. Beyond what TRL offers as a setting, and to its advantage, three things are done from outside
(`--as-shipped` leaves them out):

1. In bfloat16 the loss runs under autocast. With bf16=True alone TRL 1.16.0 (accelerate 1.15.0, one process) trains in float32:
   it calls the student's backbone through `_ForwardRedirection`, which takes the place of the forward that accelerate wrapped.
2. In bfloat16 one autocast spans the whole of `generate`, so that weights are narrowed once a step, not once a token.
3. The vocabulary's tile in the loss is 1024 wide, not 32768, which fits the caches of a CPU. (There is no unchunked loss.)

The last line printed is one JSON object; seconds are one number per step, the first step included. `step_seconds` run from the
end of one step to the end of the next, data and callbacks included. `generate_seconds` include templates and padding,
`optimizer_seconds` include clipping.
"""

# Tried on two busy cores (8 prompts of GSM8K x 64 new tokens, SmolLM2-135M to 10 of its layers). Seconds of the
# fastest step of three or four on the same prompts, because stalls fell into most runs; stages are medians without the first step:
#
#   bfloat16, as shipped                        7.1   generation 3.5, student 0.5, teacher 0.4, loss 0.6, backward 2.1
#   loss under autocast                         6.4   generation 3.5, student 0.2, teacher 0.4, loss 0.7, backward 1.5
#   and one autocast over generation            4.8   generation 2.1, student 0.2, teacher 0.4, loss 0.6, backward 1.5
#   and a tile of 1024 (chosen)                 4.0   generation 2.1, student 0.2, teacher 0.4, loss 0.3, backward 1.1
#     but attn_implementation="eager"           4.5
#     but dataloader_num_workers=1              3.9   no difference beyond noise
#     but optim="adamw_torch"                   4.1   the optimizer takes 0.04 either way
#     but use_liger_kernel=True               fails   Triton finds no driver without a GPU
#     but cache_implementation="static"       fails   the cache is float32 and autocast writes bfloat16 into it
#     but torch_compile=True                      -   no result within 60 s; the loss calls the backbone past the compiled forward
#   float32, as shipped                         7.0   generation 3.1, student 0.5, teacher 1.4, loss 0.6, backward 1.7
#   float32, a tile of 1024 (chosen)            6.6   generation 3.1, student 0.5, teacher 1.6, loss 0.3, backward 1.4
#
# The loss alone, forward and backward of 512 tokens in bfloat16, by tile (tokens x vocabulary): 4096 x 32768 (as shipped) 1.56,
# one tile of 4096 x 49152 1.59, 4096 x 4096 0.97, 512 x 1024 0.77, 256 x 1024 0.87, 64 x 4096 1.42, 16 x 49152 7.6.

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import json
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import DistillationConfig, DistillationTrainer
from trl.kernels import chunked_divergence
from trl.trainer import distillation_trainer

VOCABULARY_TILE = 1024
STAGES = ("generate", "student", "teacher", "loss", "backward", "optimizer")


class Clock(TrainerCallback):
    """Seconds of every step and of the stages within it."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.stages: list[dict[str, float]] = []
        self.now: dict[str, float] = defaultdict(float)
        self.tokens: list[int] = []
        self.losses: list[float] = []
        self.started = self.optimizer = 0.0

    def around(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, its seconds added to `stage`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.now[stage] += time.perf_counter() - began

        return timed

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.optimizer = time.perf_counter()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.now["optimizer"] += time.perf_counter() - self.optimizer

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        ended = time.perf_counter()
        self.steps.append(ended - self.started)
        self.stages.append(dict(self.now))
        self.now.clear()
        self.started = ended


def under_autocast(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` within a bfloat16 autocast of its own, whose narrowed weights are dropped when it ends."""

    def narrowed(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return call(*args, **kwargs)

    return narrowed


def settings(args: argparse.Namespace, folder: str) -> DistillationConfig:
    """TRL's settings for equal work and the least time."""
    return DistillationConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=args.dtype == "bfloat16",
        seed=args.seed,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        max_completion_length=args.new_tokens,
        # TRL masks what follows the first end token, so that token must not be drawn at all: generate forbids it until then
        generation_kwargs={"min_new_tokens": args.new_tokens},
        temperature=1.0,
        # 1 is KL(student || teacher) and 0 is KL(teacher || student), each a case of its own in TRL; between them the mixture is
        # (1 - beta) student + beta teacher. Every completion is the student's own: there is no share of other text to set
        beta=1.0,
        shuffle_dataset=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        teacher_model_init_kwargs={"dtype": args.dtype, "attn_implementation": "sdpa"},
    )


def read_prompts(path: Path) -> Dataset:
    """The rows as conversations, which TRL renders by the chat template."""
    rows = [json.loads(line)["prompt"] for line in path.read_text().splitlines() if line.strip()]
    return Dataset.from_list([{"prompt": [{"role": "user", "content": row}] if isinstance(row, str) else row} for row in rows])


def watch(trainer: DistillationTrainer, clock: Clock) -> None:
    """Wrap the stages of TRL's step."""
    generate, hidden, loss = trainer._generate_and_score_completions, trainer._get_last_hidden_state, distillation_trainer._chunked_divergence_loss

    def generate_and_count(inputs: Any) -> Any:
        batch = generate(inputs)
        clock.tokens.append(int(batch["completion_mask"].sum()))
        return batch

    def hidden_of(model: Any, *args: Any, **kwargs: Any) -> Any:
        return clock.around("teacher" if model is trainer.teacher_model else "student", hidden)(model, *args, **kwargs)

    def loss_and_note(*args: Any, **kwargs: Any) -> Any:
        found = clock.around("loss", loss)(*args, **kwargs)
        clock.losses.append(float(found[0].detach()))
        return found

    trainer._generate_and_score_completions = clock.around("generate", generate_and_count)
    trainer._get_last_hidden_state = hidden_of
    distillation_trainer._chunked_divergence_loss = loss_and_note
    trainer.accelerator.backward = clock.around("backward", trainer.accelerator.backward)
    trainer.accelerator.clip_grad_norm_ = clock.around("optimizer", trainer.accelerator.clip_grad_norm_)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder of the teacher, whose tokenizer and chat template are used")
    parser.add_argument("--student", required=True, help="folder of the student")
    parser.add_argument("--prompts", required=True, type=Path, help='rows {"prompt": text or messages}')
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the arithmetic")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--as-shipped", action="store_true", help="TRL's settings alone: without the three helps from outside")
    return parser.parse_args()


def main() -> None:
    args, clock = arguments(), Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = DistillationTrainer(
            model=args.student,
            teacher_model=args.teacher,
            args=settings(args, folder),
            train_dataset=read_prompts(args.prompts),
            processing_class=AutoTokenizer.from_pretrained(args.teacher, padding_side="left", truncation_side="left"),
            callbacks=[clock],
        )
        if not args.as_shipped:
            chunked_divergence.VOCAB_CHUNK_SIZE = VOCABULARY_TILE
            if args.dtype == "bfloat16":
                trainer._generate_single_turn = under_autocast(trainer._generate_single_turn)
                trainer.compute_loss = under_autocast(trainer.compute_loss)
        watch(trainer, clock)
        trainer.train()
    found = {
        "peer": f"trl {trl.__version__}",
        "dtype": args.dtype,
        "as_shipped": args.as_shipped,
        "threads": torch.get_num_threads(),
        "step_seconds": [round(seconds, 4) for seconds in clock.steps],
        **{f"{stage}_seconds": [round(step.get(stage, 0.0), 4) for step in clock.stages] for stage in STAGES},
        "tokens_per_step": clock.tokens,
        "losses": [round(loss, 5) for loss in clock.losses],
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
