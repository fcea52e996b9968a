"""Fixtures shared by all tests: a tiny random checkpoint in Wan's folder layout."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Wan checkpoint of the embedded model's classes: 3 blocks, 4 heads of 16; loads in under a second."""
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

    from pipelines.testbed.model import build_scheduler, build_text_encoder, build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=build_text_encoder(tokenizer),
        transformer=WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=4,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            text_dim=128,
            freq_dim=32,
            ffn_dim=64,
            num_layers=3,
            rope_max_seq_len=64,
        ),
        vae=AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            attn_scales=[],
            latents_mean=[0.1] * 4,
            latents_std=[2.0] * 4,
        ),
        scheduler=build_scheduler(),
    )
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing compiled before the test counts in it, and nothing of it stays."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
