"""Distribution matching distillation: a few-step student whose clips are as likely as the teacher's, not their mean.

A student that regresses on its teacher's ways paints the mean of what may come: creatures half there, counts too low.
Here it is told, at its own clips noised again, how the teacher's guided velocity differs from that of a model of its
own clips, which learns beside it (arXiv 2311.18828, 2405.14867). Half of the clips are made by Euler's rule, half with
fresh noise at each level, so that the student serves both samplers. All steps learn at once, from the finished clip:
told of each step's guess apart, they would only be right on average over the steps.

Legend: n clips.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipelines.testbed.schedule import Clock, Log, ramp, take_step
from pipelines.testbed.velocity import velocity

FAKE_STEPS = 2  # of the model of the student's clips, for each of the student's
ALONE = 0.05  # share of the time in which that model learns alone
RATE = 1e-4
STEEPEST = 1.0  # norm of a gradient, at most: four steps of it multiply
EMA_DECAY = 0.99
LEVELS = 0.02, 0.98  # of noise that is added again, before the flow's shift

Draw = Callable[[int], Tensor]  # a number of clips → their texts [n, T, width]


def samples(student: Any, noise: Tensor, sigmas: Sequence[float], text: Tensor, renoised: Tensor) -> Tensor:
    """Clips from noise through all levels `sigmas`, of which the last is 0.

    Clips that are `renoised` [n] take fresh noise at each level, the others go on by Euler's rule.
    """
    x, again = noise, renoised[:, None, None, None, None]
    for sigma, after in pairwise(sigmas):
        flow = velocity(student, x, x.new_full((len(x),), sigma), text)
        fresh = (1 - after) * (x - sigma * flow) + after * torch.randn_like(x)
        x = torch.where(again, fresh, x + (after - sigma) * flow)
    return x


def noised(clean: Tensor, shift: float) -> tuple[Tensor, Tensor, Tensor]:
    """Clips at random levels: noisy clips, levels [n], the noise."""
    low, high = LEVELS
    uniform = low + (high - low) * torch.rand(len(clean), device=clean.device)
    sigma, noise = shift * uniform / (1 + (shift - 1) * uniform), torch.randn_like(clean)
    return torch.lerp(clean, noise, sigma[:, None, None, None, None]), sigma, noise


@torch.no_grad()
def difference(teacher: Any, fake: Any, clean: Tensor, text: Tensor, away: Tensor, shift: float) -> Tensor:
    """Where clips should move to become likelier with the teacher, in shares of how far they are from its own idea."""
    x, sigma, _ = noised(clean, shift)
    at = sigma[:, None, None, None, None]
    real = x - at * velocity(teacher, x, sigma, text, away)
    own = x - at * velocity(fake, x, sigma, text)
    far = (clean - real).abs().mean((1, 2, 3, 4), keepdim=True).clamp_min(1e-6)
    return (real - own) / far


def match(
    teacher: Any,
    student: Any,
    fake: Any,
    draw: Draw,
    away: Tensor,
    latents: Sequence[int],
    sigmas: Sequence[float],
    *,
    minutes: float,
    batch: int,
    shift: float,
    rate: float = RATE,
    most: int | None = None,
    log: Log,
) -> None:
    """Trains what of the student requires a gradient, for so long or `most` steps; `sigmas` are its levels and a 0."""
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    average = [parameter.detach().clone() for parameter in parameters]
    smooth = get_ema_multi_avg_fn(EMA_DECAY)
    options: dict[str, Any] = {"lr": rate, "betas": (0.9, 0.99), "weight_decay": 0.0}
    own, followers = torch.optim.AdamW(parameters, **options), torch.optim.AdamW(fake.parameters(), **options)

    def clips(text: Tensor) -> Tensor:
        renoised = torch.rand(len(text), device=text.device) < 0.5
        noise = torch.randn(len(text), *latents, device=text.device)
        return samples(student, noise, sigmas, text, renoised)

    def follow(clean: Tensor, text: Tensor, scale: float) -> Tensor:
        x, sigma, noise = noised(clean, shift)
        loss = functional.mse_loss(velocity(fake, x, sigma, text), noise - clean)
        followers.zero_grad()
        loss.backward()
        clip_grad_norm_(fake.parameters(), STEEPEST)
        take_step([followers], scale)
        return loss.detach()

    clock, step, seen = Clock(minutes), 0, list[Tensor]()
    while (progress := step / most if most else clock.progress) < 1:
        for _ in range(FAKE_STEPS - 1):
            text = draw(batch)
            with torch.no_grad():
                clean = clips(text)
            follow(clean, text, min((step + 1) / 50, 1.0))
        text = draw(batch)
        clean = clips(text)
        move = difference(teacher, fake, clean.detach(), text, away, shift)
        if progress >= ALONE:
            loss = 0.5 * functional.mse_loss(clean, (clean + move).detach())
            own.zero_grad()
            loss.backward()
            clip_grad_norm_(parameters, STEEPEST)
            take_step([own], ramp(step, progress, 0.5))
            smooth(average, parameters, None)
        seen.append(torch.stack([follow(clean.detach(), text, min((step + 1) / 50, 1.0)), move.abs().mean()]))
        if step == 2:
            clock.restart()  # compilation is not training
        if step % 50 == 0:
            following, moved = torch.stack(seen).mean(0).tolist()
            log("match", step=step, progress=progress, fake_loss=following, moved=moved)
            seen.clear()
        step += 1
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
    log("match", step=step)
