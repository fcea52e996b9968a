"""Tiny random checkpoints of every model that is run: its own classes, its own folder layout, seconds to denoise."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from pipelines.testbed.model import TEXT_WIDTH, build_scheduler, build_text_encoder, build_tokenizer

WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 3,
    "rope_max_seq_len": 64,
}
VAE = {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_scales": []}


PIECES = (
    *(
        "三只",
        "两只",
        "四只",
        "猫",
        "狗",
        "鸟",
        "气球",
        "和",
        "猫和",
        "猫狗",
        "四只鸟",
        "在草地上",
        "在海边",
        "红色",
        "，",
    ),
    *("three", "two", "cats", "dogs", "and"),
)
"""What texts fall into, as SentencePiece learns it: some pieces join a noun with its neighbours."""


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """A Unigram tokenizer as T5's and UMT5's: NFKC, spaces as `▁`, none between Chinese words; an end token."""
    words = Tokenizer(models.Unigram())
    words.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()])
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=200,
        special_tokens=special,
        unk_token="<unk>",
        initial_alphabet=list("，。1234"),
        show_progress=False,
    )
    words.train_from_iterator([" ".join(map("".join, product(PIECES, PIECES)))] * 10, trainer)
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=24
    )


def wan21_sentencepiece() -> Any:
    """Wan2.1-T2V-1.3B's twin with a tokenizer of SentencePiece's kind, for prompts in any language."""
    return wan21(sentencepiece_tokenizer())


def wan21(tokenizer: Any = None, **changes: Any) -> Any:
    """Wan2.1-T2V-1.3B's twin, or with `changes` of its transformer another one's."""
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

    tokenizer = tokenizer or build_tokenizer()
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=build_text_encoder(tokenizer),
        transformer=WanTransformer3DModel(**WAN | {"in_channels": 4, "out_channels": 4} | changes),
        vae=AutoencoderKLWan(**VAE, z_dim=4, latents_mean=[0.1] * 4, latents_std=[2.0] * 4),
        scheduler=build_scheduler(),
    )


def wan21_14b() -> Any:
    """Wan2.1-T2V-14B's twin: more and other blocks, nothing else."""
    return wan21(num_layers=4, num_attention_heads=6)


def wan22_5b() -> Any:
    """Wan2.2-TI2V-5B's twin: a timestep per token, a residual VAE of 16 × 16 × 4 whose pixels are patches, shift 5."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    tokenizer = build_tokenizer()
    vae = VAE | {"in_channels": 12, "out_channels": 12, "patch_size": 2, "is_residual": True, "decoder_base_dim": 8}
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=build_text_encoder(tokenizer),
        transformer=WanTransformer3DModel(**WAN | {"in_channels": 6, "out_channels": 6}),
        vae=AutoencoderKLWan(**vae, z_dim=6, latents_mean=[0.1] * 6, latents_std=[2.0] * 6, scale_factor_spatial=16),
        scheduler=UniPCMultistepScheduler.from_config(build_scheduler().config, flow_shift=5.0),
        expand_timesteps=True,
    )


def cogvideox_scheduler() -> Any:
    """As CogVideoX-5b's folder has it."""
    from diffusers import CogVideoXDDIMScheduler

    return CogVideoXDDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
        timestep_spacing="trailing",
    )


def cogvideox_5b() -> Any:
    """CogVideoX-5b's twin: joint attention, T5, rotary positions, DDIM on velocities."""
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )

    tokenizer = build_tokenizer()
    return CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(
            T5Config(vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=32, d_ff=256, num_layers=2, num_heads=4)
        ),
        transformer=CogVideoXTransformer3DModel(
            num_attention_heads=4,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=16,
            text_embed_dim=TEXT_WIDTH,
            num_layers=3,
            sample_width=8,
            sample_height=8,
            sample_frames=17,
            max_text_seq_length=tokenizer.model_max_length,
            use_rotary_positional_embeddings=True,
        ),
        vae=AutoencoderKLCogVideoX(
            block_out_channels=(4, 4, 4, 4),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            sample_height=64,
            sample_width=64,
            scaling_factor=0.7,
        ),
        scheduler=cogvideox_scheduler(),
    )


TWINS: dict[str, Callable[[], Any]] = {
    "wan2.1-1.3b": wan21,
    "wan2.1-14b": wan21_14b,
    "wan2.2-5b": wan22_5b,
    "cogvideox-5b": cogvideox_5b,
}


def build_twin(name: str, folder: Path) -> Path:
    """Writes a twin, the same each time."""
    torch.manual_seed(0)
    (TWINS | {"sentencepiece": wan21_sentencepiece})[name]().save_pretrained(folder)
    return folder
