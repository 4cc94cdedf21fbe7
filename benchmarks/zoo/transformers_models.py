"""Forty architectures of transformers, small ones from configurations: two layers, narrow, several heads."""

import importlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.network import Network
from sned.cli.zoo import import_torchvision
from sned.errors import NotFoundError

WORDS, TOKENS, SIDE = 96, 12, 64


@dataclass(frozen=True)
class Recipe:
    """A model class of transformers, the options of its configuration, and what it is called with.

    Attributes:
        model: name of the model class; its configuration's class is the one that it names.
        example: random keyword arguments of a batch size.
        options: of the configuration; a `Mapping` given for a nested configuration is passed on as it is.
    """

    model: str
    example: Callable[[int], dict[str, Any]]
    options: Mapping[str, Any]


def small() -> list[Network]:
    """The forty networks."""
    return [
        Network("transformers", name, partial(_build, recipe), recipe.example)
        for name, recipe in RECIPES.items()
    ]


def _build(recipe: Recipe) -> nn.Module:
    with suppress(NotFoundError):  # its models of images import torchvision where that is installed
        import_torchvision()
    kind = getattr(importlib.import_module("transformers"), recipe.model)
    model: nn.Module = kind(kind.config_class(**recipe.options))
    return model


def _words(batch: int) -> dict[str, Any]:
    return {"input_ids": torch.randint(3, WORDS, (batch, TOKENS))}


def _masked_words(batch: int) -> dict[str, Any]:
    mask = torch.ones(batch, TOKENS, dtype=torch.long)
    mask[:, -2:] = 0
    return {**_words(batch), "attention_mask": mask}


def _translation(batch: int) -> dict[str, Any]:
    return {**_words(batch), "decoder_input_ids": torch.randint(3, WORDS, (batch, 6))}


def _image(batch: int, side: int = SIDE) -> dict[str, Any]:
    return {"pixel_values": torch.randn(batch, 3, side, side)}


def _image_and_words(batch: int) -> dict[str, Any]:
    return {**_image(batch), **_words(batch)}


def _image_and_points(batch: int) -> dict[str, Any]:
    return {**_image(batch), "input_points": SIDE * torch.rand(batch, 1, 2, 2)}


def _spectrum(batch: int) -> dict[str, Any]:
    return {
        "input_features": torch.randn(batch, 16, 32),
        "decoder_input_ids": torch.randint(3, WORDS, (batch, 6)),
    }


def _wave(batch: int) -> dict[str, Any]:
    return {"input_values": torch.randn(batch, 800)}


