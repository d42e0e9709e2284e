"""transformers' models for text and speech, at small size, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from clipbench.bench.models_zoo import CLASSES, VOCABULARY, Draw, Entry, Output, classes, tokens
from clipbench.bench.problems import cross_entropy, token_entropy

LENGTH, WIDTH, HEADS, LAYERS, INNER = 64, 128, 4, 3, 512
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "intermediate_size": INNER,
    "max_position_embeddings": 2 * LENGTH,
    "pad_token_id": 0,
}
LOW = 4  # token numbers below it have a meaning of their own (padding, beginning, end)


def _build(
    config: str, model: str, field: str, call: Callable[[nn.Module, Tensor], object] | None, **options: Any
) -> nn.Module:
    chosen = getattr(hf, config)(**options)
    chosen.use_cache = False
    chosen._experts_implementation = "eager"  # the default, one grouped product, exists in float32 and narrower only
    return Output(getattr(hf, model)(chosen), field, call)


def next_tokens(n: int, draws: torch.Generator) -> Tensor:
    """A random next token at every place."""
    return torch.randint(LOW, VOCABULARY, (n, LENGTH), generator=draws)


def masked_tokens(n: int, draws: torch.Generator) -> Tensor:
    """A token at one place in six, as in training with masked tokens; elsewhere none (−100)."""
    hidden = torch.rand(n, LENGTH, generator=draws) < 1 / 6
    hidden[:, 0] = True
    return torch.where(hidden, next_tokens(n, draws), -100)


def _language(
    family: str, title: str, kind: str, targets: Draw = next_tokens, model: str = "", **options: Any
) -> Entry:
    """A model that gives scores for every token."""
    call = options.pop("call", None)
    name = model or f"{kind}ForCausalLM"
    make = partial(_build, f"{kind}Config", name, "logits", call, **options)
    return Entry(family, title, make, tokens(LENGTH, LOW), targets, token_entropy)


def _classifier(family: str, title: str, kind: str, **options: Any) -> Entry:
    """A model that gives scores for each of CLASSES."""
    name = options.pop("model", f"{kind}ForSequenceClassification")
    make = partial(_build, f"{kind}Config", name, "logits", options.pop("call", None), num_labels=CLASSES, **options)
    return Entry(family, title, make, tokens(LENGTH, LOW), classes(), cross_entropy)


def _both_sides(model: nn.Module, x: Tensor) -> object:
    """Encoder and decoder read the same tokens."""
    return model(input_ids=x, decoder_input_ids=x)


def _two_segments(model: nn.Module, x: Tensor) -> object:
    """The second half of the tokens is a second sentence."""
    return model(input_ids=x, token_type_ids=(torch.arange(x.shape[1]) >= x.shape[1] // 2).long().expand_as(x))


def _speech() -> Entry:
    options = {**SIZES, "conv_dim": (32, 32, 32), "conv_kernel": (10, 8, 4), "conv_stride": (5, 4, 2),
               "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
               "feat_extract_norm": "layer", "do_stable_layer_norm": True, "num_labels": CLASSES,
               "classifier_proj_size": WIDTH, "mask_time_prob": 0.0, "layerdrop": 0.0}  # fmt: skip
    make = partial(_build, "Wav2Vec2Config", "Wav2Vec2ForSequenceClassification", "logits", None, **options)
    return Entry("Wav2Vec2", "Wav2Vec2", make, lambda n, draws: torch.randn(n, 2600, generator=draws), classes(),
                 cross_entropy)  # fmt: skip


_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 32, "d_ff": INNER, "num_heads": HEADS, "num_layers": 2,
    "decoder_start_token_id": 0, "dropout_rate": 0.0, "call": _both_sides,
}  # fmt: skip
_GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": 2 * LENGTH,
}
_LLAMA: dict[str, Any] = {**SIZES, "num_key_value_heads": 2}
_GEMMA: dict[str, Any] = {**_LLAMA, "head_dim": 32}
_MOE: dict[str, Any] = {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}
_DEBERTA: dict[str, Any] = {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16,
            "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False}  # fmt: skip
_MAMBA: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}
_BART: dict[str, Any] = {"vocab_size": VOCABULARY, "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2,
         "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS, "encoder_ffn_dim": INNER,
         "decoder_ffn_dim": INNER, "max_position_embeddings": 2 * LENGTH, "call": _both_sides}  # fmt: skip

ENTRIES: dict[str, Entry] = {
    "gpt2": _language("GPT", "GPT-2", "GPT2", model="GPT2LMHeadModel", **_GPT),
    "gpt2_classifier": _classifier("GPT", "GPT-2, classifier", "GPT2", pad_token_id=0, **_GPT),
    "gpt_neox": _language("GPT", "GPT-NeoX", "GPTNeoX", **SIZES),
    "opt": _language("GPT", "OPT", "OPT", **{**SIZES, "ffn_dim": INNER, "word_embed_proj_dim": WIDTH}),
    "bloom": _language("GPT", "BLOOM", "Bloom", vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS),
    "phi": _language("GPT", "Phi", "Phi", **SIZES),
    "llama": _language("Llama", "Llama", "Llama", **_LLAMA),
    "mistral": _language("Llama", "Mistral", "Mistral", **_LLAMA),
    "qwen2": _language("Llama", "Qwen2", "Qwen2", **_LLAMA),
    "gemma": _language("Llama", "Gemma", "Gemma", **_GEMMA),
    "gemma2": _language("Llama", "Gemma 2", "Gemma2", **_GEMMA),
    "mixtral": _language("mixture of experts", "Mixtral", "Mixtral", **_MOE),
    "switch": _language(
        "mixture of experts", "Switch Transformer", "SwitchTransformers",
        model="SwitchTransformersForConditionalGeneration", **_T5, num_experts=4, num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1, router_jitter_noise=0.0,
    ),
    "bert": _language("BERT", "BERT, masked tokens", "Bert", masked_tokens, "BertForMaskedLM", **SIZES),
    "bert_classifier": _classifier("BERT", "BERT, classifier", "Bert", **SIZES),
    "roberta": _classifier("BERT", "RoBERTa, classifier", "Roberta", **SIZES),
    "distilbert": _classifier(
        "BERT", "DistilBERT, classifier", "DistilBert", vocab_size=VOCABULARY, dim=WIDTH, n_layers=LAYERS,
        n_heads=HEADS, hidden_dim=INNER, pad_token_id=0,
    ),
    "albert": _classifier("BERT", "ALBERT, classifier", "Albert", **SIZES, embedding_size=64),
    "electra": _classifier("BERT", "ELECTRA, classifier", "Electra", **SIZES, embedding_size=64),
    "mpnet": _classifier("BERT", "MPNet, classifier", "MPNet", **SIZES),
    "deberta": _classifier("BERT", "DeBERTa v2, classifier", "DebertaV2", **_DEBERTA),
    "xlnet": _classifier(
        "XLNet", "XLNet, classifier", "XLNet", vocab_size=VOCABULARY, d_model=WIDTH, n_layer=LAYERS, n_head=HEADS,
        d_inner=INNER, pad_token_id=0, call=_two_segments,
    ),
    "t5": _language("T5", "T5", "T5", model="T5ForConditionalGeneration", **_T5),
    "bart": _language("T5", "BART", "Bart", model="BartForConditionalGeneration", **_BART),
    "mamba": _language("Mamba", "Mamba", "Mamba", **_MAMBA),
    "mamba2": _language("Mamba", "Mamba-2", "Mamba2", **_MAMBA, num_heads=8, head_dim=16, n_groups=2, chunk_size=16),
    "wav2vec2": _speech(),
}  # fmt: skip
