"""Causal language models: loading them, and running them over a batch. The only file that knows padding and the shift.

Axes: B sequences, S padded length, N completion tokens of a batch, D hidden width, V vocabulary.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils.logging import disable_progress_bar

from limbeck.attention import few_places
from limbeck.batch import Batch
from limbeck.errors import ModelError, VocabularyError, is_out_of_memory
from limbeck.head import Head
from limbeck.hooks import recording
from limbeck.insides import CLOSED, Layers
from limbeck.loss import Outputs
from limbeck.machine import Opening, Precision, device, hold_memory, precision
from limbeck.memory import gathered, is_mixable, is_revocable, memory, shorten
from limbeck.offload import laid_out
from limbeck.opened import OpenModel
from limbeck.privacy import expanded
from limbeck.vocabulary import Vocabulary

disable_progress_bar()  # loading takes seconds; what takes long is shown by progress.py


GAPS = 64
"""Columns that texts may be apart from each other by what was taken back, before the gaps are closed: then all that is remembered is copied."""


def padded(batch: Batch) -> tuple[Tensor, Tensor]:
    """Sequences as rows [B, S], and where in them, flattened, stands the token before each completion token [N].

    Row n of hidden states is taken one position before completion token n: this is the one shift of the program.
    """
    if not len(batch):  # a rank without rows goes through the same motions: one token that nothing is asked of
        return torch.zeros(1, 1, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    ids_BS = torch.nn.utils.rnn.pad_sequence(batch.sequences(), batch_first=True)
    sequence_N = batch.sequence_N
    return ids_BS, sequence_N * ids_BS.shape[1] + (batch.places_N - batch.starts_B[sequence_N]) - 1


@dataclass
class Model(OpenModel):
    """A causal language model: what it says of a token stands one position before it. It writes too."""

    kind = "a causal language model"
    tags: ClassVar[dict[str, str]] = {"library_name": "transformers", "pipeline_tag": "text-generation"}

    head_like: Head = field(repr=False)
    proven: set[int] = field(default_factory=set[int], repr=False)
    """Layers whose attention, as it is laid open, was seen to be what the model makes of it."""

    @property
    def head(self) -> Head:
        """The head with the weights as they are now."""
        layer: Any = self.causal.get_output_embeddings()
        like = self.head_like
        return Head(layer.weight, like.vocabulary, getattr(layer, "bias", None), like.scale, like.cap)

    @property
    def has_windows(self) -> bool:
        """Whether some layers look back over a window alone."""
        return bool(getattr(self.causal.config.get_text_config(), "sliding_window", None))

    @property
    def writer(self) -> "Model":
        """Itself."""
        return self

    def see_learnable(self, adapters: bool, checkpoints: bool) -> None:
        """It can."""

    def forward(self, batch: Batch, opened: Layers = CLOSED) -> Outputs:
        """Hidden states [N, D] that predict each completion token, and the head they have yet to meet; layers `opened` beside them.

        Sequences are padded on the right, where a causal model cannot see it, so no mask is needed.
        """
        ids_BS, before_N = (each.to(device()) for each in padded(batch))
        with self.arithmetic(), recording(self.causal, opened, self.name) as record:
            hidden_BSD = self.causal.get_decoder()(input_ids=ids_BS, use_cache=False).last_hidden_state
        features = record.features(before_N, self.proven, self.name) if opened else None
        return Outputs(hidden_BSD.flatten(0, 1)[before_N].to(self.compute), self.head, features)

    def begin(self, prompts: Sequence[Sequence[int]]) -> "Writing":
        """Read prompts, empty ones too."""
        if len(prompts) == 1 and not prompts[0]:  # transformers masks the states of layers without attention only from two rows and places on
            return self.gather([(self.begin([*prompts, *prompts]), [0])])
        width = max(2, *(len(prompt) for prompt in prompts)) if not all(prompts) else max(len(prompt) for prompt in prompts)
        ids_BS = torch.tensor([[*[0] * (width - len(prompt)), *prompt] for prompt in prompts], device=device())
        empty_B0 = ids_BS.new_empty(len(prompts), 0)
        begun = Writing(self, memory(self.causal.config), empty_B0, empty_B0)
        begun.feed(ids_BS, torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device()))
        return begun

    def gather(self, parts: "Sequence[tuple[Writing, Sequence[int]]]") -> "Writing":
        """These rows of these texts as one, without the columns that none of them needs; a row may be taken more than once.

        Where the model's memory cannot be mixed there must be one part; all its columns stay, and it is used up.
        """
        rows = [(text, torch.tensor(list(chosen), device=text.mask_BS.device)) for text, chosen in parts]
        hidden_B1D = torch.cat([text.hidden_BQD[:, -1:].index_select(0, chosen) for text, chosen in rows])
        masks = [text.mask_BS.index_select(0, chosen) for text, chosen in rows]
        if not rows[0][0].mixable:
            assert len(rows) == 1, "rows that were read apart, and a memory that counts its past for all at once"
            rows[0][0].cache.reorder_cache(cast(Any, rows[0][1]))
            return Writing(self, rows[0][0].cache, masks[0], hidden_B1D)
        width = max(1, *(int(mask_BS.sum(1).max()) for mask_BS in masks))
        columns = [_columns(mask_BS, width) for mask_BS in masks]
        kept = [mask_BS[:, -width:] if which is None else mask_BS.gather(1, which) for mask_BS, which in zip(masks, columns, strict=True)]
        mask_BS = torch.cat([torch.nn.functional.pad(mask_BS, (width - mask_BS.shape[1], 0)) for mask_BS in kept])
        cache = gathered([(text.cache, chosen, which) for (text, chosen), which in zip(rows, columns, strict=True)], width)
        return Writing(self, cache, mask_BS, hidden_B1D)


def _columns(mask_BS: Tensor, width: int) -> Tensor | None:
    """Which columns hold each row's tokens, behind others that it masks [B, at most width]; None where they are the last ones, without a gap."""
    first_B, count_B = mask_BS.int().argmax(1), mask_BS.sum(1)
    if bool((mask_BS.shape[1] - first_B == count_B).all()):
        return None
    return mask_BS.argsort(dim=1, stable=True)[:, -width:]


