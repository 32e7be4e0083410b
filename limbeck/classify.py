"""Classifiers: transformers' of text, and any torch module of a column of numbers. A row is the one completion token: its class.

The logits themselves stand as hidden states, and the head is the identity: whatever a classifier makes its logits by is its own matter.

Axes: B sequences, S padded length, N completion tokens (one of each sequence), C classes.
"""

import ast
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from limbeck.batch import Batch
from limbeck.config import import_object
from limbeck.errors import DataError, ModelError, RecipeError, is_out_of_memory
from limbeck.files import write_text
from limbeck.head import Head
from limbeck.insides import CLOSED, Build, Layers
from limbeck.labels import Labels, names_of
from limbeck.loss import Outputs
from limbeck.machine import Opening, Precision, device, precision
from limbeck.models import module_of, ready, see_files, tokenizer_of
from limbeck.opened import OpenModel
from limbeck.places import CALL, MODULE
from limbeck.vocabulary import Vocabulary

COLUMNS = ("features", "image")
"""Where a row's numbers stand, unless a module names another column."""
UNSTEADY = (nn.modules.batchnorm._BatchNorm,)  # pyright: ignore[reportPrivateUsage]  # the base of all of them


@dataclass
class Classifier(OpenModel):
    """Base of both."""

    needs_rows = True

    @property
    def head(self) -> Head:
        """The identity: logits stand as hidden states."""
        return Head(torch.eye(self.vocabulary.size, device=device()), self.vocabulary.size)

    @property
    def build(self) -> Build:
        """Refused: what stands inside a classifier has no row of its own."""
        raise ModelError(f"{self.name} is {self.kind}, whose layers are not compared; give an objective without HiddenStates and Attentions")


@dataclass
class TextClassifier(Classifier):
    """A transformers model for sequence classification: it reads what stands before the class."""

    kind = "a classifier of text"
    tags: ClassVar[dict[str, str]] = {"library_name": "transformers", "pipeline_tag": "text-classification"}

    @property
    def context(self) -> int:
        """The longest text it was made for, and its class."""
        return min(super().context, int(getattr(self.vocabulary.tokenizer, "model_max_length", 10**9))) + 1

    def forward(self, batch: Batch, opened: Layers = CLOSED) -> Outputs:
        """Logits [N, C] as hidden states."""
        texts = [torch.tensor(ids, device=device()) for ids in batch.prompts()] or [torch.zeros(1, dtype=torch.int64, device=device())]
        pad = self.causal.config.get_text_config().pad_token_id or 0
        ids_BS = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad)
        mask_BS = nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
        with self.arithmetic():
            logits_BC = self.causal(input_ids=ids_BS, attention_mask=mask_BS).logits
        return Outputs(logits_BC.float()[batch.sequence_N.to(device())], self.head)


@dataclass
class ModuleClassifier(Classifier):
    """Any torch module from a batch of some column's numbers to logits [B, C].

    call: how it is made, `module:function` with its settings. column: None is "features", or "image" where a row has that.
    """

    kind = "a classifier of numbers"
    tags: ClassVar[dict[str, str]] = {"library_name": "pytorch"}

    call: str
    column: str | None

    @property
    def context(self) -> int:
        """No text, no bound."""
        return 10**9

    def forward(self, batch: Batch, opened: Layers = CLOSED) -> Outputs:
        """Logits [N, C] as hidden states."""
        if not len(batch):  # a rank without rows: nothing is asked, and every weight is waited for
            none = 0.0 * torch.stack([weight.sum() for weight in self.module.parameters()]).sum()
            return Outputs(torch.zeros(0, self.vocabulary.size, device=device()) + none, self.head)
        values = self._values(batch)
        try:
            with self.arithmetic():
                logits_BC = self.module(values)
        except (RuntimeError, ValueError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{self.name} fails on rows of {list(values.shape[1:])} numbers ({reason}); give rows or a module that fit") from error
        wanted = (len(batch), self.vocabulary.size)
        if not isinstance(logits_BC, Tensor) or logits_BC.shape != wanted:
            found = list(logits_BC.shape) if isinstance(logits_BC, Tensor) else type(logits_BC).__name__
            raise ModelError(f"{self.name} gave {found} for {wanted[0]} rows of {wanted[1]} classes; a classifier gives logits {list(wanted)}")
        return Outputs(logits_BC.float()[batch.sequence_N.to(device())], self.head)

    def _values(self, batch: Batch) -> Tensor:
        names = (self.column,) if self.column else COLUMNS
        column = next((name for name in names if name in batch.columns_B[0]), None)
        if column is None:
            raise DataError(f"{self.name} reads the column {' or '.join(names)}, found columns {', '.join(batch.columns_B[0]) or 'none'}")
        try:
            return torch.tensor([columns[column] for columns in batch.columns_B], dtype=torch.float32, device=device())
        except (KeyError, ValueError, TypeError):
            raise DataError(
                f'the rows of a pass differ in their column "{column}", or it holds other things than numbers; give each as many'
            ) from None

    def see_learnable(self, adapters: bool, checkpoints: bool) -> None:
        """Refuse what would make a row depend on its neighbours, and what only transformers models can."""
        super().see_learnable(adapters, checkpoints)
        if checkpoints:
            raise RecipeError(f"{self.name} is {self.kind}, which cannot checkpoint its activations; leave out gradient_checkpointing")
        if any(isinstance(each, UNSTEADY) for each in self.module.modules()):
            raise ModelError(f"{self.name} normalises over the rows of a pass (BatchNorm), so that a row would depend on its neighbours; "
                             "give it GroupNorm or LayerNorm")  # fmt: skip

    def save(self, folder: Path, whole: dict[str, Tensor] | None) -> None:
        """Weights as safetensors, and beside them the name of the function whose module they are of."""
        weights = {name: value.detach().cpu().contiguous().clone() for name, value in {**self.module.state_dict(), **(whole or {})}.items()}
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / "model.safetensors")
        told = {MODULE: self.call, "labels": list(cast(Labels, self.vocabulary).names), "column": self.column}
        write_text(folder / "config.json", json.dumps(told, indent=2) + "\n")


