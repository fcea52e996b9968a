"""What ships of the published checkpoints: their shapes, held against the libraries' own classes and a real listing."""

import json
from pathlib import Path

import pytest

from pipelines.models.families import FAMILIES
from pipelines.models.published import FOLDER, UNREAD, contents_of, published_facts, published_names
from tests.benchmarks.published import numbers

FILES = sorted(FOLDER.glob("*.json"))
# Wan2.1-T2V-1.3B-Diffusers at 0fad780a534b6463e45facd96134c9f345acfa5b: bytes of its files on the hub, headers included
LISTED = {
    "transformer": [4998781576, 677289072],
    "text_encoder": [4972389712, 4899225672, 4966309504, 4999880704, 2885866152],
    "vae": [507591892],
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_numbers_are_those_of_the_classes(file: Path) -> None:
    """Modules built from the shipped configs hold as many numbers; configs are of classes that the family runs."""
    content = json.loads(file.read_text())
    for part, stored in content["weights"].items():
        assert numbers(content["configs"][part]) == {key: stored[key] for key in ("parameters", "largest")}
    family = FAMILIES[content["model_index"]["_class_name"]]
    for part, kinds in family.parts.items():
        assert not kinds or content["model_index"][part][1] in kinds
    for part in ("transformer", "vae", "scheduler"):
        assert content["configs"][part]["_class_name"] == content["model_index"][part][1]


def test_bytes_are_those_of_the_hub() -> None:
    """The listing's files are the numbers in float32, and their headers."""
    facts = published_facts("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    assert facts is not None
    parts = contents_of(facts).parts
    files = {json.loads(file.read_text())["repository"]: json.loads(file.read_text())["weights"] for file in FILES}
    for part, sizes in LISTED.items():
        assert 0 < sum(sizes) - parts[part].bytes < 100_000
        assert files["Wan-AI/Wan2.1-T2V-1.3B-Diffusers"][part]["files"] == len(sizes)


def test_facts_are_known_without_files() -> None:
    """By hub id alone; their revision says that nothing was read."""
    assert len(published_names()) == 4
    found = {name: published_facts(name) for name in published_names()}
    assert {facts.revision for facts in found.values() if facts} == {UNREAD}
    wan = found["Wan-AI/Wan2.2-TI2V-5B-Diffusers"]
    assert wan is not None
    assert (wan.depth, wan.heads, wan.token_strides, wan.shift) == (30, 24, (4, 32, 32), 5.0)
    assert published_facts("someone/else") is None
