"""What a checkpoint is, and what it would run as: `numina models check`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cluster.job.checked import check_job
from cluster.job.config import JobConfig, config_folder, load_job
from cluster.planner import planned_gib
from numina.errors import ConfigError
from pipelines.base import GenerationConfig, ModelFacts
from pipelines.checkpoints.embedded import EMBEDDED
from pipelines.checkpoints.files import class_of, files_of, numbers, read_json
from pipelines.models.families import FAMILIES, Family

GIB = 2**30


def what_it_is(model: ModelFacts) -> dict[str, str]:
    """From configs and headers, by name."""
    folder, family = Path(model.path), FAMILIES[model.family]
    stored = numbers(folder / "transformer")
    dtypes = " and ".join(name for name, _ in stored.most_common())
    token, vae = model.token_strides, family.vae_strides(read_json(folder / "vae/config.json"))
    shift = "" if model.shift is None else f", flow shift {model.shift:g}"
    return {
        "model": f"{model.name}: {family.title}",
        "folder": model.path,
        "revision": model.revision,
        "transformer": f"{model.depth} blocks × {model.heads} heads of {model.head_size},"
        f" {2 * stored.total() / GIB:.2f} GiB in bfloat16, stored as {dtypes}",
        "token": f"{token[0]} frames × {token[1]} × {token[2]} pixels (VAE {vae[0]} × {vae[1]} × {vae[2]})",
        "text": f"{_text_tokens(folder, family)} tokens",
        "sampler": f"{model.sampler}{shift}",
    }


def parts_of(model: ModelFacts) -> dict[str, tuple[str, int, int]]:
    """Its parts: class, number of files and their bytes."""
    folder = Path(model.path)
    index = read_json(folder / "model_index.json")
    found = {}
    for part in FAMILIES[model.family].parts:
        files = [file for file in files_of(folder, [part]) if file.parent != folder]
        found[part] = class_of(index, part) or "", len(files), sum(file.stat().st_size for file in files)
    return found


def would_run_as(model: ModelFacts) -> dict[str, str]:
    """The clip, degrees and memory that it would have, under the shipped config that was written for it, if any."""
    config = shipped_config(model)
    job = _job(config, model) if config else None
    rows = {} if config is None else {"config": f"{config}, to start from: numina plan --config {config} …"}
    generation = job.generation if job else GenerationConfig()
    clip = f"{generation.height}×{generation.width}, {generation.num_frames} frames"
    try:
        grid = model.grid(generation)
        rows["clip"] = f"{clip}: {grid.frames} × {grid.height} × {grid.width} = {grid.tokens} tokens"
    except ConfigError as error:
        rows["clip"] = str(error)
    degrees = (
        [1]
        if FAMILIES[model.family].lacks.split
        else [ranks for ranks in range(1, model.heads + 1) if model.heads % ranks == 0]
    )
    rows["parallel.ulysses"] = ", ".join(map(str, degrees))
    if job and (gib := planned_gib(check_job(job, model))):
        each = "the GPU" if job.parallel.ranks == 1 else f"each of a gang's {job.parallel.ranks} GPUs"
        rows["memory"] = f"{gib:.1f} GiB at most on {each}, by numina plan"
    return rows


def shipped_config(model: ModelFacts) -> str | None:
    """The name of the config in `configs/` that was written for a checkpoint of this shape."""
    name = model.name if model.name in EMBEDDED else FAMILIES[model.family].shipped.get((model.depth, model.heads))
    return name if name and (config_folder() / f"{name}.yaml").is_file() else None


def _job(config: str, model: ModelFacts) -> JobConfig:
    """A job of a shipped config on GPUs, wherever this runs."""
    job = load_job(config)
    return replace(
        job,
        model=replace(job.model, path=model.path, revision=None, device="cuda"),
        cluster=replace(job.cluster, address="auto"),
    )


def _text_tokens(folder: Path, family: Family) -> int:
    longest = read_json(folder / "tokenizer/tokenizer_config.json").get("model_max_length")
    return min(longest or family.text_tokens, family.text_tokens)
