"""The families that are tried, and what is to come of those that do not simply work."""

from __future__ import annotations

# one per kind of block: plain, normed heads, two kinds of attention, ReLU and biases, experts,
# Conv1D, parallel attention, a state space, inputs per layer, a language model beside a tower
QUICK = """
    llama qwen3 gemma2 opt mixtral gpt2 falcon mamba gemma3n_text qwen2_vl
""".split()  # noqa: SIM905

TRIED = {
    "dense": """
        apertus arcee bert biogpt bitnet bloom codegen cohere cohere2 diffllama doge ernie4_5 exaone
        exaone4 falcon gemma gemma2 gemma3_text gemma3n_text gemma4_text glm glm4 gpt2 gpt_bigcode
        gpt_neo gpt_neox gptj granite helium hunyuan_v1_dense internlm3 jais2 llama minicpm3
        ministral ministral3 mistral modernbert-decoder mpt nanochat nemotron olmo olmo2 olmo3
        openai-gpt opt persimmon phi phi3 qwen2 qwen3 seed_oss smollm3 stablelm starcoder2
        vaultgemma xglm youtu
    """,
    "experts": """
        afmoe aria_text dbrx deepseek_v2 deepseek_v3 dots1 ernie4_5_moe exaone_moe flex_olmo
        glm4_moe glm4_moe_lite gpt_oss granitemoe granitemoehybrid granitemoeshared hunyuan_v1_moe
        jetmoe lfm2_moe llama4_text longcat_flash minimax minimax_m2 mixtral olmoe phimoe qwen2_moe
        qwen3_5_moe_text qwen3_moe qwen3_next
    """,
    "states": """
        bamba falcon_h1 falcon_mamba jamba lfm2 mamba mamba2 nemotron_h olmo_hybrid qwen3_5_text
        recurrent_gemma rwkv xlstm zamba zamba2
    """,
    "towers": """
        aya_vision gemma3 gemma4 glm4v idefics3 internvl llava llava_next llava_onevision mistral3
        mllama paligemma qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe qwen3_vl qwen3_vl_moe smolvlm
    """,
    "others": "bart t5 vit",
}
FAMILIES = sorted(family for names in TRIED.values() for family in names.split())

# what people use: none of these may be refused
USED = """
    deepseek_v3 falcon gemma2 gemma3 gemma4 gpt2 gpt_neox gpt_oss llama llava mistral mistral3
    mixtral phi3 qwen2_vl qwen3 qwen3_moe qwen3_vl olmo2 bloom mamba
""".split()  # noqa: SIM905

# family: (state, words of the reason)
REFUSED: dict[str, tuple[str, str]] = {
    "bart": ("partly", "no linear that saw tokens"),  # the attention to an encoder it has not
    "longcat_flash": ("refused", "mlp.experts.gate_up_proj"),
    "t5": ("refused", "encoder-decoder"),
    "vit": ("refused", "no causal language model"),
    "zamba": ("refused", "mamba.x_proj_weight"),
    "zamba2": ("refused", "are one weight"),
}
