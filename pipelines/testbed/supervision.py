"""Teaches some heads of a world's transformer what large models' heads know: whose a token is, and what its noun.

A model of 4 M parameters that has seen minutes of clips paints creatures before its attention tells them apart. So one
self-attention head of some blocks is taught to attend, from a token, to all tokens of the same creature (or the
ground) in all frames alike (supervised contrastive learning, arXiv 2004.11362), and one cross-attention head to
attend to its noun, or from the ground to no noun. Masks are exact by construction, and only training sees them: the
weights are a transformer's as any other.

Legend: B clips, F frames, H W tokens, n = F·H·W, Q tokens chosen of each clip, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.attention.cross import Rotary, attend, project
from pipelines.base import Attention
from pipelines.testbed.counter import mentions
from pipelines.testbed.worlds import World

BLOCKS = (1, 2, 3, 4)
OWN_HEAD, NOUN_HEAD = 0, 1
CHOSEN = 48  # tokens of a clip in a step: half of them creatures', where it shows any
NOISIEST = 0.95  # noise level above which nobody can know
WEIGHT = 0.1  # of either loss beside the flow's


class Truth(NamedTuple):
    """Of a batch of clips: whose each token is, and of which noun."""

    owner: Tensor  # int8 [B, n], -1: the ground's
    noun: Tensor  # int8 [B, n], the place in the text of its creature's noun, -1: none is known
    words: Tensor  # bool [B, T], which places of the text are nouns

    def unnamed(self, dropped: Tensor) -> Truth:
        """The same, where `dropped` [B, 1] clips have no text: nothing is known of their nouns."""
        return Truth(self.owner, self.noun.masked_fill(dropped, -1), self.words & ~dropped)


def truth(owner: Tensor, texts: Sequence[str], kinds: NDArray[np.int64], world: World) -> Truth:
    """From whose each token is [B, F, H, W], the prompts, and each creature's index [B, N] into the world's nouns."""
    places = np.full((len(texts), len(world.NOUNS) + 1), -1)  # the last column: of places without a creature
    words = np.zeros((len(texts), world.TEXT_TOKENS), dtype=bool)
    for row, text in enumerate(texts):
        for number, target in mentions(text):
            places[row, world.NOUNS.index(target.singular)] = number + 2  # after the number and the colour
            words[row, number + 2] = True
    of_creatures = np.take_along_axis(places, kinds, 1)  # [B, N]
    table = torch.as_tensor(np.pad(of_creatures, ((0, 0), (1, 0)), constant_values=-1), device=owner.device)
    flat = owner.flatten(1)
    noun = table.gather(1, flat.long() + 1)
    return Truth(flat, noun.to(torch.int8), torch.as_tensor(words, device=owner.device))


class Watched:
    """Wan's attention, written out so that it compiles, keeping a head's queries and keys [B, n or T, D]."""

    def __init__(self, head: int) -> None:
        self.head = head
        self.query = self.key = torch.empty(0)

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Rotary | None = None,
    ) -> Tensor:
        query, key, value = project(attn, hidden_states, encoder_hidden_states, rotary_emb)
        self.query, self.key = query[:, :, self.head], key[:, :, self.head]
        output = attend(query, key, value, None).flatten(2)
        return attn.to_out[1](attn.to_out[0](output.type_as(hidden_states)))


class Supervised:
    """The heads of a transformer that are taught; put in place before it is compiled."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer
        self.usual = [(block.attn1.processor, block.attn2.processor) for block in transformer.blocks]
        self.own, self.noun = [Watched(OWN_HEAD) for _ in BLOCKS], [Watched(NOUN_HEAD) for _ in BLOCKS]
        for place, own, noun in zip(BLOCKS, self.own, self.noun, strict=True):
            transformer.blocks[place].attn1.set_processor(own)
            transformer.blocks[place].attn2.set_processor(noun)

    def losses(self, known: Truth, level: Tensor) -> tuple[Tensor, Tensor]:
        """After a forward at noise levels [B]: how far the heads of either kind are from the truth, in nats."""
        chosen = choose(known.owner)
        own = [same_owner(head.query, head.key, known.owner, chosen) for head in self.own]
        named = [right_noun(head.query, head.key, known.noun, known.words, chosen) for head in self.noun]
        legible = (level < NOISIEST).float()
        share = legible / legible.sum().clamp_min(1)
        return (torch.stack(own).mean(0) * share).sum(), (torch.stack(named).mean(0) * share).sum()

    def close(self) -> None:
        """Puts the usual attention back."""
        for block, (own, cross) in zip(self.transformer.blocks, self.usual, strict=True):
            block.attn1.set_processor(own)
            block.attn2.set_processor(cross)


def choose(owner: Tensor) -> Tensor:
    """Tokens [B, Q] of each clip: each half as likely the ground's as a creature's, but for its share of the frame."""
    creatures = owner >= 0
    share = creatures.float().mean(1, keepdim=True).clamp(1e-3, 1 - 1e-3)
    return torch.multinomial(torch.where(creatures, 1 / share, 1 / (1 - share)), CHOSEN)


def same_owner(query: Tensor, key: Tensor, owner: Tensor, chosen: Tensor) -> Tensor:
    """Divergence [B] of chosen tokens' attention from an even one over all other tokens of the same owner."""
    scores = (_take(query, chosen) @ key.mT).float() / query.shape[-1] ** 0.5  # [B, Q, n]
    scores = scores.scatter(2, chosen[..., None], -1e4)  # itself teaches nothing
    same = (owner.gather(1, chosen)[..., None] == owner[:, None]).scatter(2, chosen[..., None], False)
    number = same.sum(-1)
    mean = (scores.log_softmax(-1) * same).sum(-1) / number.clamp_min(1)
    return ((-mean - number.clamp_min(1).log()) * (number > 0)).mean(1)


def right_noun(query: Tensor, key: Tensor, noun: Tensor, words: Tensor, chosen: Tensor) -> Tensor:
    """Surprise [B] at the noun of chosen tokens' creatures; for those of the ground, at no noun at all."""
    scores = (_take(query, chosen) @ key.mT).float() / query.shape[-1] ** 0.5  # [B, Q, T]
    shares = scores.log_softmax(-1)
    asked = noun.gather(1, chosen).long()
    named = shares.gather(2, asked.clamp_min(0)[..., None])[..., 0]
    none = torch.logsumexp(shares.masked_fill(words[:, None], -1e4), -1)
    return -torch.where(asked >= 0, named, none).mean(1)


def _take(rows: Tensor, chosen: Tensor) -> Tensor:
    return rows.gather(1, chosen[..., None].expand(-1, -1, rows.shape[-1]))
