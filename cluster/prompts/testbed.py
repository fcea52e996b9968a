"""Prompt sets for the embedded models: combinations of colour, noun and count that their training never showed."""

from collections.abc import Sequence

import pyarrow as pa

from cluster.prompts.row import OWN_SCHEMA
from numina.errors import PromptSetError
from pipelines.testbed.world import Prompt
from pipelines.testbed.worlds import MODELS

SCHEMA = pa.schema([OWN_SCHEMA.field(name) for name in ("id", "prompt", "targets")])


def unseen_prompts(
    number: int,
    seed: int,
    *,
    model: str = "testbed",
    counts: Sequence[int] | None = None,
    per_prompt: Sequence[int] | None = None,
) -> pa.RecordBatch:
    """`number` rows of SCHEMA for an embedded model, in turn with each number of nouns and each of `counts`.

    A prompt has no more objects than the world has places for: a count that fits no other of `counts` comes with fewer
    nouns. Raises PromptSetError for counts and numbers that the world hasn't.
    """
    world = MODELS[model]
    most, room, known = world.MAX_COUNT, world.MAX_OBJECTS, tuple(sorted(set(world.CROWDED)))
    counts = tuple(counts or range(1, most + 1))
    nouns = tuple(per_prompt or known)
    if max(counts) > most or min(counts) < 1 or set(nouns) - set(known):
        raise PromptSetError(
            f"counts {list(counts)} in prompts with {list(nouns)} nouns: the world of {model} has the counts "
            f"1 to {most}, and 1 to {max(known)} nouns in a prompt"
        )
    fitting = {own: tuple(count for count in counts if count + (own - 1) * min(counts) <= room) for own in nouns}
    if not all(fitting.values()):
        raise PromptSetError(
            f"counts {list(counts)} in prompts with {max(nouns)} nouns: the world of {model} holds {room} objects at "
            "most; give a lower --per-prompt, or a smaller count as well"
        )
    if all(own == counts for own in fitting.values()):
        prompts = list(world.make_prompts(number, seed, nouns=nouns, counts=counts, split="heldout"))
    else:
        each = [
            world.make_prompts(-(-number // len(nouns)), seed, nouns=(own,), counts=fitting[own], split="heldout")
            for own in nouns
        ]
        prompts = [prompt for turn in zip(*each, strict=True) for prompt in turn][:number]
    return pa.RecordBatch.from_pylist([_row(index, prompt) for index, prompt in enumerate(prompts)], schema=SCHEMA)


def _row(index: int, prompt: Prompt) -> dict[str, object]:
    targets = [{"noun": target.noun, "count": target.count} for target in prompt.targets]
    return {"id": f"{index:05d}", "prompt": prompt.text, "targets": targets}
