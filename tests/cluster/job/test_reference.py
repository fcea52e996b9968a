"""Every setting has a meaning; a printed job is a job file; configs/README.md is fresh."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.job.config import JobConfig, config_folder, load_job
from cluster.job.reference import commented_yaml, job_settings, page, settings_under
from numina.errors import ConfigError

SHIPPED = sorted(file.stem for file in config_folder().glob("*.yaml"))
SHIPPED += sorted(f"recipes/{file.stem}" for file in (config_folder() / "recipes").glob("*.yaml"))
NUMBERS_WITHOUT_UNIT = {  # counts that only name themselves, weights without a scale, seeds and ports
    "seed",
    "max_count",
    "generation.guidance_scale",
    "generation.flow_shift",
    "generation.crf",
    "method.identify.contrast_weight",
    "method.identify.structure_weight",
    "method.identify.edge_weight",
    "cluster.metrics_port",
}


def reloaded(job: JobConfig, folder: Path) -> JobConfig:
    file = folder / "job.yaml"
    file.write_text(commented_yaml(job))
    return load_job(file)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_printed_job_loads_to_the_same_job(name: str, tmp_path: Path) -> None:
    """For every shipped config; what is printed names the model, too."""
    job = load_job(name, ["model.path=/models/wan"])
    assert reloaded(job, tmp_path) == job


def test_all_forms_of_values_survive(tmp_path: Path) -> None:
    """Lists of LoRAs, a judge's settings, variants of another preset and grids, nulls, text that YAML could misread."""
    job = load_job(
        "demo",
        [
            "model.loras=[{path: a.safetensors},{path: 'b: c # d',scale: 0.5,file: null}]",
            "judge={path: /models/dino,every: 4}",
            "variants.published.preset=paper",
            "variants.grid={guide: {add: [2,3.5], anchor: null}}",
            "variants.same={}",
            "generation.negative_prompt='no: #1, 画面'",
            "shard=1/8",
            "limit=null",
        ],
    )
    assert set(job.variants) == {"published", "grid:add=2", "grid:add=3.5", "same"}
    assert reloaded(job, tmp_path) == job


def test_lines_fit_a_page_and_every_key_is_there() -> None:
    """Comments are wrapped; each setting of the job itself stands in what is printed, with its meaning."""
    printed = commented_yaml(load_job("demo"))
    assert max(map(len, printed.splitlines())) <= 120
    keys = {setting.key.rpartition(".")[2]: setting for setting in job_settings() if "[]" not in setting.key}
    judges = {setting.key.rpartition(".")[2] for setting in settings_under("judge.")}
    for name in keys.keys() - judges:
        assert f"{name}:" in printed
    assert "# [pixels] of the video" in printed


def test_every_setting_has_a_meaning() -> None:
    """And every number its unit, but for those that have none."""
    for setting in job_settings():
        assert setting.meaning, setting.key
        assert len(setting.meaning.split()) > 1, setting.key
    numbers = {own.key for own in job_settings() if own.kind.startswith(("int", "float")) and not own.unit}
    assert numbers == NUMBERS_WITHOUT_UNIT


def test_settings_know_their_types_and_defaults() -> None:
    """As YAML has them: null, choices, lists, and what must be given."""
    known = {setting.key: setting for setting in job_settings()}
    assert known["method.guide.anchor"].kind == "int or null"
    assert known["method.guide.schedule"].kind == "tanh | constant"
    assert known["strategies"].default == ["numina"]
    assert known["model.loras[].path"].is_required
    assert known["cluster.step_timeout"].unit == "s"
    assert known["judge.box_threshold"].default == 0.32
    assert replace(known["limit"], unit="").text == "use only the first rows of the prompt set; null: all"


def test_a_prefix_that_no_key_has() -> None:
    """Is told with those that keys do have."""
    assert [own.key for own in settings_under("search.")] == ["search.seeds"]
    with pytest.raises(ConfigError, match=r"no setting begins with 'gen_'; give a prefix such as cluster\."):
        settings_under("gen_")


def test_the_page_of_settings_is_fresh() -> None:
    """`make settings` writes configs/README.md."""
    assert (config_folder() / "README.md").read_text() == page(), "run `make settings`"
