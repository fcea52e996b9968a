"""Hub ids: a commit's files through huggingface_hub, from a small hub of our own; then without it, from the cache."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cluster.job.config import load_job
from numina.errors import ConfigError
from pipelines.checkpoints.lora import FILE, LoraConfig
from pipelines.models.registry import inspect_model, place_free
from tests.hub import COMMIT, GATED_401, GATED_403, HUGE, LATER, OTHER, Hub, serving

MODEL, LORA, PAIR = "Some-Lab/Wan2.1-Tiny-Diffusers", "someone/lora", "Some-Lab/Wan2.2-Pair"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
CHUNK = 10 << 20  # bytes that huggingface_hub writes at once
BIG = 4 * CHUNK - 1000  # of a file of which half is more than a chunk
DECOYS = {
    "README.md",
    "all-in-one.safetensors",
    "assets/demo.mp4",
    "text_encoder/pytorch_model.bin",
    "transformer/diffusion_pytorch_model.fp16.safetensors",
    "transformer_2/diffusion_pytorch_model.safetensors",
}

CALLS = """
import json, logging, sys
from pipelines.checkpoints.lora import LoraConfig
from pipelines.models.registry import inspect_model
logging.basicConfig(level=logging.INFO)
for path, revision, loras in json.loads(sys.argv[1]):
    try:
        facts = inspect_model(path, revision, [LoraConfig(**lora) for lora in loras])
        print(json.dumps([facts.name, facts.revision, facts.path]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error), ""]))
