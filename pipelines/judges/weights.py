"""The weights of a judge: a folder in transformers' layout, here or from the hub, checked before anything starts."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from numina.errors import ModelError
from pipelines.checkpoints.files import SMALL_FILES, add_file, check_weights, read_json, weight_files
from pipelines.checkpoints.hub import commit_of, fetch
from pipelines.judges.base import JudgeConfig
from pipelines.judges.registry import JUDGES

PREPARATION = (("preprocessor_config.json",), ("processor_config.json",))  # either says how images are prepared
WEIGHTS = (("model.safetensors",), ("model.safetensors.index.json",))
READ = {  # the small files that a model's verdicts hang on; licences and the like beside them don't count
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
}
VARIANTS = "*.*.safetensors"  # half-precision copies and the like; shards are no such: model-00001-of-00002


def judge_folder(config: JudgeConfig) -> Path:
    """The folder that `path` and `revision` stand for, whole; a hub's files are downloaded, if need be.

    Raises ConfigError for a hub id without a commit, ModelError for what is missing, cut off or of another kind.
    """
    assert config.path is not None  # JudgeConfig checks it for every kind with weights
    commit = commit_of(config.path, config.revision, "judge")
    if commit is None:
        folder = Path(config.path)
    else:
        folder = fetch(config.path, commit, [f"*{end}" for end in (*SMALL_FILES, ".safetensors")], but=VARIANTS)
    _check(folder, config.kind)
    return folder


def digest_of(folder: Path) -> str:
    """A content-derived name of a judge's weights and their settings: name, size and first 16 MB of every file."""
    digest = hashlib.blake2b(digest_size=8)
    small = [file for file in folder.iterdir() if file.name in READ]
    for file in sorted({*small, *weight_files(folder)}):
        digest.update(f"{file.name}:".encode())
        add_file(digest, file)
    return digest.hexdigest()


def facts_of(folder: Path) -> dict[str, Any]:
    """What is told of a judge's weights before they are loaded."""
    return {
        "path": str(folder),
        "weights": digest_of(folder),
        "bytes": sum(os.path.getsize(file) for file in weight_files(folder)),
    }


def load_parts(model_class: Any, folder: Path, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """A folder's processor and its model, from safetensors alone; nothing is asked of the hub, or printed."""
    from transformers import AutoProcessor
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        model = model_class.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
    finally:
        if shown:
            logging.enable_progress_bar()
    return processor, model.to(device).eval()


def _check(folder: Path, kind: str) -> None:
    """Raises ModelError with all that a folder lacks, and where it is had."""
    model, needed = JUDGES[kind].weights, (("config.json",),)
    assert model is not None, "`judge_folder` is for a judge with weights"
    missing = [
        " or ".join(" and ".join(files) for files in sets)
        for sets in (needed, WEIGHTS, model.tokenizer, PREPARATION)
        if not any(all((folder / file).is_file() for file in files) for files in sets)
    ]
    if missing:
        raise ModelError(
            f"judge.path {str(folder)!r} {'lacks ' + ', '.join(missing) if folder.is_dir() else 'is no folder here'};"
            f" fetch such a model once, `hf download {model.example} --local-dir FOLDER`, and give judge.path=FOLDER,"
            f" or judge.path={model.example} with judge.revision, a commit of it; pickled weights are not loaded"
        )
    if (found := read_json(folder / "config.json").get("model_type")) != model.model_type:
        raise ModelError(
            f"{folder}/config.json is of model_type {found!r}, but judge.kind is {kind!r}; give a folder such as"
            f" {model.example}, or the kind that it is"
        )
    check_weights(folder)