def open_text_classifier(name: str, opening: Opening, compute: Precision | None) -> OpenModel:
    """Open a transformers classifier."""
    see_files(name)
    reads, module = Vocabulary(tokenizer_of(name, opening)), module_of(name, opening, AutoModelForSequenceClassification)
    weights = next(module.parameters()).dtype
    dtype = precision(compute) if compute else weights
    return TextClassifier(ready(module, opening), Labels(names_of(module.config.id2label), reads), name, dtype)


def open_module(name: str, opening: Opening, compute: Precision | None, saved: Mapping[str, Any] | None = None) -> OpenModel:
    """Open a torch module: a fresh one by `module:function`, or one that was saved, whose folder `name` is and whose config.json is given.

    A function's weights are drawn with torch's seed at 0, so that the same settings give the same weights.
    """
    call = name if saved is None else str(saved[MODULE])
    if saved is not None:
        _see_own_code(name, call, opening)
    module = _made(call)
    labels = getattr(module, "labels", None) if saved is None else saved.get("labels")
    names = _names(labels, module, call)
    if saved is not None:
        _fill(module, Path(name).expanduser(), call)
    column = getattr(module, "column", None) if saved is None else saved.get("column")
    module = module.float().to(device()).eval()
    return ModuleClassifier(module, Labels(names), name, precision(compute or opening.dtype), call, column)


def _see_own_code(name: str, call: str, opening: Opening) -> None:
    """A folder may name any function: only those written in the working folder are called unasked."""
    if opening.trust_remote_code:
        return
    function, top = _function(call)[0], call.partition(":")[0].partition(".")[0]
    file = getattr(sys.modules[call.partition(":")[0]], "__file__", None)
    place = Path(file).resolve() if file else None
    here = place is not None and place.is_relative_to(Path.cwd()) and "site-packages" not in place.parts
    if not here or str(getattr(function, "__module__", "")).partition(".")[0] != top:
        raise ModelError(f"{name} is made by {call}, which is no code of the working folder; read it, then set trust_remote_code: true")


def _function(call: str) -> tuple[Any, dict[str, Any]]:
    """The function of a call, and its settings."""
    found = re.fullmatch(CALL, call)
    if not found:
        raise RecipeError(f'cannot read "{call}"; write it like my_module:my_function or my_module:my_function(width=16)')
    try:
        written = cast(ast.Call, ast.parse(f"f{found[2] or '()'}", mode="eval").body)
        settings = {str(each.arg): ast.literal_eval(each.value) for each in written.keywords}
        if written.args or None in [each.arg for each in written.keywords]:
            raise ValueError
    except (ValueError, SyntaxError, TypeError, AttributeError):
        raise RecipeError(f'cannot read the settings of "{call}"; give each by its name, a number, text or a list: {found[1]}(width=16)') from None
    function = import_object(found[1])
    if not callable(function):
        raise RecipeError(f'"{found[1]}" is no function; name one that gives a torch module')
    return function, settings


def _made(call: str) -> nn.Module:
    function, settings = _function(call)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            module = function(**settings)
        except Exception as error:  # a user's function may raise anything
            raise ModelError(f"{call} raised {type(error).__name__}: {' '.join(str(error).split())[:200]}; mend the function") from error
    if not isinstance(module, nn.Module) or not list(module.parameters()):
        raise ModelError(f"{call} gave {type(module).__name__}, expected a torch module with weights; mend the function")
    return module


def _names(labels: Any, module: nn.Module, call: str) -> list[str]:
    """The classes: as the module names them, else numbered, as many as its last linear layer gives."""
    if labels is not None:
        if (
            not isinstance(labels, list | tuple)
            or len(cast(list[Any], labels)) < 2
            or len(set(cast(list[Any], labels))) < len(cast(list[Any], labels))
        ):
            raise ModelError(f"the labels of {call} must be a list of at least two names, each once; found {str(cast(Any, labels))[:80]}")
        return [str(name) for name in cast(list[Any], labels)]
    linear = [each for each in module.modules() if isinstance(each, nn.Linear)]
    if not linear:
        raise ModelError(
            f"{call} gives a module without a linear layer, which does not say how many classes there are; give it labels, a list of names"
        )
    return [str(number) for number in range(linear[-1].out_features)]


def _fill(module: nn.Module, folder: Path, call: str) -> None:
    try:
        weights = load_file(folder / "model.safetensors")
        module.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"the weights in {folder} are not those of {call} ({reason}); give the function that made them") from None
