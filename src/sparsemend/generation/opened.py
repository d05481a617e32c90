"""A model and its tokenizer, opened for generating on a CPU or a card."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsemend.checkpoint.model import ModelConfig
from sparsemend.engine.choice import kernels
from sparsemend.engine.on_cuda import multiplied_by_triton
from sparsemend.errors import blame
from sparsemend.generation.folder import ModelPlace
from sparsemend.pretrained.checkpoint import Checkpoint
from sparsemend.pretrained.packed import dtype_of, load_packed_model


@dataclass(frozen=True)
class Opened:
    """What generates text."""

    place: ModelPlace
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def tokens(self, prompt: str, *, chat: bool, system: str | None) -> Tensor:
        """The token ids (1, T) of a prompt, or of a conversation that asks it, with the model.

        An empty prompt is the token that begins a text.  Raises ValueError where the tokenizer has
        no chat template, or a prompt has no token, too many, or some that the model does not have.
        """
        ids = self._conversation(prompt, system) if chat else self.tokenizer(prompt).input_ids
        if not ids and self.tokenizer.bos_token_id is not None:
            ids = [self.tokenizer.bos_token_id]
        if not ids:
            raise ValueError("the prompt is empty, and no token begins a text of this model")
        size = self.model.get_input_embeddings().get_parameter("weight").shape[0]
        if max(ids) >= size:
            raise ValueError(
                f"the tokenizer has a token {max(ids)}, and the model has {size}; give the "
                "tokenizer and the weights of one model"
            )
        if (left := self.room(len(ids))) is not None and left < 1:
            name, positions = self._positions()
            raise ValueError(
                f"the prompt has {len(ids)} tokens, and the model {name}={positions}; shorten it"
            )
        return torch.tensor([ids], device=self.model.device)

    def room(self, prompt: int) -> int | None:
        """The new tokens that the model has positions for; None: there is no bound."""
        name, positions = self._positions()
        return positions - prompt if name else None

    def _positions(self) -> tuple[str, int]:
        return ModelConfig(self.model.config.to_dict()).positions or ("", 0)

    def _conversation(self, prompt: str, system: str | None) -> list[int]:
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer of {self.place.path} has no chat template; leave out --chat"
            )
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": prompt})
        with blame(f"the chat template of {self.place.path}"):
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    @property
    def form(self) -> str:
        """In words, what multiplies: dtype, form of the weights, threads or the card."""
        dtype, device = str(self.model.dtype).removeprefix("torch."), self.model.device
        count = torch.get_num_threads()
        where = f"{count} thread{'s' if count > 1 else ''}" if device.type == "cpu" else str(device)
        if self.place.packed is None:
            return f"{dtype}, dense, {where}"
        form = kernel_form(device) or "as dense weights, by torch"
        return f"{dtype}, packed {self.place.packed.values}, {form}, {where}"


def kernel_form(device: torch.device) -> str | None:
    """What multiplies packed weights on a device, compiled by now; None: torch, as dense ones."""
    if device.type != "cpu":
        return "triton" if multiplied_by_triton(device) else None
    chosen = kernels()
    return None if chosen is None else chosen.form


def check_card(device: torch.device) -> None:
    """Raise ValueError where torch cannot use a card."""
    if device.type == "cpu":
        return
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        cards = f"it sees {count} card{'' if count == 1 else 's'}" if count else "it sees no card"
        raise ValueError(
            f"--device {device}, and torch {torch.__version__} cannot use it: {cards}; take "
            "--device cpu, or a torch that is built for this card"
        )


def open_place(
    place: ModelPlace, *, dtype: torch.dtype | None, device: torch.device, trust_remote_code: bool
) -> Opened:
    """The model of a place and its tokenizer; ValueError in one line where it has none.

    dtype: None as it is stored.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    checkpoint = Checkpoint(path=place.path, revision=None, trust_remote_code=trust_remote_code)
    tokenizer = checkpoint.tokenizer()
    if tokenizer is None:
        raise ValueError(
            f"{place.path} has no tokenizer, without which no text is tokens; copy the tokenizer "
            "files of its base model there"
        )
    if place.packed is not None:
        kernel_form(device)  # compiled now, if they are not yet, and in nobody's seconds
        model = load_packed_model(place.path, dtype=dtype, trust_remote_code=trust_remote_code)
    else:
        model = checkpoint.load(dtype=dtype or dtype_of(checkpoint.config()), attention=None)
    model.config.use_cache = True
    nn.Module.to(model, device)
    return Opened(place, model, tokenizer)