@dataclass
class Writing:
    """Texts being written side by side: what the model remembers of them, and its last hidden states [B, Q, D].

    Rows begin at different places and write at the same one: columns before a row's first are masked, and no row sees them.
    """

    model: Model
    cache: DynamicCache
    mask_BS: Tensor
    hidden_BQD: Tensor

    def feed(self, ids_BQ: Tensor, mask_BQ: Tensor | None = None) -> None:
        """Append tokens to each row. mask_BQ: 1 where a token is one, 0 where it only fills up; by default all are."""
        self.mask_BS = torch.cat([self.mask_BS, torch.ones_like(ids_BQ) if mask_BQ is None else mask_BQ], 1)
        last = self.model.context - 1  # rows that have ended may be written on past it, unheard
        whole, positions_BS = bool(self.mask_BS.all()), (self.mask_BS.cumsum(-1) - 1).clamp(0, last)
        with self.model.arithmetic(), few_places(self.model.causal, ids_BQ.shape[1]):
            self.hidden_BQD = self.model.causal.get_decoder()(
                input_ids=ids_BQ, attention_mask=None if whole else self.mask_BS, position_ids=positions_BS[:, -ids_BQ.shape[1] :],
                past_key_values=self.cache, use_cache=True,
            ).last_hidden_state  # fmt: skip

    def forget(self, kept_B: Tensor, fed: int) -> None:
        """Of the last `fed` tokens of each row keep the first few; the others are masked, and left out for good where gaps have become many.

        kept_B: how many, of each row. Layers with windows count columns: they are left without gaps.
        """
        columns = int(fed - kept_B.max())
        if columns:
            shorten(self.cache, columns)
            self.mask_BS, fed = self.mask_BS[:, : self.mask_BS.shape[1] - columns], fed - columns
        place_Q = torch.arange(fed, device=self.mask_BS.device)
        self.mask_BS[:, self.mask_BS.shape[1] - fed :] = (place_Q < kept_B[:, None]).to(self.mask_BS)
        longest = int(self.mask_BS.sum(1).max())
        apart = _columns(self.mask_BS, longest) is not None if self.model.has_windows else self.mask_BS.shape[1] > longest + GAPS
        if apart:
            closed = self.model.gather([(self, range(len(self.mask_BS)))])
            self.cache, self.mask_BS = closed.cache, closed.mask_BS

    @property
    def mixable(self) -> bool:
        """Whether rows that were read apart can go on side by side."""
        return is_mixable(self.cache)

    @property
    def revocable(self) -> bool:
        """Whether what a row was fed can be taken back."""
        return is_revocable(self.cache)


def open_model(name: str, opening: Opening, compute: Precision | None = None) -> Model:
    """Open a model by hub name, folder or GGUF file.

    compute: dtype of the arithmetic where it differs from the weights' (a student keeps float32 masters).
    Raises ModelError for what cannot be found or read, VocabularyError where head and tokenizer do not fit.
    """
    hold_memory()
    see_files(name)
    tokenizer, module = tokenizer_of(name, opening), module_of(name, opening)
    ends = module.generation_config.eos_token_id if module.generation_config else None
    vocabulary = Vocabulary(tokenizer, frozenset([ends] if isinstance(ends, int) else ends or []))
    weights = next(module.parameters()).dtype
    dtype = precision(compute) if compute else weights
    module = ready(module, opening)
    return Model(module, vocabulary, name, dtype, _head_like(module, vocabulary, name))