_LAYERS = {"num_hidden_layers": 2, "hidden_size": 64}
_BERT = {
    **_LAYERS,
    "vocab_size": WORDS,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 32,
}
_LLAMA = {
    **_BERT,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VIT = {
    **_LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": SIDE,
    "patch_size": 8,
    "num_labels": 10,
}
_SPEECH = {
    **_LAYERS,
    "vocab_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_dim": (32, 32, 32),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_STAGES = {"num_labels": 10, "hidden_sizes": [32, 64], "depths": [2, 2]}
_RESNET = {**_STAGES, "embedding_size": 32, "layer_type": "basic"}

RECIPES = {
    "bert": Recipe("BertForMaskedLM", _masked_words, _BERT),
    "distilbert": Recipe(
        "DistilBertForSequenceClassification",
        _masked_words,
        {
            "vocab_size": WORDS,
            "dim": 64,
            "n_heads": 4,
            "n_layers": 2,
            "hidden_dim": 128,
            "max_position_embeddings": 32,
        },
    ),
    "roberta": Recipe("RobertaForSequenceClassification", _words, {**_BERT, "pad_token_id": 1}),
    "deberta": Recipe(
        "DebertaV2ForSequenceClassification",
        _masked_words,
        {
            **_BERT,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
        },
    ),
    "albert": Recipe("AlbertForMaskedLM", _words, {**_BERT, "embedding_size": 32}),
    "electra": Recipe("ElectraForPreTraining", _words, {**_BERT, "embedding_size": 32}),
    "mobilebert": Recipe(
        "MobileBertForSequenceClassification",
        _words,
        {**_BERT, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    ),
    "t5": Recipe(
        "T5ForConditionalGeneration",
        _translation,
        {
            "vocab_size": WORDS,
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": 4,
            "relative_attention_num_buckets": 8,
            "feed_forward_proj": "gated-gelu",
        },
    ),
    "bart": Recipe(
        "BartForConditionalGeneration",
        _translation,
        {
            "vocab_size": WORDS,
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "max_position_embeddings": 32,
        },
    ),
    "gpt2": Recipe(
        "GPT2LMHeadModel",
        _words,
        {"vocab_size": WORDS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32},
    ),
    "gpt_neox": Recipe("GPTNeoXForCausalLM", _words, _BERT),
    "opt": Recipe(
        "OPTForCausalLM",
        _words,
        {
            **_LAYERS,
            "vocab_size": WORDS,
            "num_attention_heads": 4,
            "ffn_dim": 128,
            "max_position_embeddings": 32,
            "word_embed_proj_dim": 64,
        },
    ),
    "llama": Recipe("LlamaForCausalLM", _words, _LLAMA),
    "mistral": Recipe("MistralForCausalLM", _words, {**_LLAMA, "sliding_window": 8}),
    "qwen": Recipe("Qwen3ForCausalLM", _words, _LLAMA),
    "gemma": Recipe("GemmaForCausalLM", _words, _LLAMA),
    "phi": Recipe(
        "PhiForCausalLM", _words, {**_BERT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    ),
    "mixtral": Recipe(
        "MixtralForCausalLM", _words, {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "mamba": Recipe("MambaForCausalLM", _words, {**_LAYERS, "vocab_size": WORDS, "state_size": 8}),
    "vit": Recipe("ViTForImageClassification", _image, _VIT),
    "deit": Recipe("DeiTForImageClassification", _image, _VIT),
    "swin": Recipe(
        "SwinForImageClassification",
        _image,
        {
            "image_size": SIDE,
            "patch_size": 4,
            "embed_dim": 32,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
            "num_labels": 10,
        },
    ),
    "beit": Recipe("BeitForImageClassification", _image, {**_VIT, "use_relative_position_bias": True}),
    "dinov2": Recipe("Dinov2ForImageClassification", _image, _VIT),
    "convnext": Recipe("ConvNextForImageClassification", _image, {**_STAGES, "num_stages": 2}),
    "segformer": Recipe(
        "SegformerForSemanticSegmentation",
        _image,
        {
            "num_encoder_blocks": 2,
            "depths": [2, 2],
            "hidden_sizes": [32, 64],
            "num_attention_heads": [2, 4],
            "sr_ratios": [4, 2],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 64,
            "num_labels": 10,
        },
    ),
    "mobilevit": Recipe(
        "MobileViTForImageClassification",
        _image,
        {
            "image_size": SIDE,
            "hidden_sizes": [32, 48, 64],
            "neck_hidden_sizes": [16, 16, 24, 32, 40, 48, 64],
            "num_attention_heads": 4,
            "num_labels": 10,
        },
    ),
    "efficientnet": Recipe(
        "EfficientNetForImageClassification",
        _image,
        {
            "image_size": SIDE,
            "width_coefficient": 0.5,
            "depth_coefficient": 0.5,
            "hidden_dim": 640,
            "num_labels": 10,
        },
    ),
    "regnet": Recipe(
        "RegNetForImageClassification", _image, {**_RESNET, "layer_type": "y", "groups_width": 16}
    ),
    "resnet": Recipe("ResNetForImageClassification", _image, _RESNET),
    "clip": Recipe(
        "CLIPModel",
        _image_and_words,
        {"text_config": {**_BERT, "eos_token_id": 2}, "vision_config": _VIT, "projection_dim": 32},
    ),
    "whisper": Recipe(
        "WhisperForConditionalGeneration",
        _spectrum,
        {
            "vocab_size": WORDS,
            "num_mel_bins": 16,
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "max_source_positions": 16,
            "max_target_positions": 16,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
    ),
    "wav2vec2": Recipe("Wav2Vec2ForCTC", _wave, _SPEECH),
    "hubert": Recipe("HubertForCTC", _wave, _SPEECH),
    "detr": Recipe(
        "DetrForObjectDetection",
        _image,
        {
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone_config": {"model_type": "resnet", **_RESNET, "out_features": ["stage2"]},
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "num_queries": 8,
            "num_labels": 10,
        },
    ),
    "sam": Recipe(
        "SamModel",
        _image_and_points,
        {
            "vision_config": {
                **_LAYERS,
                "num_attention_heads": 4,
                "mlp_dim": 128,
                "image_size": SIDE,
                "patch_size": 8,
                "output_channels": 32,
                "num_pos_feats": 16,
                "window_size": 4,
                "global_attn_indexes": [1],
            },
            "prompt_encoder_config": {
                "hidden_size": 32,
                "image_size": SIDE,
                "patch_size": 8,
                "mask_input_channels": 8,
            },
            "mask_decoder_config": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "mlp_dim": 64,
                "iou_head_hidden_dim": 32,
            },
        },
    ),
    "yolos": Recipe(
        "YolosForObjectDetection", _image, {**_VIT, "image_size": (SIDE, SIDE), "num_detection_tokens": 8}
    ),
    "poolformer": Recipe(
        "PoolFormerForImageClassification",
        _image,
        {
            "hidden_sizes": [32, 64],
            "depths": [2, 2],
            "num_encoder_blocks": 2,
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "padding": [2, 1],
            "num_labels": 10,
        },
    ),
    "levit": Recipe(
        "LevitForImageClassification",
        _image,
        {
            "image_size": SIDE,
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [2, 2, 2],
            "key_dim": [8, 8, 8],
            "down_ops": [["Subsample", 8, 4, 4, 2, 2], ["Subsample", 8, 6, 4, 2, 2], [""]],
            "num_labels": 10,
        },
    ),
    "perceiver": Recipe(
        "PerceiverForSequenceClassification",
        lambda batch: {"inputs": torch.randint(3, WORDS, (batch, TOKENS))},
        {
            "vocab_size": WORDS,
            "num_latents": 8,
            "d_latents": 64,
            "d_model": 48,
            "num_blocks": 1,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 4,
            "qk_channels": 48,
            "v_channels": 64,
            "max_position_embeddings": 32,
            "num_labels": 5,
        },
    ),
}
"""By the architecture's name; what a recipe leaves out is the configuration's default."""
