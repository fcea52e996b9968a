"""Every model that is run, on its twin: from a prompt set to rows, on as many ranks as it can be spread over."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cluster.dataset.store import Store
from cluster.job.config import JobConfig
from cluster.job.prepared import prepare
from cluster.runtime.run import run_job
from numina.errors import ConfigError
from pipelines.base import VaeDtype
from pipelines.models.registry import load_model
from pipelines.sampling.generate import generate
from pipelines.video.mp4 import decode_mp4
from tests.twins import TWINS

Job = Callable[..., JobConfig]
SIDES = {"wan2.2-5b": 128}  # pixels of a frame, where 64 aren't four tokens
DECODED_IN: dict[str, VaeDtype] = {"wan2.1-14b": "bfloat16"}  # by all ranks


def job_of(job: Job, checkpoint: Path, *overrides: str) -> JobConfig:
    """A plain and a strongly guided clip of 5 × 4 × 4 tokens; their mp4s lose colours' resolution and nothing else."""
    side = SIDES.get(checkpoint.name, 64)
    clip = [f"generation.height={side}", f"generation.width={side}", "generation.steps=3", "generation.crf=0"]
    method = ["method.preset=paper", "method.guide.add=10"]
    clip.append(f"generation.vae_dtype={DECODED_IN.get(checkpoint.name, 'auto')}")
    return job(f"model.path={checkpoint}", "limit=1", "parallel.cfg=2", *clip, *method, *overrides)


@pytest.mark.slow
@pytest.mark.parametrize("name", TWINS)
def test_rows_of_the_fullest_split_are_those_of_one_process(
    joining_job: Job, twin: Callable[[str], Path], name: str
) -> None:
    """Identified, laid out, guided, decoded and committed by all ranks together as by one: the branches beside each
    other, and each of Wan's over two ranks (the smallest one's own tests have that)."""
    alone_in_branch = name in ("cogvideox-5b", "wan2.1-1.3b")
    prepared = prepare(job_of(joining_job, twin(name), f"parallel.ulysses={1 if alone_in_branch else 2}"))
    outcome = run_job(prepared)
    assert (outcome.generated, outcome.guided, outcome.failed) == (2, 1, 0)
    job, store = prepared.job, Store(prepared.job.output)
    model = load_model(job.model.path, device="cpu", vae_dtype=job.generation.vae_dtype)
    videos = []
    for row in store.rows().to_pylist():
        assert (row["engine"], row["cfg"], row["ulysses"]) == (
            ("single", 2, 1) if alone_in_branch else ("diffusers", 2, 2)
        )
        assert (row["model"], row["model_revision"], row["fps"]) == (name, prepared.model.revision, job.generation.fps)
        method = job.methods[row["strategy"]]
        alone = generate(model, row["prompt"], seed=row["seed"], generation=job.generation, method=method)
        video = decode_mp4(store.read(row["file_name"]))
        assert video.shape == (17, job.generation.height, job.generation.width, 3)
        difference = np.abs(video.astype(int) - decode_mp4(alone.mp4))
        assert difference.mean() < 0.005  # of 255; seen: 2e-4
        videos.append(video)
        assert row["guided"] == (alone.correction is not None)  # random weights never show the asked counts
        if alone.correction is not None:
            identified = alone.correction.identified
            assert np.load(store.root + "/" + row["layout_file"])["labels"].shape == (2, 5, 4, 4)
            assert [noun["frames"] for noun in row["identified"]] == identified.counts().tolist()
            assert [noun["count"] for noun in row["identified"]] == identified.clip_counts().tolist()
    assert np.abs(videos[0].astype(int) - videos[1]).mean() > 0.02  # guidance tells; seen: 0.06 to 0.4


def test_joint_attention_is_not_spread_over_a_sequence(tiny_job: Job, twin: Callable[[str], Path]) -> None:
    """CogVideoX with Ulysses is refused before anything starts, and told what it can be spread by."""
    message = r"one sequence of attention, which no engine here splits; use parallel\.cfg=2 .*: parallel\.ulysses=1"
    with pytest.raises(ConfigError, match=message):
        prepare(job_of(tiny_job, twin("cogvideox-5b"), "parallel.ulysses=2"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generation.flow_shift=3", "leave it null"),
        (
            "generation.sampler=euler",
            r"sampler is euler, but .* CogVideoXDDIMScheduler and is no flow model; use native",
        ),
        ("generation.sigmas=[1.0,0.7,0.3]", r"sigmas is \[1\.0, 0\.7, 0\.3\], but .*; leave it empty"),
        ("method.identify.stride=2", "use stride 1"),
        ("generation.num_frames=13", r"8k \+ 1: use 17"),
    ],
)
def test_what_its_sampler_and_vae_cannot_do_is_said_before_anything_starts(
    tiny_job: Job, twin: Callable[[str], Path], override: str, message: str
) -> None:
    """Settings that other models take."""
    with pytest.raises(ConfigError, match=message):
        prepare(job_of(tiny_job, twin("cogvideox-5b"), override))
