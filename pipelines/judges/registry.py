"""The known kinds of judges: the one place to register one.

A kind is a file of its own, with a class that is made of a `JudgeConfig` and is a `Judge`, and an entry of JUDGES.
"""

from dataclasses import dataclass

MERGES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
WORDS = (("tokenizer.json",), ("vocab.txt",))


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a folder of a judge's weights must hold."""

    model_type: str  # in its config.json
    example: str  # on the hub
    tokenizer: tuple[tuple[str, ...], ...]  # files, in one of these sets


@dataclass(frozen=True, kw_only=True)
class JudgeKind:
    """One kind of judge. Places are module:name, imported where they are used: model libraries take seconds."""

    judge: str  # its class
    counts: bool = True  # what it says is counts; else scores alone
    weights: Weights | None = None  # None: it has none, and takes no path
    check_nouns: str | None = None  # raises InputError for the nouns of a prompt's targets that it can't know


JUDGES = {  # by `kind`
    "counter": JudgeKind(
        judge="pipelines.judges.counter:ExactCounter",
        check_nouns="pipelines.judges.counter:phrases_of",
    ),
    "grounding-dino": JudgeKind(
        judge="pipelines.judges.grounding_dino:GroundingDino",
        weights=Weights(model_type="grounding-dino", example="IDEA-Research/grounding-dino-tiny", tokenizer=WORDS),
    ),
    "owlv2": JudgeKind(
        judge="pipelines.judges.owlv2:Owlv2",
        weights=Weights(model_type="owlv2", example="google/owlv2-base-patch16-ensemble", tokenizer=MERGES),
    ),
    "clip": JudgeKind(
        judge="pipelines.judges.clip:ClipJudge",
        counts=False,
        weights=Weights(model_type="clip", example="openai/clip-vit-base-patch32", tokenizer=MERGES),
    ),
}
