"""Word lists by which prompts are read: closed classes of English, and what captions commonly say.

Open classes (verbs, nouns) are not listed but recognised by form; where a list can't be complete, a word that is
missing costs a modifier or a count of one, never a numeral.
"""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


NUMBER_WORDS = _set(
    """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand"""
)
ALONE = _set("lone single solitary")  # "a lone wolf": part of the numeral, no modifier
COLLECTIVES = {"pair": 2, "pairs": 2, "couple": 2, "duo": 2, "trio": 3, "quartet": 4, "dozen": 12, "dozens": 12}

DETERMINERS = _set("the this that these those both all each every his her its their our my your another")

PREPOSITIONS = _set(
    """on in at over under near against across through with of by beside behind above below beneath along around inside
    outside into onto from to toward towards between among amid before after past upon within without beyond off atop
    underneath amidst alongside during for like via down up out"""
)
# Words that end a noun phrase: prepositions, conjunctions, determiners, pronouns, auxiliaries and common adverbs.
BOUNDARIES = (
    PREPOSITIONS
    | DETERMINERS
    | _set(
        """a an and or but nor while as when where which who whom whose then than so if because there here
        is are was were be been being am has have had do does did can could will would shall should may might must not
        he she it they we you i them him us me some any many few several more most no none such x
        each together side slowly quickly gently softly away back forward apart still alone"""
    )
)
# Verbs that follow a noun and look like one: they end a phrase that has its noun already ("two cats turn"), else they
# are its noun ("one green cross").
VERBS = _set(
    """stand sit lie lay run fly swim walk move float play chase jump eat drink sleep rest hang rise fall drift bounce
    dance climb look gaze ride drive roll spin turn go come cross pass follow perch graze roam gather sway glide
    sail stood sat ran flew swam lay ate drank slept hung rose fell rode drove went came"""
)
ADJECTIVES = _set(
    """red green blue yellow orange purple pink black white grey gray brown golden gold silver cyan magenta violet teal
    beige turquoise crimson scarlet maroon navy ivory tan colorful colourful multicolored dark light bright pale vivid
    small large big tiny huge little giant tall short long wide narrow thin thick fat slim massive enormous miniature
    medium medium-sized small-sized round square-shaped circular triangular rectangular flat curved oval pointed sharp
    old young new ancient modern vintage antique elderly baby adult mature rusty shiny glossy matte sparkling glowing
    fluffy furry hairy striped spotted patterned smooth rough soft hard wet dry clean dirty fresh ripe raw cooked
    happy sad angry playful curious cute adorable beautiful pretty lovely elegant graceful majestic magnificent gorgeous
    friendly lively lazy sleepy hungry brave proud calm quiet loud fast slow quick swift strong weak wild tame stray
    wooden metal metallic plastic stone steel iron ceramic porcelain leather woolen paper cardboard brick marble
    empty full open closed broken cracked transparent translucent clear opaque hot cold warm cool frozen snowy sunny
    identical different similar distinct separate various matching same real realistic stylized animated
    flying running swimming sleeping sitting standing walking jumping dancing smiling floating burning spinning rolling
    moving playing grazing soaring
    2d 3d 4k hd tabby siamese persian tropical exotic rare common famous red-brown black-and-white"""
)
# Names of the picture and of groups: not counted with an article, and "of" after them leads to what is meant.
PICTURES = _set(
    """photo photograph picture image video clip movie film shot close-up closeup scene view footage animation painting
    drawing illustration render rendering portrait timelapse time-lapse group set bunch collection row line number
    variety series lot cluster herd flock pack school swarm team band family crowd pile stack total"""
)
SCENERY = _set(
    """background backdrop setting environment landscape sky atmosphere style way manner moment time day night morning
    evening afternoon while bit camera distance foreground"""
)
MEASURES = _set(
    """second seconds minute minutes hour hours day days week weeks month months year years meter meters metre metres
    foot feet inch inches mile miles km cm mm kilometer kilometers percent degree degrees fps frame frames pixel pixels
    times k p am pm o'clock"""
)
SINGULAR_IN_S = _set(
    """is was has does goes this his its us as always perhaps bus gas lens iris canvas cactus octopus walrus
    hippopotamus rhinoceros platypus circus campus virus tennis bonus chorus focus less plus minus thus yes across
    towards christmas atlas pancreas texas paris james"""
)
