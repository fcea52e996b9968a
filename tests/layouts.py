"""Folders as the four published repositories have them: file names, shard indexes, configs, dtypes; random tensors.

Configs are the published ones (`pipelines/models/published/`), with smaller sizes where tensors are tiny; every part is
cut into as many shards as on the hub; the tokenizer is a real SentencePiece model of Unigram form, which splits words
that it hasn't learnt.
"""

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import sentencepiece
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from pipelines.models.published import FOLDER

WIDTH, VOCABULARY = 64, 160  # of the text encoder
TINY = {  # changes of the published configs
    "WanTransformer3DModel": {
        "num_attention_heads": 4,
        "attention_head_dim": 16,
        "text_dim": WIDTH,
        "freq_dim": 32,
        "ffn_dim": 64,
        "num_layers": 3,
        "rope_max_seq_len": 64,
    },
    "AutoencoderKLWan": {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    "CogVideoXTransformer3DModel": {
        "num_attention_heads": 4,
        "attention_head_dim": 16,
        "time_embed_dim": 16,
        "text_embed_dim": WIDTH,
        "num_layers": 3,
        "sample_width": 8,
        "sample_height": 8,
    },
    "AutoencoderKLCogVideoX": {
        "block_out_channels": [4, 4, 4, 4],
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "sample_height": 64,
        "sample_width": 64,
    },
}
TINY_WAN22_VAE = {"decoder_base_dim": 8, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48}
TINY_TEXT = {"d_model": WIDTH, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 4}
CORPUS = (
    "an hour of glass and two glasses in an hour, three hours",
    "teddy and ted bear a bear, two bears, mild mice and ice, three dice, twice mine",
    "four cats and two dogs on a table in the sand, a red ball beside the blue box",
    "three balls, five cats, six dogs near a lamp on the grass by the sea at noon",
)
STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def published_folder(name: str, folder: Path, *, tiny: bool = True) -> Path:
    """A checkpoint of `pipelines/models/published/{name}.json`, the same each time.

    At its true shape it has tens of GB, which a GPU fills in seconds.
    """
    torch.manual_seed(0)
    content = json.loads((FOLDER / f"{name}.json").read_text())
    index, configs, weights = content["model_index"], content["configs"], content["weights"]
    write_json(folder / "model_index.json", index)
    write_json(folder / "scheduler/scheduler_config.json", configs["scheduler"])
    write_tokenizer(folder / "tokenizer", fast=index["tokenizer"][1] == "T5TokenizerFast", umt5="Wan" in name.title())
    for part in ("transformer", "vae"):
        config = configs[part] | (TINY[configs[part]["_class_name"]] if tiny else {})
        if tiny and config.get("is_residual"):
            config |= TINY_WAN22_VAE
        write_json(folder / part / "config.json", config)
        made = state(getattr(diffusers, config["_class_name"]).from_config, config, tiny)
        write_weights(folder / part, "diffusion_pytorch_model", made, weights[part])
    config = configs["text_encoder"]
    if tiny:
        config |= TINY_TEXT | {"vocab_size": VOCABULARY + 28}  # more rows than pieces, as there
    write_json(folder / "text_encoder/config.json", config)
    kinds = {
        "umt5": (transformers.UMT5Config, transformers.UMT5EncoderModel),
        "t5": (transformers.T5Config, transformers.T5EncoderModel),
    }
    settings, kind = kinds[config["model_type"]]
    made = state(kind, settings.from_dict(config), tiny)
    made.pop("encoder.embed_tokens.weight", None)  # files have it once
    write_weights(folder / "text_encoder", "model", made, weights["text_encoder"])
    return folder


def state(make: Callable[[Any], torch.nn.Module], config: Any, tiny: bool) -> dict[str, Tensor]:
    """A part's tensors: as it is initialised; at its true shape, where that takes minutes, normal and of width 0.02."""
    if tiny:
        return make(config).state_dict()
    with torch.device("meta"):
        shapes = make(config).state_dict()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        name: torch.empty(own.shape, dtype=torch.bfloat16, device=device).normal_(std=0.02).cpu()
        for name, own in shapes.items()
    }


def write_weights(folder: Path, stem: str, state: dict[str, Tensor], stored: dict[str, Any]) -> None:
    """In as many shards as published, with their index; a single one by its bare name."""
    tensors = {name: tensor.to(STORED[stored["dtype"]]).contiguous() for name, tensor in state.items()}
    shards = stored["files"]
    if shards == 1:
        save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})
        return
    places = {name: f"{stem}-{place * shards // len(tensors) + 1:05}-of-{shards:05}.safetensors"
              for place, name in enumerate(tensors)}  # fmt: skip
    for file in sorted(set(places.values())):
        own = {name: tensors[name] for name, place in places.items() if place == file}
        save_file(own, folder / file, metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places})


def write_tokenizer(folder: Path, *, fast: bool, umt5: bool) -> None:
    """spiece.model and its small files, as on the hub; `fast` ones have a tokenizer.json, too."""
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(spiece())
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", special)
    longest = 512 if umt5 else 226
    config = special | {"tokenizer_class": "T5Tokenizer", "model_max_length": longest, "extra_ids": 0}
    write_json(folder / "tokenizer_config.json", config | {"additional_special_tokens": [], "legacy": True})
    if fast:
        made: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        made.backend_tokenizer.save(str(folder / "tokenizer.json"))
    else:
        write_json(folder / "added_tokens.json", {})


@cache
def spiece() -> bytes:
    """A Unigram model with T5's special tokens."""
    place = Path(os.environ.get("TMPDIR", "/tmp")) / f"numina-spiece-{os.getpid()}"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_prefix=str(place),
        model_type="unigram",
        vocab_size=VOCABULARY,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        character_coverage=1.0,
        minloglevel=2,
    )
    content = place.with_suffix(".model").read_bytes()
    for end in (".model", ".vocab"):
        place.with_suffix(end).unlink()
    return content


def write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")
