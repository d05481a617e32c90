"""Products with packed and 2:4 weights on a card, and text generated there, are as on the CPU."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path
from time import perf_counter

import pytest
import torch
from support.families import random_model
from support.gpu_runs import BLOCK_7B, DEVICE, GPU, written
from support.layouts import prune_two_of_four_
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from sparsemend.cli import generate
from sparsemend.engine.convert import pack_linears_
from sparsemend.engine.linear import PackedLinear
from sparsemend.engine.packed import VALUES, pack_weight
from sparsemend.engine.two_four import compress_two_four, multiply_two_four
from sparsemend.model import train_tokenizer
from sparsemend.run.export import export
from sparsemend.sparse.selection import rank_in_group

SHAPES = [(9, 37), (70, 1100), (512, 1376)]
TOKENS = [1, 2, 3, 5, 8, 9, 100]
# of the norm: sums of some hundred terms in another order, which grow with their root; one rounding
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2**-7}


def off(output: Tensor, expected: Tensor) -> float:
    assert output.dtype == expected.dtype
    there, here = output.cpu().double(), expected.cpu().double()
    return float((there - here).norm() / here.norm())


def packed_linear(shape: tuple[int, int], values: str) -> PackedLinear:
    """Of 70 % zeros and a bias, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).bfloat16().float()
    weight *= torch.rand(shape, generator=generator) < 0.3
    bias = torch.randn(shape[0], generator=generator).bfloat16().float()
    return PackedLinear(pack_weight(weight, keep=None, values=values), bias)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@torch.inference_mode()
def test_a_packed_linear_gives_what_it_gives_on_the_cpu(values: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        here = packed_linear(shape, values)
        there = copy.deepcopy(here).to(DEVICE)
        for count in TOKENS:
            x = torch.randn(count, shape[1], generator=torch.Generator().manual_seed(count))
            x = x.to(dtype)
            output = there(x.to(DEVICE))
            distance = off(output, here(x))
            written("equality.csv", f"packed {values} {dtype} {shape} {count},off,{distance:.1e}")
            assert distance <= BOUNDS[dtype], (shape, count)
            assert torch.equal(output, there(x.to(DEVICE)))  # no sum depends on who comes first


@torch.inference_mode()
def test_a_packed_model_generates_on_the_card_what_it_generates_on_the_cpu() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=112,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=96,
        pad_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for _, linear in model.model.layers.named_modules():
        if isinstance(linear, nn.Linear):
            linear.weight *= torch.rand_like(linear.weight) < 0.3
    pack_linears_(model, values="float32", least_sparsity=0.4)
    prompt = torch.randint(3, 96, (2, 20), generator=torch.Generator().manual_seed(1))
    here = model(prompt).logits
    asked = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    text = model.generate(prompt, **asked)
    model.to(DEVICE)
    assert off(model(prompt.to(DEVICE)).logits, here) <= 1e-4
    assert model.generate(prompt.to(DEVICE), **asked).tolist() == text.tolist()


def test_the_command_gives_on_the_card_the_text_of_the_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model("llama", vocab_size=300)
    prune_two_of_four_(model)
    tokenizer = train_tokenizer(["the import statement binds a name"] * 20, 300)
    folder = tmp_path / "model"
    export(model, tokenizer, folder, masks=tmp_path / "none", card=None, values="float32")
    texts = []
    for device in ("cpu", DEVICE):
        generate.main([str(folder), "--prompt", "the import", "--greedy", "--device", str(device)])
        out, err = capsys.readouterr()
        texts.append(out)
        assert str(device) == "cpu" or "packed F32, triton, cuda" in err
    assert texts[0].strip()
    assert texts[1] == texts[0]


@pytest.mark.skipif(not GPU, reason="a CPU has no 2:4 products")
@torch.inference_mode()
def test_a_two_four_product_is_the_dense_one_of_the_cpu() -> None:
    for shape, dtype in product([(64, 128), (512, 1408)], (torch.bfloat16, torch.float16)):
        groups = torch.randn(shape, generator=torch.Generator().manual_seed(0)).reshape(-1, 4)
        weight = groups.masked_fill(rank_in_group(groups.abs()) < 2, 0).view(shape).to(dtype)
        compressed = compress_two_four(weight.to(DEVICE))
        for bias, lead in product((None, torch.randn(shape[0])), ((1,), (2, 3), (100,))):
            x = torch.randn(*lead, 2 * shape[1]).to(dtype)[..., ::2]  # with gaps in memory
            narrow = None if bias is None else bias.to(dtype)
            expected = x.double() @ weight.double().T
            expected = expected if narrow is None else expected + narrow.double()
            there = None if narrow is None else narrow.to(DEVICE)
            distance = off(multiply_two_four(x.to(DEVICE), compressed, there), expected.to(dtype))
            written("equality.csv", f"2:4 {dtype} {shape} {lead},off,{distance:.1e}")
            assert distance <= BOUNDS[torch.bfloat16]


@pytest.mark.skipif(not GPU, reason="a CPU has no 2:4 products")
def test_a_two_four_weight_that_does_not_fit_is_refused_in_one_line() -> None:
    weight = torch.zeros(10, 20, dtype=torch.bfloat16, device=DEVICE)
    with pytest.raises(ValueError, match=r"no 2:4 product with a 10 x 20 weight: [^\n]*$"):
        compress_two_four(weight)


@torch.inference_mode()
def test_figures_of_packed_products() -> None:
    """Seconds of one call with Python's launch, beside dense; the bench has them without."""
    shape = (BLOCK_7B.hidden, BLOCK_7B.hidden)
    packed = packed_linear(shape, "bfloat16").to(DEVICE)
    dense = packed.weight
    for count in (1, 8, 128):
        x = torch.randn(count, shape[1], device=DEVICE, dtype=torch.bfloat16)
        for name, call in (
            ("packed", lambda x=x: packed(x)),
            ("dense", lambda x=x: nn.functional.linear(x, dense)),
        ):
            call()  # warm
            started = perf_counter()
            for _ in range(10):
                output = call()
            assert bool(output.isfinite().all())  # which waits for it
            written("products.csv", f"{name},{count},{(perf_counter() - started) / 10:.6f}")
