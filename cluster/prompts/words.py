"""What `numina prompts make` builds captions from: countable nouns, and sentences that a video could be described by.

A sentence holds no countable thing beside its targets, and no verb that would have to agree with their number.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS: dict[str, tuple[str, ...]] = {
    "animals": _words(
        """cat dog rabbit fox wolf bear deer sheep horse goat cow pig duck goose swan owl parrot penguin turtle frog
        elephant giraffe zebra lion tiger monkey panda kangaroo butterfly squirrel"""
    ),
    "people": _words("child woman man dancer musician chef firefighter cyclist farmer astronaut knight clown"),
    "vehicles": _words("car bus truck bicycle motorcycle scooter tractor wagon van drone"),
    "things": _words(
        """balloon umbrella kite lantern candle chair ball suitcase backpack guitar clock basket bottle teapot vase
        book drum statue snowman barrel"""
    ),
    "food": _words("apple pear pumpkin cupcake watermelon pineapple mushroom lemon"),
}
"""Singulars by category, 80 in all."""

TEMPLATES: tuple[str, ...] = (
    "A video of {targets} {place} {time}.",
    "A wide shot of {targets} {place} {time}.",
    "A cinematic shot of {targets} {place} {time}.",
    "Handheld footage of {targets} {place} {time}.",
    "{targets} {place} {time}, filmed with a steady camera.",
    "{targets} in full view {place} {time}.",
    "{targets} moving gently {place} {time}.",
    "The camera slowly circles {targets} {place} {time}.",
    "The camera glides past {targets} {place} {time}.",
    "A slow pan across {targets} {place} {time}.",
    "A short clip that shows {targets} {place} {time}.",
    "Seen from above, {targets} {place} {time}.",
)

PLACES: tuple[str, ...] = (
    "in a sunny garden",
    "on a quiet beach",
    "in a snowy field",
    "on a wide lawn",
    "in a city park",
    "on a village street",
    "in a large studio",
    "on a wooden stage",
    "in a green valley",
    "beside a calm lake",
    "in a sandy desert",
    "on a flat rooftop",
    "in a narrow alley",
    "in a bright hall",
    "on a grassy hill",
    "near a waterfall",
    "in a castle courtyard",
    "in an old warehouse",
    "on a mountain trail",
    "in a forest clearing",
    "by a wide river",
    "on a small farm",
    "in an empty stadium",
    "on a town plaza",
    "in a blooming meadow",
    "on a rocky shore",
    "in a misty forest",
    "at a train station",
    "on a stone terrace",
    "in a quiet harbor",
    "in a school playground",
    "on a country road",
    "in an orchard",
    "on a frozen lake",
    "in a cobbled lane",
    "at a summer festival",
    "in a vineyard",
    "on a sandy island",
    "in a museum lobby",
    "on a wide balcony",
)

TIMES: tuple[str, ...] = (
    "at sunrise",
    "in the early morning",
    "at noon",
    "in the late afternoon",
    "at sunset",
    "at dusk",
    "by moonlight",
    "under a clear sky",
    "under grey clouds",
    "in light rain",
    "in soft evening light",
    "in gentle wind",
)

FILLINGS: dict[str, tuple[str, ...]] = {"place": PLACES, "time": TIMES}
"""What may stand in a template beside its targets."""