def ready(module: Any, opening: Opening) -> Any:
    """A module in the mode it is asked for, nothing left out by chance."""
    return _without_dropout(module.train()) if opening.training else module.eval()


def _without_dropout(module: Any) -> Any:
    for layer in cast(list[Any], list(module.modules())):
        if isinstance(getattr(layer, "attention_dropout", None), float):
            layer.attention_dropout = 0.0
        elif isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    return module


def open_vocabulary(name: str, opening: Opening) -> Vocabulary:
    """Only the tokenizer of a model."""
    return Vocabulary(tokenizer_of(name, opening))


def _place(name: str) -> dict[str, str]:
    """How transformers is told where a model lies."""
    path = expanded(name)
    if not name:
        raise ModelError(f"a model without a name was asked for; {GIVE}")
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no GGUF file {name}; {GIVE}")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.is_file():
        raise ModelError(f"{name} is a file; {GIVE}")
    if (path.is_absolute() or name.startswith(".")) and not path.exists():
        raise ModelError(f"there is no folder {name}; {GIVE}")
    return {"pretrained_model_name_or_path": str(path) if path.exists() else name}


def see_files(name: str) -> None:
    """Refuse a folder that holds no model, or one only as pickles."""
    place = _place(name)
    folder = Path(place["pretrained_model_name_or_path"])
    if "gguf_file" in place or not folder.is_dir():
        return
    if not any((folder / file).exists() for file in ("config.json", "adapter_config.json")):
        raise ModelError(f"{name} holds no model, for there is no config.json in it; {GIVE}")
    if not any(folder.glob("*.safetensors")):
        pickles = any(file.suffix in (".bin", ".pt", ".pth", ".ckpt") for file in folder.iterdir())
        why = ", and pickles are never read; convert it with save_pretrained" if pickles else f"; {GIVE}"
        raise ModelError(f"{name} has no safetensors weights{why}")


def tokenizer_of(name: str, opening: Opening) -> Any:
    """The tokenizer of a model. Raises ModelError where it cannot be read."""
    place = _place(name)
    try:
        return AutoTokenizer.from_pretrained(**place, trust_remote_code=opening.trust_remote_code)
    except Exception as error:  # the libraries below raise many kinds
        raise ModelError(_reason(name, "tokenizer", error)) from None


def module_of(name: str, opening: Opening, auto: Any = AutoModelForCausalLM) -> Any:
    """The weights of a model, as one of these classes of transformers' reads them. Raises ModelError for what is not there or not whole."""
    options: dict[str, Any] = {"dtype": precision(opening.dtype), "trust_remote_code": opening.trust_remote_code, "use_safetensors": True,
                               "output_loading_info": True, "ignore_mismatched_sizes": True}  # fmt: skip
    if opening.attention:
        options["attn_implementation"] = opening.attention
    if opening.quantization:
        options["quantization_config"] = _quantization(opening.quantization)
    place = _place(name)
    if "gguf_file" in place:
        del options["use_safetensors"]
    try:
        if opening.offload:
            options |= laid_out(name, place, auto, opening)
        module, loaded = cast(tuple[Any, dict[str, Any]], auto.from_pretrained(**place, **options))
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, ModelError):
            raise
        raise ModelError(_reason(name, "model", error)) from None
    _see_weights(name, loaded)
    if "gguf_file" in place:  # its tensors are whole again; left in place, the note forbids saving them
        del module.config.quantization_config
        module.hf_quantizer = None
    return module if opening.quantization or opening.cut or "device_map" in options else module.to(device())


def _see_weights(name: str, loaded: dict[str, Any]) -> None:
    """Refuse weights that the files do not hold, or hold in another shape: transformers draws them at random and warns."""
    other = [f"{key} is {list(found)} in its files and {list(asked)} by its config.json" for key, found, asked in sorted(loaded["mismatched_keys"])]
    if wrong := other or [f"{key} is missing" for key in sorted(loaded["missing_keys"])]:
        more = f", and {len(wrong) - 2:,} more" if len(wrong) > 2 else ""
        raise ModelError(f"the weights of {name} are not those of its config.json: {', '.join(wrong[:2])}{more}; {ANEW}")


