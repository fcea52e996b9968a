import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from numina.errors import ConfigError
from pipelines.judges import JudgeConfig

PRESETS = sorted((Path(__file__).parents[3] / "configs" / "judge").glob("*.yaml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "yolo"}, "judge.kind is 'yolo'; choose from counter, grounding-dino, owlv2, clip"),
        ({"name": "../rows"}, "judge.name is '../rows', but it names a folder"),
        ({"name": ""}, "but it names a folder"),
        ({"box_threshold": 1.2}, r"judge.box_threshold is 1.2; a score must be in \[0, 1\]"),
        ({"text_threshold": -0.1}, "judge.text_threshold is -0.1"),
        ({"duplicates": 1.0}, "judge.duplicates is 1.0; an IoU must be between 0 and 1.*null to keep all"),
        ({"every": 0}, "judge.every is 0, but must be at least 1"),
        ({"batch": 0}, "judge.batch is 0"),
        ({"dtype": "float8"}, "judge.dtype is 'float8'; choose from auto"),
        ({"path": None}, "judge.path is None, but owlv2 needs weights"),
        ({"kind": "counter"}, "the counter has no weights; leave it out"),
        ({"kind": "clip", "tracks": True}, "judge.tracks is true, but clip finds no boxes"),
    ],
)
def test_what_no_judge_can_run_with_is_an_error(changes: dict[str, Any], message: str) -> None:
    """The value, the rule, the remedy; before anything is read."""
    with pytest.raises(ConfigError, match=message):
        JudgeConfig(**{"kind": "owlv2", "name": "it", "path": "here"} | changes)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_are_judges(preset: Path) -> None:
    """Each file of configs/judge is a whole JudgeConfig once its path is given, and its verdicts lie under its name."""
    given = {} if preset.stem == "counter" else {"path": "here"}
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(JudgeConfig), OmegaConf.load(preset), given))
    assert isinstance(config, JudgeConfig)
    assert config.name == preset.stem


def test_published_is_the_published_protocol() -> None:
    """method.md §7: GroundingDINO, .32 and .25, all frames and all boxes."""
    preset = next(path for path in PRESETS if path.stem == "published")
    published = OmegaConf.to_container(OmegaConf.load(preset))
    assert json.dumps(published | {"path": "it"}) == json.dumps(
        {
            "kind": "grounding-dino",
            "name": "published",
            "path": "it",
            "revision": None,
            "box_threshold": 0.32,
            "text_threshold": 0.25,
            "every": 1,
            "duplicates": None,
        }
    )