"""


@pytest.fixture
def hub(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[Hub]:
    """A hub with the tiny checkpoint among files that nobody needs, a LoRA, a pair of transformers, and a model that
    fits on no disk."""
    folder = tmp_path / "hub"
    with serving(Hub()) as made:
        for name in (MODEL, PAIR, HUGE):
            made.add(name, COMMIT, folder / name)
            shutil.copytree(tiny_checkpoint, folder / name)
            for decoy in DECOYS:
                (folder / name / decoy).parent.mkdir(exist_ok=True)
                (folder / name / decoy).write_bytes(b"not needed")
        index = json.loads((folder / PAIR / "model_index.json").read_text())
        pair = index | {"transformer_2": ["diffusers", "WanTransformer3DModel"]}
        (folder / PAIR / "model_index.json").write_text(json.dumps(pair))
        (folder / LORA).mkdir(parents=True)
        made.add(LORA, COMMIT, folder / LORA)
        save_file({"a": torch.ones(3)}, folder / LORA / FILE)
        save_file({"a": torch.zeros(3)}, folder / LORA / "v1.1.safetensors")
        yield made


Answers = list[tuple[str, str, str]]
Call = tuple[str, str | None, list[LoraConfig]]


class Asker:
    """Has a fresh process inspect models one after the other, with one cache for all."""

    def __init__(self, hub: Hub, cache: Path):
        self.hub, self.cache, self.log = hub, cache, ""

    def start(self, *calls: Call, **environment: str) -> subprocess.Popen[str]:
        given = json.dumps([(path, revision, [asdict(lora) for lora in loras]) for path, revision, loras in calls])
        return subprocess.Popen(
            [sys.executable, "-c", CALLS, given],
            env={**os.environ, **self.hub.environment(self.cache), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *calls: Call, **environment: str) -> Answers:
        """What each call gave or raised."""
        process = self.start(*calls, **environment)
        output, self.log = process.communicate(timeout=120)
        assert process.returncode == 0, self.log
        return [tuple(json.loads(line)) for line in output.splitlines()]


@pytest.fixture
def ask(hub: Hub, tmp_path: Path) -> Asker:
    return Asker(hub, tmp_path / "cache")


def test_a_hub_id_is_a_commit(ask: Asker, hub: Hub, tiny_checkpoint: Path) -> None:
    """The id is the model's name, its revision follows the files alone, and what isn't run is left where it is; then
    the cache serves, without the hub."""
    lora = [LoraConfig(path=LORA, revision=COMMIT, file="v1.1.safetensors")]
    whole, with_lora, unnamed, pair, nowhere, gated, forbidden, lost = ask(
        (MODEL, COMMIT, []),
        (MODEL, COMMIT, lora),
        ("testbed", None, [LoraConfig(path=PAIR, revision=COMMIT)]),
        (PAIR, COMMIT, []),
        ("nobody/nothing", COMMIT, []),
        (GATED_401, COMMIT, []),
        (GATED_403, None, []),
        (MODEL, OTHER, []),
    )
    local = inspect_model(str(tiny_checkpoint))
    assert whole[:2] == (MODEL, local.revision)
    assert hub.files["model_index.json"] == 2  # of the two repositories: what was there is kept
    file = hub.repositories[LORA][COMMIT] / "v1.1.safetensors"
    assert with_lora[:2] == (MODEL, inspect_model(str(tiny_checkpoint), loras=[LoraConfig(path=str(file))]).revision)
    assert not {*DECOYS, FILE} & hub.files.keys()
    assert unnamed[1].endswith(f"{PAIR} has no {FILE}; name one of its safetensors files as `file`")
    assert "transformer_2" in pair[1]
    assert len(list(Path(whole[2]).rglob("*.safetensors"))) == 3
    assert "isn't on the hub, or is private" in nowhere[1]
    for refused, name in ((gated, GATED_401), (forbidden, GATED_403)):
        assert f"is gated: accept its terms at https://huggingface.co/{name}, and set HF_TOKEN" in refused[1]
    assert f"has no commit {OTHER}" in lost[1]

    sent = len(hub.sent)
    [cached] = ask((MODEL, COMMIT, lora), HF_HUB_OFFLINE="1")
    assert cached == with_lora
    [again] = ask((MODEL, COMMIT, []), HF_ENDPOINT="http://127.0.0.1:9")
    assert again == whole
    assert len(hub.sent) == sent


def test_an_interrupted_download_is_resumed(ask: Asker, hub: Hub) -> None:
    """A connection that ends is opened again from the byte where it ended; the log tells how far it is."""
    save_file({"a": torch.zeros(BIG // 4)}, hub.repositories[LORA][COMMIT] / "big.safetensors")
    hub.drops = {"big.safetensors"}
    [whole] = ask(("testbed", None, [LoraConfig(path=LORA, revision=COMMIT, file="big.safetensors")]))
    assert whole[0] == "testbed"
    assert hub.sent == [("big.safetensors", 0), ("big.safetensors", CHUNK)]
    assert f"downloading 0.04 GB of {LORA} to {ask.cache}" in ask.log
    assert f"downloaded {LORA} in " in ask.log


def test_a_broken_download_goes_on_with_the_next_try(ask: Asker, hub: Hub) -> None:
    """A reset connection is an error that says so; whole files are kept, and the others fetched."""
    hub.resets = {WEIGHTS}
    broken, whole = ask((MODEL, COMMIT, []), (MODEL, COMMIT, []))
    assert broken[0] == "ModelError"
    assert f"{MODEL} at {COMMIT} can't be downloaded (" in broken[1]
    assert "try again: downloaded files are kept" in broken[1]
    assert whole[0] == MODEL
    assert hub.files.pop(WEIGHTS) == 2
    assert hub.files["model_index.json"] == 1


def test_without_a_revision_the_newest_commit_is_meant(ask: Asker, hub: Hub, tiny_checkpoint: Path) -> None:
    """Offline it is that of the cache; where there is none, the error names the place and the command."""
    [first] = ask((MODEL, None, []))
    assert first[2].endswith(COMMIT)
    hub.add(MODEL, LATER, hub.repositories[MODEL][COMMIT])
    [offline] = ask((MODEL, None, []), HF_HUB_OFFLINE="1")
    assert offline == first
    [newest] = ask((MODEL, None, []))
    assert newest[2].endswith(LATER)
    missing, incomplete, unreachable = (
        ask((PAIR, None, []), HF_HUB_OFFLINE="1")[0],
        ask((PAIR, OTHER, []), HF_HUB_OFFLINE="1")[0],
        ask((PAIR, None, []), HF_ENDPOINT="http://127.0.0.1:9")[0],
    )
    place = ask.cache / "models--Some-Lab--Wan2.2-Pair"
    assert {missing[0], incomplete[0], unreachable[0]} == {"ModelError"}
    assert f"{place}/refs/main, and HF_HUB_OFFLINE forbids downloads; run `hf download {PAIR}`" in missing[1]
    assert f"{place}/snapshots/{OTHER}, and HF_HUB_OFFLINE forbids downloads" in incomplete[1]
    assert f"run `hf download {PAIR} --revision {OTHER}`" in incomplete[1]
    assert "can't be downloaded (" in unreachable[1]
    assert f"`hf download {PAIR}` fetches it, too" in unreachable[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9"),
        ("ALL_PROXY", "ftp://127.0.0.1:9"),
        ("HTTPS_PROXY", "::::"),
        ("HF_ENDPOINT", "a hub"),
    ],
)
def test_a_way_to_the_hub_that_is_none_is_named(ask: Asker, name: str, value: str) -> None:
    """Proxies and endpoints that the client refuses, each with an error of its own; the value may hold a password."""
    [refused] = ask((MODEL, None, []), **{name: value})
    assert refused[0] == "ModelError"
    assert re.search(rf"can't be downloaded .*; check the network and .*{name}.* set, and try again", refused[1])
    assert value not in refused[1].partition("; check ")[2]


def test_the_named_command_fetches_it(ask: Asker, hub: Hub) -> None:
    """`hf download` fills the cache that an offline node then reads."""
    command = [str(Path(sys.executable).parent / "hf"), "download", MODEL]
    subprocess.run(command, env={**os.environ, **hub.environment(ask.cache)}, check=True, capture_output=True)
    [offline] = ask((MODEL, None, []), HF_HUB_OFFLINE="1")
    assert offline[0] == MODEL
    assert offline[2].endswith(COMMIT)


def test_a_node_downloads_once(ask: Asker, hub: Hub) -> None:
    """Of several ranks of a node that begin together one downloads, and the others wait for it."""
    ranks = [ask.start((MODEL, COMMIT, [])) for _ in range(3)]
    outputs = [rank.communicate(timeout=120) for rank in ranks]
    assert {json.loads(output)[0] for output, _ in outputs} == {MODEL}
    assert set(hub.files.values()) == {1}
    begun = sum(log.count(f"downloading 0.00 GB of {MODEL}") for _, log in outputs)
    assert begun == 2  # model_index.json, then the rest


def test_disk_space_is_asked_for_first(ask: Asker, hub: Hub) -> None:
    """Nothing of a checkpoint that doesn't fit is downloaded but its index."""
    [full] = ask((HUGE, COMMIT, []))
    assert full[0] == "ModelError"
    assert f"{HUGE} needs 30000000.0 GB more in {ask.cache}" in full[1]
    assert "GB free; free some, or set HF_HUB_CACHE to a folder on a larger disk" in full[1]
    assert hub.files == {"model_index.json": 1}


