"""Which models want their windows to begin with the tokenizer's BOS token (`data.bos=auto`).

Text is cut into windows anywhere, so that all but the first begin without BOS: the protocol of the
pruning papers.  Models of the Gemma families collapse on such windows.  Perplexity of gemma-2b on
WikiText-2 is 649.7 without BOS and 21.1 with it (github.com/Nota-NetsPresso/shortened-llm/pull/6);
LLaMA's differs by a hundredth (github.com/ggml-org/llama.cpp/pull/1303).  Free of torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import DictConfig

# model type -> who says that it needs BOS; _HARNESS: github.com/EleutherAI/lm-evaluation-harness
_HARNESS = "lm-evaluation-harness"
_BY_NAME = f"{_HARNESS}: its vLLM and SGLang models add BOS to every model with gemma in its name"
NEEDS_BOS: Mapping[str, str] = {
    "gemma": f"{_HARNESS}/pull/1465: LAMBADA perplexity of gemma-7b 5.9e9 without, 3.46 with",
    "gemma2": f"{_HARNESS}/pull/2049: LAMBADA perplexity of gemma-2-9b 2645 without; default since",
    "gemma3": f"{_HARNESS}/issues/3430: accuracy lost where BOS was left out",
    "gemma3n": _BY_NAME,
    "gemma4": _BY_NAME,
    "gemma4_unified": _BY_NAME,
    "recurrent_gemma": _BY_NAME,
    "vaultgemma": _BY_NAME,
}


def needs_bos(model_type: str | None) -> bool:
    """Whether `auto` means true for a model; its text part alone is named like gemma3_text."""
    return (model_type or "").removesuffix("_text") in NEEDS_BOS


def asks_for_auto(data: DictConfig) -> bool:
    """Whether the resolution of `bos` in a data section depends on the model."""
    return data.get("bos") == "auto" or (
        isinstance(text := data.get("text"), DictConfig) and asks_for_auto(text)
    )


def resolve_bos_(data: DictConfig, auto: bool) -> None:
    """Replace every `bos: auto` of a data section by true or false, in place.

    auto: what it means for the model.  The text that a source holds follows its source.
    """
    if data.get("bos") == "auto":
        data.bos = auto
    if isinstance(text := data.get("text"), DictConfig):
        resolve_bos_(text, data.get("bos", auto))
