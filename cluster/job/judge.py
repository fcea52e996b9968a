"""Which judge is meant: `configs/judge/*.yaml` with changes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cluster.job.config import config_folder, load_yaml
from cluster.job.numbers import check_numbers
from cluster.job.values import literal
from numina.errors import ConfigError
from pipelines.judges.base import JudgeConfig


def judge_config(name: str, changes: Mapping[str, Any] | None = None) -> JudgeConfig:
    """The judge of `configs/judge/{name}.yaml`, or of a YAML file, with some settings changed.

    Raises ConfigError for one that isn't there, a setting that isn't known, or weights that nobody named.
    """
    known = sorted(file.stem for file in (config_folder() / "judge").glob("*.yaml"))
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else config_folder() / "judge" / f"{name}.yaml"
    if not os.path.isfile(path):
        raise ConfigError(f"judge {name!r} is neither a YAML file nor one of those shipped: {', '.join(known)}")
    changed = {key: literal(value) if isinstance(value, str) else value for key, value in (changes or {}).items()}
    given = OmegaConf.merge(load_yaml(path, JudgeConfig), changed)
    if OmegaConf.is_missing(given, "path"):
        comment = " ".join(
            line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")
        )
        raise ConfigError(f"judge {name!r} needs weights: give judge.path=FOLDER. {comment}")
    try:
        merged: Any = OmegaConf.merge(OmegaConf.structured(JudgeConfig), given)
        check_numbers(OmegaConf.to_container(merged), "judge")
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"judge.{error.full_key or ''}: {str(error).splitlines()[0]}") from error
    assert isinstance(config, JudgeConfig)
    return config