@pytest.mark.parametrize("revision", ["main", "0123456", COMMIT.upper()])
def test_only_a_commit_pins(revision: str) -> None:
    """A branch gives other nodes and later runs other files."""
    with pytest.raises(ConfigError, match=r"model\.revision is .*40 hex digits.*huggingface\.co/a/b/commits"):
        inspect_model("a/b", revision)
    with pytest.raises(ConfigError, match=r"model\.loras\.revision is "):
        inspect_model("testbed", loras=[LoraConfig(path="a/b", revision=revision)])


def test_a_local_model_has_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder wins over a hub id of its name, and a commit beside it would be a claim that nobody checks."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for path in ("testbed", str(tmp_path), "a/b"):
        with pytest.raises(ConfigError, match="is a local path, which has no revisions; leave the revision out"):
            inspect_model(path, COMMIT)


def test_paths_mean_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ranks are told: folders by their full path, the embedded model and hub ids as they are."""
    monkeypatch.chdir(tmp_path)
    assert [place_free(path) for path in ("testbed", "Some-Lab/Wan")] == ["testbed", "Some-Lab/Wan"]
    assert [place_free(path) for path in ("wan", "a/b/c")] == [str(tmp_path / "wan"), str(tmp_path / "a/b/c")]


def test_a_job_says_where_its_loras_are() -> None:
    """Lists of mappings, in YAML or on the command line."""
    job = load_job("demo", [f"model.revision={COMMIT}", "model.loras=[{path: a, scale: 0.5}, {path: b, file: c}]"])
    assert job.model.loras == [LoraConfig(path="a", scale=0.5), LoraConfig(path="b", file="c")]
    assert job.model.revision == COMMIT
