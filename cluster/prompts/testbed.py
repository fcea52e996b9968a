"""Prompt sets for the embedded model: combinations of colour, shape and count that its training never showed."""

from collections.abc import Sequence

import pyarrow as pa

from cluster.prompts.row import OWN_SCHEMA
from numina.errors import PromptSetError
from pipelines.testbed.world import MAX_COUNT, MAX_OBJECTS, Prompt, make_prompts

SCHEMA = pa.schema([OWN_SCHEMA.field(name) for name in ("id", "prompt", "targets")])
NOUNS = (1, 2)


def unseen_prompts(
    number: int, seed: int, *, counts: Sequence[int] | None = None, per_prompt: Sequence[int] | None = None
) -> pa.RecordBatch:
    """`number` rows of SCHEMA, in turn with each number of nouns and each of `counts` (1 to 6).

    A pair has no more objects than the world has places for: a count that fits no other of `counts` comes alone.
    Raises PromptSetError for counts and numbers that the world hasn't.
    """
    counts = tuple(counts or range(1, MAX_COUNT + 1))
    nouns = tuple(per_prompt or NOUNS)
    fitting = tuple(count for count in counts if count + min(counts) <= MAX_OBJECTS)
    if max(counts) > MAX_COUNT or min(counts) < 1 or set(nouns) - set(NOUNS):
        raise PromptSetError(
            f"counts {list(counts)} in prompts with {list(nouns)} nouns: the embedded model's world has the counts "
            f"1 to {MAX_COUNT}, and one or two nouns in a prompt"
        )
    if 2 in nouns and not fitting:
        raise PromptSetError(
            f"counts {list(counts)} in pairs: the embedded model's world holds {MAX_OBJECTS} objects at most; give "
            "--per-prompt 1, or a smaller count as well"
        )
    if fitting == counts:
        prompts = make_prompts(number, seed, nouns=nouns, counts=counts, split="heldout")
    else:
        each = [
            make_prompts(
                -(-number // len(nouns)), seed, nouns=(own,), counts=counts if own == 1 else fitting, split="heldout"
            )
            for own in nouns
        ]
        prompts = [prompt for turn in zip(*each, strict=True) for prompt in turn][:number]
    return pa.RecordBatch.from_pylist([_row(index, prompt) for index, prompt in enumerate(prompts)], schema=SCHEMA)


def _row(index: int, prompt: Prompt) -> dict[str, object]:
    targets = [{"noun": target.noun, "count": target.count} for target in prompt.targets]
    return {"id": f"{index:05d}", "prompt": prompt.text, "targets": targets}
