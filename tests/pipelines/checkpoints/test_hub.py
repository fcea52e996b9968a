"""Hub ids: a commit's files through huggingface_hub, from a small hub of our own; then without it, from the cache."""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

from cluster.job.config import load_job
from numina.errors import ConfigError
from pipelines.checkpoints.lora import FILE, LoraConfig
from pipelines.models.registry import inspect_model, place_free

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
MODEL, LORA, PAIR = "Some-Lab/Wan2.1-Tiny-Diffusers", "someone/lora", "Some-Lab/Wan2.2-Pair"
DECOYS = {
    "README.md",
    "all-in-one.safetensors",
    "assets/demo.mp4",
    "text_encoder/pytorch_model.bin",
    "transformer/diffusion_pytorch_model.fp16.safetensors",
    "transformer_2/diffusion_pytorch_model.safetensors",
}

CALLS = """
import json, sys
from pipelines.checkpoints.lora import LoraConfig
from pipelines.models.registry import inspect_model
for path, revision, loras in json.loads(sys.argv[1]):
    try:
        facts = inspect_model(path, revision, [LoraConfig(**lora) for lora in loras])
        print(json.dumps([facts.name, facts.revision, facts.path]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error), ""]))
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as huggingface_hub asks for: listings of commits, and files."""

    repositories: ClassVar[dict[str, Path]] = {}
    asked: ClassVar[list[str]] = []  # files that were sent
    breaks: ClassVar[set[str]] = set()  # files whose next download breaks off half-way

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        words = self.path.partition("?")[0].strip("/").split("/")
        listing = words[:2] == ["api", "models"]
        repository, commit = "/".join(words[2:4] if listing else words[:2]), words[5 if listing else 3]
        folder = self.repositories.get(repository)
        if folder is None:
            gated = repository.startswith("gated/")
            self.refuse(403 if gated else 404, "GatedRepo" if gated else "RepoNotFound")
        elif commit != COMMIT:
            self.refuse(404, "RevisionNotFound")
        elif listing:
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            entries = [
                {"type": "file", "path": str(file.relative_to(folder)), "size": file.stat().st_size, "oid": "0" * 40}
                for file in files
            ]
            self.send(json.dumps(entries).encode())
        else:
            self.send_file(folder, "/".join(words[4:]), body)

    def send_file(self, folder: Path, name: str, body: bool) -> None:
        content = (folder / name).read_bytes()
        if body:
            self.asked.append(name)
        if body and name in self.breaks:
            self.breaks.discard(name)
            self.send(content, content[: len(content) // 2])
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RD)  # and with it the connection is reset, not ended
            self.close_connection = True
            return
        self.send(content, content if body else b"")

    def send(self, content: bytes, sent: bytes | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{abs(hash((self.path, len(content)))):x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        self.wfile.write(content if sent is None else sent)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hub(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a hub: the tiny checkpoint among files that nobody needs, a LoRA, a pair of transformers."""
    folder = tmp_path_factory.mktemp("hub")
    Hub.repositories = {name: folder / name for name in (MODEL, LORA, PAIR)}
    for name in (MODEL, PAIR):
        shutil.copytree(tiny_checkpoint, folder / name)
        for decoy in DECOYS:
            (folder / name / decoy).parent.mkdir(exist_ok=True)
            (folder / name / decoy).write_bytes(b"not needed")
    index = json.loads((folder / PAIR / "model_index.json").read_text())
    pair = index | {"transformer_2": ["diffusers", "WanTransformer3DModel"]}
    (folder / PAIR / "model_index.json").write_text(json.dumps(pair))
    (folder / LORA).mkdir(parents=True)
    save_file({"a": torch.ones(3)}, folder / LORA / FILE)
    save_file({"a": torch.zeros(3)}, folder / LORA / "v1.1.safetensors")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


Answers = list[tuple[str, str, str]]
Ask = Callable[..., Answers]


@pytest.fixture(scope="module")
def ask(hub: str, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Has a fresh process inspect models one after the other, with one cache for all; what each call gave or raised."""
    cache = tmp_path_factory.mktemp("cache")

    def run(*calls: tuple[str, str | None, list[LoraConfig]], environment: Mapping[str, str] | None = None) -> Answers:
        given = json.dumps([(path, revision, [asdict(lora) for lora in loras]) for path, revision, loras in calls])
        variables = {"HF_ENDPOINT": hub, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1", **(environment or {})}
        done = subprocess.run(
            [sys.executable, "-c", CALLS, given],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        return [tuple(json.loads(line)) for line in done.stdout.splitlines()]

    return run


def test_a_hub_id_is_a_pinned_commit(ask: Ask, hub: str, tiny_checkpoint: Path) -> None:
    """The id is the model's name, its revision follows the files alone, and what isn't run is left where it is.

    A download that breaks off says so, and the next try has all; then the cache serves, without the hub.
    """
    weights = "transformer/diffusion_pytorch_model.safetensors"
    Hub.breaks, lora = {weights}, [LoraConfig(path=LORA, revision=COMMIT, file="v1.1.safetensors")]
    broken, whole, with_lora, unnamed, pair, nowhere, gated, lost = ask(
        (MODEL, COMMIT, []),
        (MODEL, COMMIT, []),
        (MODEL, COMMIT, lora),
        ("testbed", None, [LoraConfig(path=PAIR, revision=COMMIT)]),
        (PAIR, COMMIT, []),
        ("nobody/nothing", COMMIT, []),
        ("gated/model", COMMIT, []),
        (MODEL, OTHER, []),
    )
    local = inspect_model(str(tiny_checkpoint))
    assert broken[0] == "ModelError"
    assert f"{MODEL} at {COMMIT} can't be downloaded (" in broken[1]
    assert "try again: downloaded files are kept" in broken[1]
    assert whole[:2] == (MODEL, local.revision)
    assert Hub.asked.count(weights) == 2
    assert Hub.asked.count("model_index.json") == 2  # of the two repositories: what was there is kept
    file = Hub.repositories[LORA] / "v1.1.safetensors"
    assert with_lora[:2] == (MODEL, inspect_model(str(tiny_checkpoint), loras=[LoraConfig(path=str(file))]).revision)
    assert not {*DECOYS, FILE} & set(Hub.asked)
    assert unnamed[1].endswith(f"{PAIR} has no {FILE}; name one of its safetensors files as `file`")
    assert "transformer_2" in pair[1]
    assert len(list(Path(whole[2]).rglob("*.safetensors"))) == 3
    assert "isn't on the hub, or is private" in nowhere[1]
    assert "is gated: accept its terms" in gated[1]
    assert f"has no commit {OTHER}" in lost[1]

    asked = len(Hub.asked)
    cached, missing, unpinned = ask(
        (MODEL, COMMIT, lora), (PAIR, OTHER, []), (MODEL, None, []), environment={"HF_HUB_OFFLINE": "1"}
    )
    assert cached == with_lora
    assert missing[0] == "ModelError"
    assert "HF_HUB_OFFLINE forbids downloads; run `numina models check` once" in missing[1]
    assert unpinned[0] == "ConfigError"
    [again] = ask((MODEL, COMMIT, []), environment={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert again == whole
    assert len(Hub.asked) == asked


@pytest.mark.parametrize("revision", [None, "main", "0123456", COMMIT.upper()])
def test_only_a_commit_pins(revision: str | None) -> None:
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
