"""The counting model, untrained: every part is the class that Wan2.1's own folder names, only small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, ModelMixin, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from pipelines.testbed.worlds import SHAPES, World

TEXT_WIDTH = 128
LATENT_CHANNELS = 8
SHARD_SIZE = "9MB"

_SPECIAL = ("<pad>", "</s>", "<unk>")


def vocabulary(world: World = SHAPES) -> list[str]:
    """Every token, in order of its id."""
    return [*_SPECIAL, *dict.fromkeys(world.words())]


def build_tokenizer(world: World = SHAPES) -> PreTrainedTokenizerFast:
    """One token per word or mark, lower-cased, an end token after the text as T5 has it; gives character offsets.

    Its `model_max_length` is what to pass to WanPipeline as `max_sequence_length`.
    """
    ids = {word: index for index, word in enumerate(vocabulary(world))}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=world.TEXT_TOKENS,
    )


def build_text_encoder(tokenizer: PreTrainedTokenizerFast) -> UMT5EncoderModel:
    """Two layers of UMT5, 0.3 M parameters."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_decoder_layers=1,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def build_vae() -> AutoencoderKLWan:
    """Wan's causal 3-D autoencoder, 8×8 pixels and 4 frames to a cell, 2.5 M parameters; training sets latents_mean and
    latents_std."""
    return AutoencoderKLWan(
        base_dim=16,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        attn_scales=[],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
    )


def build_transformer(depth: int = 8, heads: int = 4) -> WanTransformer3DModel:
    """Blocks of Wan's transformer, `heads` × 64 wide: 9 M parameters over the shapes' 5×16×16 tokens, 4 M over the
    scenes' 5×24×24."""
    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=heads,
        attention_head_dim=64,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=256,
        ffn_dim=4 * heads * 64,
        num_layers=depth,
        rope_max_seq_len=64,
    )


def build_scheduler() -> UniPCMultistepScheduler:
    """Wan2.1's scheduler at 480p."""
    return UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)


def build_pipeline(world: World = SHAPES) -> WanPipeline:
    """All five parts with random weights."""
    tokenizer = build_tokenizer(world)
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=build_text_encoder(tokenizer),
        transformer=build_transformer(*world.TRANSFORMER),
        vae=build_vae(),
        scheduler=build_scheduler(),
    )


def encode_text(tokenizer: PreTrainedTokenizerFast, text_encoder: UMT5EncoderModel, prompts: list[str]) -> Tensor:
    """Text states [B, tokens, TEXT_WIDTH], zero after each prompt's end, exactly as WanPipeline passes them on."""
    tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
    ids, mask = tokens.input_ids.to(text_encoder.device), tokens.attention_mask.to(text_encoder.device)
    return text_encoder(ids, mask).last_hidden_state * mask[..., None]


def save_pipeline(pipeline: WanPipeline, folder: Path) -> None:
    """Writes the diffusers folder in half precision, no file larger than 10 MB; the pipeline itself stays as it is."""
    parts = dict(pipeline.components)
    for name in ("text_encoder", "transformer", "vae"):
        parts[name] = _half(parts[name])
    WanPipeline(**parts).save_pretrained(folder, max_shard_size=SHARD_SIZE)
    # The name that transformers 5 writes by itself is not known to all its versions; and without a dtype asked for, the
    # text encoder would load in half precision beside a float32 transformer.
    _edit_json(folder / "model_index.json", tokenizer=["transformers", "PreTrainedTokenizerFast"])
    _edit_json(folder / "tokenizer" / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    _edit_json(folder / "text_encoder" / "config.json", dtype="float32")
    for name in ("transformer", "vae"):
        _edit_json(folder / name / "config.json", _name_or_path="")  # of where training began


def _half(part: Any) -> Any:
    """A copy on the CPU, as it was before anything was compiled."""
    other = type(part).from_config(part.config) if isinstance(part, ModelMixin) else type(part)(part.config)
    other.load_state_dict(part.state_dict())
    return other.to("cpu", torch.float16)


def _edit_json(file: Path, **values: object) -> None:
    content = json.loads(file.read_text(encoding="utf-8")) | values
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def load_pipeline(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> WanPipeline:
    """Loads a folder of `save_pipeline` (or of Wan's own weights) without touching the network."""
    pipeline = WanPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)
