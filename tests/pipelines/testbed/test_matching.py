"""Distribution matching, where the answer is known: clips of a Gaussian, of which regression would paint the mean."""

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.testbed.matching import match, samples

MEAN, WIDTH = 0.7, 0.5  # of what the teacher makes
LEVELS = [1.0, 0.75, 0.0]
SHAPE = (1, 1, 2, 2)


class Gaussian(nn.Module):
    """The exact velocity of values around `mean`, as wide as `width`: as many values as a clip has, all alike."""

    def __init__(self, mean: float, width: float) -> None:
        super().__init__()
        self.mean, self.width = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(width))

    def forward(self, x: Tensor, time: Tensor, text: Tensor, return_dict: bool) -> tuple[Tensor]:
        sigma = (time / 1000)[:, None, None, None, None]
        excess = x - (1 - sigma) * self.mean
        spread = (1 - sigma) ** 2 * self.width**2 + sigma**2
        return (sigma / spread * excess - self.mean - (1 - sigma) * self.width**2 / spread * excess,)


class Linear(nn.Module):
    """At each of the levels a linear guess of the clip; it begins where regression on the teacher's ways ends."""

    def __init__(self) -> None:
        super().__init__()
        teacher, guesses = Gaussian(MEAN, WIDTH), []
        for sigma in LEVELS[:-1]:
            at = torch.full((1,), sigma)
            one, other = (
                value - sigma * teacher(torch.full((1, 1, 1, 1, 1), value), at * 1000, at, False)[0].item()
                for value in (0.0, 1.0)
            )
            guesses.append([one, other - one])
        self.guesses = nn.Parameter(torch.tensor(guesses))

    def forward(self, x: Tensor, time: Tensor, text: Tensor, return_dict: bool) -> tuple[Tensor]:
        sigma = time / 1000
        level = torch.isclose(sigma[:, None], torch.tensor(LEVELS[:-1])).float().argmax(1)
        offset, slope = (part[:, None, None, None, None] for part in self.guesses[level].T)
        return ((x - offset - slope * x) / sigma[:, None, None, None, None],)


def drawn(student: Any, renoised: bool) -> Tensor:
    noise, text = torch.randn(4000, *SHAPE), torch.zeros(4000, 1)
    with torch.no_grad():
        return samples(student, noise, LEVELS, text, torch.full((4000,), renoised))


def test_a_student_of_means_becomes_one_of_samples() -> None:
    """By regression its clips are too narrow; matched, they have the teacher's mean and width, with either sampler."""
    torch.manual_seed(0)
    teacher, student = Gaussian(MEAN, WIDTH).requires_grad_(False), Linear()
    assert drawn(student, False).std() < 0.6 * WIDTH
    fake = copy.deepcopy(teacher).requires_grad_(True)
    text = torch.zeros(64, 1)
    match(
        teacher,
        student,
        fake,
        lambda number: text[:number],
        text[:1],
        SHAPE,
        LEVELS,
        minutes=9,
        batch=64,
        shift=1.0,
        rate=5e-3,
        most=600,
        log=lambda *args, **values: None,
    )
    for renoised in (False, True):
        made = drawn(student, renoised)
        assert abs(made.mean().item() - MEAN) < 0.1, (renoised, made.mean())
        assert 0.8 * WIDTH < made.std().item() < 1.2 * WIDTH, (renoised, made.std())


def test_eulers_rule_and_fresh_noise() -> None:
    """Without fresh noise the clip is that of Euler's way; with it, the same noise gives another clip."""
    torch.manual_seed(0)
    student = Linear()
    noise, text = torch.randn(3, *SHAPE), torch.zeros(3, 1)
    with torch.no_grad():
        x = noise
        for sigma, after in pairwise(LEVELS):
            x = x + (after - sigma) * student(x, torch.full((3,), sigma * 1000), text, False)[0]
        made = samples(student, noise, LEVELS, text, torch.tensor([False, True, False]))
    torch.testing.assert_close(made[[0, 2]], x[[0, 2]])
    assert (made[1] - x[1]).abs().max() > 0.01
