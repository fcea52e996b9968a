"""What heads are taught: exact truth from the world, losses that are 0 where a head knows it, and weights as usual."""

from typing import Any

import numpy as np
import pytest
import torch

from pipelines.testbed import scenes
from pipelines.testbed.model import build_transformer
from pipelines.testbed.supervision import BLOCKS, CHOSEN, Supervised, Truth, choose, right_noun, same_owner, truth
from pipelines.testbed.world import split_words
from pipelines.testbed.worlds import SCENES


@pytest.fixture(scope="module")
def known() -> tuple[Any, Any, Truth]:
    rng = np.random.default_rng(3)
    prompts = scenes.make_prompts(6, rng)
    drawn = scenes.draw_scenes(prompts, rng)
    return prompts, drawn, truth(scenes.owners(drawn), [prompt.text for prompt in prompts], drawn.kind, SCENES)


def test_a_tokens_noun_is_its_creatures_in_the_text(known: tuple[Any, Any, Truth]) -> None:
    """Whatever the order in which creatures are drawn; the ground has none, and no other word is a noun."""
    prompts, drawn, of = known
    assert of.owner.shape == (6, 5 * 24 * 24)
    for row, prompt in enumerate(prompts):
        words = split_words(prompt.text)
        kinds = {place: words[place].lower() for place in of.words[row].nonzero()[:, 0].tolist()}
        assert len(kinds) == len(prompt.targets)
        for creature in of.owner[row].unique().tolist():
            [place] = of.noun[row][of.owner[row] == creature].unique().tolist()
            if creature < 0:
                assert place == -1
            else:
                assert kinds[place].startswith(scenes.KINDS[drawn.kind[row, creature]][:4])


def test_heads_in_view_are_their_creatures_tokens(known: tuple[Any, Any, Truth]) -> None:
    """At the middle of a head, which nothing hides, the token is the creature's, in each latent frame."""
    _, drawn, of = known
    centres = drawn.centres()[:, :, list(scenes.MIDDLES)]
    owner = of.owner.unflatten(1, (5, 24, 24))
    seen = [
        owner[row, frame, int(y) // 8, int(x) // 8].item() == creature
        for row, creature in zip(*np.nonzero(drawn.kind >= 0), strict=True)
        for frame, (x, y) in enumerate(centres[row, creature])
    ]
    assert np.mean(seen) > 0.95  # a head at the corner of four tokens may fill none


def test_losses_are_zero_for_heads_that_know() -> None:
    """Attention that is even over a creature's tokens, and all at its noun; one that knows nothing has a loss."""
    torch.manual_seed(0)
    owner = torch.randint(-1, 3, (2, 90), dtype=torch.int8)
    noun = torch.where(owner < 0, -1, 4 + owner).to(torch.int8)
    words = torch.zeros(2, 12, dtype=torch.bool)
    words[:, 4:7] = True
    chosen = choose(owner)
    assert chosen.shape == (2, CHOSEN)
    whose = torch.nn.functional.one_hot(owner.long() + 1, 8).float() * 30
    assert same_owner(whose, whose, owner, chosen).max() < 1e-3
    assert same_owner(torch.zeros_like(whose), whose, owner, chosen).min() > 1.0
    texts = torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0]), 8).float().expand(2, -1, -1)
    assert right_noun(whose, texts * 30, noun, words, chosen).max() < 1e-3
    assert right_noun(torch.zeros_like(whose), texts, noun, words, chosen).min() > 0.5
    unnamed = Truth(owner, noun, words).unnamed(torch.tensor([[True], [False]]))
    assert right_noun(torch.zeros_like(whose), texts, unnamed.noun, unnamed.words, chosen)[0] == 0  # no text, no noun


def test_the_transformer_computes_as_before(known: tuple[Any, Any, Truth]) -> None:
    """Watched heads change no output, reach the weights by their losses, and leave the usual attention behind."""
    torch.manual_seed(0)
    transformer = build_transformer(max(BLOCKS) + 1, 2)
    x, text, level = torch.randn(2, 8, 5, 24, 24), torch.randn(2, scenes.TEXT_TOKENS, 128), torch.tensor([0.9, 0.3])
    usual = [type(block.attn1.processor) for block in transformer.blocks]
    with torch.no_grad():
        before = transformer(x, level * 1000, text, return_dict=False)[0]
    supervised = Supervised(transformer)
    after = transformer(x, level * 1000, text, return_dict=False)[0]
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    own, named = supervised.losses(Truth(*(part[:2] for part in known[2])), level)
    (own + named).backward()
    for block in (transformer.blocks[place] for place in BLOCKS):
        assert block.attn1.to_q.weight.grad[:64].abs().max() > 0
        assert block.attn2.to_k.weight.grad[64:].abs().max() > 0
    supervised.close()
    assert [type(block.attn1.processor) for block in transformer.blocks] == usual
