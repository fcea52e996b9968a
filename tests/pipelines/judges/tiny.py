"""Tiny random detectors and CLIP, of transformers' own classes and in its folder layout."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2Processor,
    SwinConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

WORDS = ["cat", "cats", "dog", "##s", "bird", "red", "teddy", "bear", "##fish", "gold"]
BERT_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}  # as the model has them
BERT_WORDS = BERT_IDS | {word: 1100 + index for index, word in enumerate(WORDS)}
BERT_SIZE = 1200


def bert_tokenizer() -> BertTokenizer:
    """Ten words, and BERT's marks where GroundingDINO looks for them."""
    taken = {index: word for word, index in BERT_WORDS.items()}
    return BertTokenizer(vocab={taken.get(index, f"[unused{index}]"): index for index in range(BERT_SIZE)})


def clip_tokenizer(length: int) -> CLIPTokenizer:
    """Letters and nothing merged: every text is known, and its length is that of its letters."""
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words, start=1)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length, pad_token="<|endoftext|>")


def grounding_dino(folder: Path) -> Path:
    """GroundingDINO with Swin: 30 boxes a frame of 64 pixels at least; boxes and scores spread as a trained one's."""
    torch.manual_seed(0)
    backbone = SwinConfig(
        embed_dim=32, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_indices=[2, 3, 4]
    )
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config=backbone,
            text_config=BertConfig(vocab_size=BERT_SIZE, **sizes),
            num_queries=30,
            d_model=64,
            encoder_layers=2,
            encoder_ffn_dim=64,
            encoder_attention_heads=4,
            decoder_layers=2,
            decoder_ffn_dim=64,
            decoder_attention_heads=4,
        )
    )
    with torch.no_grad():  # an untrained head gives all boxes its proposal's place, and fusion hardly reads
        for parameter in model.bbox_embed.parameters():
            parameter.normal_(std=0.2)
        for layer in model.model.encoder.layers:
            layer.fusion_layer.vision_param.fill_(0.5)
            layer.fusion_layer.text_param.fill_(0.5)
    model.save_pretrained(folder)
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 112})
    GroundingDinoProcessor(images, bert_tokenizer()).save_pretrained(folder)
    return folder


def owlv2(folder: Path) -> Path:
    """OWLv2: frames of 32 pixels in 16 patches, each a box."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = clip_tokenizer(32)
    text = sizes | {"intermediate_size": 64, "vocab_size": len(tokenizer) + 1, "max_position_embeddings": 32}
    vision = sizes | {"intermediate_size": 64, "image_size": 32, "patch_size": 8}
    model = Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=32))
    with torch.no_grad():  # an untrained head scores all patches alike
        model.class_head.logit_scale.bias.fill_(3)
        model.owlv2.text_model.embeddings.token_embedding.weight.normal_()
    model.save_pretrained(folder)
    Owlv2Processor(Owlv2ImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def clip(folder: Path) -> Path:
    """CLIP: frames of 32 pixels, texts of 77 tokens."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = clip_tokenizer(77)
    marks = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    text = sizes | {"intermediate_size": 64, "vocab_size": len(tokenizer) + 1} | marks
    vision = sizes | {"intermediate_size": 64, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def published(kind: str, folder: Path) -> Path:
    """The published model's shape: GroundingDINO Swin-T, OWLv2 B/16 of 960 pixels, CLIP B/32; few words."""
    torch.manual_seed(0)
    if kind == "grounding-dino":
        model = GroundingDinoForObjectDetection(GroundingDinoConfig())
        with torch.no_grad():  # logits spread as trained ones do, by about 2, else scores are 0 or 1
            model.model.encoder.layers[-1].text_enhancer_layer.layer_norm_after.weight.mul_(0.25)
        model.half().save_pretrained(folder)
        GroundingDinoProcessor(GroundingDinoImageProcessorPil(), bert_tokenizer()).save_pretrained(folder)
    elif kind == "owlv2":
        vision = {"image_size": 960, "patch_size": 16}
        config = Owlv2Config(text_config={"max_position_embeddings": 32}, vision_config=vision)  # letters are tokens
        Owlv2ForObjectDetection(config).half().save_pretrained(folder)
        Owlv2Processor(Owlv2ImageProcessorPil(), clip_tokenizer(32)).save_pretrained(folder)
    else:
        CLIPModel(CLIPConfig()).half().save_pretrained(folder)
        CLIPProcessor(CLIPImageProcessorPil(), clip_tokenizer(77)).save_pretrained(folder)
    return folder