GIVE = "give a folder that save_pretrained wrote, a GGUF file or a name on the hub"
ANEW = "mend it, or fetch the model anew"
HINTS = {"JSON": ANEW, "mapping": ANEW, "ValidationError": ANEW, "attn_implementation": "drop its attention", "FlashAttention": "drop its attention",
         "does not recognize": "update transformers, or give another model"}  # fmt: skip
"""What to do, by a piece of what the libraries say."""


def _reason(name: str, what: str, error: Exception) -> str:
    """What stands in the way of opening a model, in one line."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return f"the {what} of {name} runs code of its own; read it, then set trust_remote_code: true"
    if "safetensors" in text and "not appear" in text:
        return f"{name} has no safetensors weights, and pickles are never read; convert it with save_pretrained"
    if type(error).__name__ == "SafetensorError":
        return f"a weights file of {name} is cut short or damaged ({text}); fetch it anew"
    if name.endswith(".gguf") and "not supported" not in text:
        return f"{name} is cut short or no GGUF file ({text[:200].removesuffix('.')}); fetch it anew"
    if kind := re.search(r"Unrecognized configuration class <class '[\w.]*\.(\w+)'", text):
        return f"{name} is no causal language model (its configuration is a {kind[1]}); give one that is"
    if "instantiate the backend tokenizer" in text:
        return f"{name} holds no tokenizer that can be read; save the model's own into it with save_pretrained"
    hint = next((hint for words, hint in HINTS.items() if words in f"{type(error).__name__}: {text}"), GIVE)
    missing = "" if expanded(name).exists() or not isinstance(error, OSError) else "there is no such folder here, and the hub did not give it: "
    brief = text if isinstance(error, ImportError) else re.split(r"[.!] ", text)[0]
    return f"cannot open the {what} of {name}: {missing}{brief[:300].removesuffix('.')}; {hint}"


def _quantization(bits: str) -> Any:
    try:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
    except ImportError:
        raise ModelError(f"{bits} weights need bitsandbytes; pip install 'limbeck[quantization]'") from None
    from transformers import BitsAndBytesConfig

    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=precision("auto"))


def _head_like(module: Any, vocabulary: Vocabulary, name: str) -> Head:
    """Find how this model makes logits of hidden states, and prove it on a few tokens against the model itself."""
    layer = module.get_output_embeddings()
    if not isinstance(getattr(layer, "weight", None), Tensor) or layer.weight.ndim != 2:
        raise ModelError(f"{name} has no linear head over its vocabulary; Limbeck distills causal language models that have")
    if len(layer.weight) < vocabulary.size:
        raise VocabularyError(f"{name} scores {len(layer.weight):,} tokens and its tokenizer knows {vocabulary.size:,}; resize its embeddings")
    ids_1S = torch.arange(min(8, vocabulary.size), device=layer.weight.device)[None]
    with torch.no_grad():
        hidden_SD = module.get_decoder()(input_ids=ids_1S, use_cache=False).last_hidden_state[0]
        wanted_SV = module(input_ids=ids_1S, use_cache=False).logits[0, :, : vocabulary.size].float()
        for head in _known_heads(module, vocabulary.size):
            error = (head.prepared(hidden_SD.dtype).logits(hidden_SD) - wanted_SV).abs().max()
            if error <= wanted_SV.abs().max() * (1e-4 if hidden_SD.dtype == torch.float32 else 4e-2):
                return head
    if not _is_causal(module, ids_1S, hidden_SD):
        raise ModelError(f"{name} is no causal language model ({type(module).__name__} reads what comes after a token too); give one that is")
    raise ModelError(f"{name} makes its logits in a way Limbeck does not know ({type(module).__name__}); please open an issue")


def _is_causal(module: Any, ids_1S: Tensor, hidden_SD: Tensor) -> bool:
    """Whether the first of these tokens are read alike without those after them."""
    with torch.no_grad():
        alone_SD = module.get_decoder()(input_ids=ids_1S[:, :2], use_cache=False).last_hidden_state[0]
    return bool((alone_SD - hidden_SD[:2]).abs().max() <= hidden_SD.abs().max() * (1e-4 if hidden_SD.dtype == torch.float32 else 4e-2))


def _known_heads(module: Any, vocabulary: int) -> list[Head]:
    """A plain head, and the published variations that this configuration names."""
    config, layer = module.config.get_text_config(), module.get_output_embeddings()
    cap = getattr(config, "final_logit_softcapping", None)
    named = getattr(config, "logits_scaling", None)
    scales = [1.0, getattr(config, "logit_scale", None), 1 / named if named else None, named]
    bias = getattr(layer, "bias", None)
    return [Head(layer.weight, vocabulary, bias, float(scale), cap) for scale in scales if scale]
