"""Word lists by which prompts are read: closed classes of English, and what captions commonly say.

Open classes (verbs, nouns) are not listed but recognised by form; where a list can't be complete, a word that is
missing costs a modifier or a count of one, never a numeral.
"""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


LARGE = _set("hundred thousand million")  # "a hundred": the article is part of the numeral
NUMBER_WORDS = LARGE | _set(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"""
)
ORDINALS = _set("first second third fourth fifth sixth seventh eighth last next final")
MORE = _set("more other additional extra")  # "two more dogs": add to the dogs that are there
LABELS = _set(
    """number no route highway gate platform room level episode chapter version formula size age aged year since circa
    apollo"""
)  # "platform 2": a numeral after them is a name
ALONE = _set("lone single solitary")  # "a lone wolf": part of the numeral, no modifier
COLLECTIVES = {"pair": 2, "pairs": 2, "couple": 2, "duo": 2, "trio": 3, "quartet": 4, "quintet": 5, "dozen": 12}
PAIRED = _set(
    """sunglasses eyeglasses spectacles scissors jeans pants trousers shorts binoculars headphones goggles pliers
    tweezers"""
)  # "a pair of scissors": one thing

POSSESSIVES = _set("his her its their our my your")
DETERMINERS = POSSESSIVES | _set("the this that these those both all each every")

PREPOSITIONS = _set(
    """on in at over under near against across through with of by beside behind above below beneath along around inside
    outside into onto from to toward towards between among amid before after past upon within without beyond off atop
    underneath amidst alongside during for like via down up out per"""
)
NO_COMPANY = _set("of like without per")  # prepositions whose noun isn't there itself: "barks like a dog"
# Words that end a noun phrase: prepositions, conjunctions, determiners, pronouns, auxiliaries and common adverbs.
BOUNDARIES = (
    PREPOSITIONS
    | DETERMINERS
    | _set(
        """a an and or but nor while as when where which who whom whose then than so if because there here
        is are was were be been being am has have had do does did can could will would shall should may might must not
        he she it they we you i them him us me some any many few several more most no none such x
        another together side slowly quickly gently softly away back forward apart still alone awake asleep
        afloat ahead ashore adrift aloft nearby overhead outdoors indoors upstairs downstairs everywhere again too also
        just only even instead once twice"""
    )
)
# Verbs in the form that follows several subjects ("a cat and a dog share a bowl"). They look like nouns, so they count
# as verbs only where such a form can stand.
VERBS = _set(
    """admire adorn appear approach argue arrive assemble attack bake balance bark bask bathe beat begin bend bike blink
    block bloom blow board boil bounce bow break bring brush build burn burst bury buy call camp carry carve catch chase
    chat check cheer chew chirp circle clap clean climb cling collect come compete cook cool cover crawl cross cruise
    crouch cry cuddle curl cut cycle dance dangle dart dash decorate descend dig dine discuss display dive drag draw
    drift drink drip drive drop eat embrace emerge enjoy enter examine exchange explore face fall feed fetch fight fill
    fish flap flicker flip float flow flutter fly fold follow form frolic gallop gather gaze get give glide glow go
    graze greet grow guard hang harvest hatch have help hide hike hit hold hop hover howl hug hunt huddle inspect jog
    join juggle jump keep kick kiss knit land laugh launch lay lead lean leap learn leave lick lie lift light line
    listen load look lounge make march meet melt mix move munch nap nest nibble observe open orbit pace paddle paint
    pass paw peck peek peer perch perform pick plant play pluck point poke pose pour practice prepare prowl pull push
    put race raise reach read relax repair rest ride ring rise roam roar roast roll row rub run rush sail salute scatter
    scurry see serve sew shake share shine shout sing sip sit skate ski skip sleep slide smile sniff snuggle soar solve
    speak spin splash spray spread sprint squabble squawk stack stand stare start steal stir stomp stop stretch stroll
    study surf surround swap sway sweep swim swing take talk taste throw tie tiptoe toss touch tour travel trot tug
    tumble turn twirl type unload wade waddle wag wait walk wander wash watch water wave wear weave whisper wiggle work
    wrap wrestle write yawn"""
)
# Past forms, and others that are no nouns: they end any phrase that has its noun.
PAST_VERBS = _set(
    """began bent bit blew broke brought built burst bought came caught chose clung crept cut did drank drew drove dug
    ate fell fed felt flew fled forgot fought found froze gave got grew had held hid hit hung kept knelt knew laid lay
    led left lit lost made met paid put ran rang rode said sang sat sent shone shook shrank slept slid
    spoke spun sprang stole stood strode struck swam swept swung taught thought threw told took tore went woke won wore
    wove wrote stuck wound bound"""
)
PERCEIVED = _set("watch watches see sees hear hears help helps let lets make makes")  # "sees a dog run"
# Verbs whose object is no further thing in the picture: clothes, a formation, the place where it happens.
NO_OBJECT = _set(
    """wear wears wearing wore form forms forming formed cross crosses crossing enter enters entering cover covers
    covering fill fills filling decorate decorates decorating surround surrounds surrounding line lines lining"""
)
ADJECTIVES = ORDINALS | _set(
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
    2d 3d 4k hd tabby siamese persian tropical exotic rare common famous red-brown black-and-white
    very extremely quite high low deep heavy lone single solitary busy plain simple fancy cozy rustic royal magical
    mysterious futuristic foggy misty rainy windy stormy cloudy muddy dusty sandy rocky grassy icy leafy bushy curly
    spiky fuzzy creamy juicy ripe sweet golden-brown whole half full-grown left right front rear upper lower"""
)
# Of the adjectives and participles, those that are nouns where no other follows ("an orange", "a baby laughs").
NOUN_ADJECTIVES = _set(
    """orange brick marble baby adult giant light miniature antique iron square oval stray tabby
    siamese persian robot model youth elder male female twin rose violet"""
)
# Words in -ing, -ed and -ly that are nouns.
NOUNS_BY_FORM = _set(
    """building painting drawing duckling gosling starling sapling dumpling sibling fledgling nestling hatchling
    yearling seedling earring wedding clothing ceiling railing king ring wing string spring swing sling viking being
    pudding stocking sled shed seed weed steed bed breed bobsled moped biped quadruped thoroughbred
    butterfly dragonfly firefly fly housefly mayfly lily family jelly bully dolly belly assembly monopoly
    ally gully folly filly"""
)
PLURAL_MODIFIERS = _set("sports goods arms games sales savings clothes mars christmas jeans news robotics")
# Names of the picture and of groups: not counted with an article, and "of" after them leads to what is meant.
PICTURES = _set(
    """photo photograph picture image video clip movie film shot close-up closeup scene view footage animation
    drawing illustration render rendering portrait timelapse time-lapse angle perspective pan zoom cinematic selfie"""
)
GROUPS = _set(
    """group set bunch collection row column line number variety series lot cluster herd flock pack school swarm team
    band family crowd pile stack total queue audience pair file formation array mixture handful"""
)
# Places, weather, times and events: with an article they say where, when and what goes on, not how many.
SCENERY = _set(
    """background backdrop setting environment landscape sky atmosphere style way manner moment time day night
    morning evening afternoon while bit camera distance foreground corner side end edge middle center centre top
    bottom park garden forest wood jungle rainforest field meadow lake river stream pond ocean sea beach shore
    coast bay desert valley canyon gorge hill hillside mountain slope ridge prairie savanna swamp island lagoon
    reef waterfall glacier street road lane alley avenue highway path trail sidewalk track intersection crossing
    tunnel harbor harbour port city town village farm yard backyard courtyard plaza playground neighborhood
    countryside clearing room kitchen bedroom bathroom hall hallway corridor lobby stage stadium court gym
    classroom school library museum theater theatre studio workshop garage factory warehouse office restaurant
    café cafe shop store market bakery station airport hospital hotel porch balcony terrace patio rooftop floor
    ceiling landing lawn vineyard orchard storm sunset sunrise breeze wind rain rainbow fog mist snowstorm
    thunderstorm blizzard shadow reflection silhouette glow wave tide splash ripple sound noise world walk
    stroll nap break bath swim run ride rest trip journey tour game match race song tune melody dance picnic
    party parade concert show performance meal dinner lunch breakfast feast conversation chat talk story joke
    speech kiss hug smile laugh look glance turn step jump leap bow toast cheer fight battle chase competition
    contest lesson class meeting ceremony celebration festival trick stunt flip somersault handstand pose
    pattern formation job ballet waltz tango recital routine experiment spell shower tea coffee"""
)
BODY = _set(
    """leg foot hand paw arm wing eye ear head tail nose mouth tongue back knee finger toe shoulder face hair beak fin
    neck lap chest side belly hoof"""
)
LIMBS = _set("leg foot hand paw finger toe knee hoof wheel")  # "on two legs": how, not how many
PARTS = BODY | _set("front top middle center centre company")  # "on the back of an elephant": the elephant is there
# Beings take part in what is shown, wherever the sentence puts them ("a cat sits beside a dog").
BEINGS = _set(
    """cat kitten dog puppy wolf fox bear cub lion lioness tiger leopard cheetah panther jaguar elephant giraffe zebra
    hippo hippopotamus rhino rhinoceros monkey ape gorilla chimpanzee orangutan lemur panda koala kangaroo wallaby
    raccoon skunk badger otter beaver squirrel chipmunk hedgehog mouse rat hamster rabbit bunny hare deer fawn stag doe
    moose elk reindeer bison buffalo camel llama alpaca horse pony foal mare stallion donkey mule zebra cow calf bull ox
    pig piglet boar sheep lamb ram goat chicken hen rooster chick duck duckling goose gosling swan turkey peacock
    pigeon dove sparrow robin crow raven magpie owl eagle hawk falcon vulture parrot macaw cockatoo toucan flamingo
    pelican heron stork crane seagull gull penguin puffin ostrich emu hummingbird woodpecker kingfisher bird fish
    goldfish shark whale dolphin orca seal walrus octopus squid jellyfish starfish crab lobster shrimp turtle tortoise
    frog toad lizard gecko chameleon iguana snake cobra python crocodile alligator snail slug worm spider scorpion ant
    bee wasp butterfly moth dragonfly ladybug beetle cricket grasshopper caterpillar bat sloth ray eel seahorse salmon
    dinosaur dragon unicorn phoenix troll giant goblin elf fairy mermaid monster ghost witch wizard vampire zombie robot
    alien android cyborg puppy terrier retriever poodle corgi husky dalmatian bulldog shepherd pup
    man woman boy girl child kid baby toddler infant teenager adult person lady gentleman guy friend couple mother
    father parent son daughter brother sister twin grandmother grandfather grandma grandpa aunt uncle bride groom
    teacher student pupil professor doctor nurse surgeon dentist patient vet chef cook baker waiter waitress barista
    bartender farmer gardener fisherman shepherd cowboy hunter miner worker builder carpenter mechanic engineer
    scientist astronaut pilot driver sailor captain pirate soldier guard knight king queen prince princess warrior
    samurai ninja archer firefighter fireman policeman policewoman officer detective thief judge lawyer priest monk nun
    artist painter sculptor potter musician singer guitarist pianist violinist cellist drummer conductor dancer
    ballerina acrobat gymnast juggler magician clown mime actor actress photographer reporter writer tourist traveler
    hiker climber camper runner jogger cyclist biker rider jockey skater skateboarder skier snowboarder surfer swimmer
    diver rower player athlete boxer wrestler referee coach umpire goalkeeper clerk cashier tailor butcher vendor
    customer shopper neighbor passenger commuter beekeeper zookeeper librarian lifeguard snowman"""
)
MEASURES = _set(
    """second seconds minute minutes hour hours day days week weeks month months year years meter meters metre
    metres foot feet inch inches mile miles km cm mm kilometer kilometers percent degree degrees fps frame
    frames pixel pixels times k p am pm a.m p.m o'clock kg g mg gram grams kilogram kilograms lb lbs oz ounce
    ounces ton tons tonne tonnes ml cl l liter liters litre litres gallon gallons mph kph knots hz khz mhz ghz
    kb mb gb tb dpi ppi px mp megapixel megapixels watt watts kw volt volts celsius fahrenheit kelvin dollar
    dollars cent cents euro euros yen rupees pounds bucks usd millimeters centimeters centimeter millimeter
    kilometre kilometres acre acres hectare hectares decade decades century centuries night nights lumens bpm
    rpm stories storeys m s h ft yd mins secs hrs sec min hr"""
)
SINGULAR_IN_S = _set(
    """is was has does goes this his its us as always perhaps bus gas lens iris canvas cactus octopus walrus
    rhinoceros tennis less yes across towards christmas atlas pancreas texas paris james chaos cosmos alias mars
    binoculars scissors sunglasses pajamas news headquarters"""
)
PLURALS_IN_US_AND_IS = _set("menus emus gnus tofus bayous skis taxis kiwis bikinis zucchinis paninis okapis safaris")
# Plurals that inflect doesn't know, with their singulars; nouns that are the same in both.
IRREGULAR = {"cacti": "cactus", "octopi": "octopus", "grandchildren": "grandchild", "stepchildren": "stepchild"}
INVARIANT = _set(
    """sheep fish deer moose bison elk koi squid shrimp trout salmon swine aircraft spacecraft hovercraft watercraft
    samurai goldfish starfish jellyfish swordfish catfish clownfish angelfish crayfish reindeer offspring series species
    cod carp tuna caribou scissors binoculars bonsai krill"""
)

# Measures that are things, too: marked as doubtful.
UNSURE_MEASURES = _set("feet foot frames stories storeys pounds knots cents rupees euros dollars bucks nights times l")
# What comes before a numeral that is no exact count, and prepositions that are one after these words.
NEARLY = _set("nearly almost approximately roughly maybe perhaps probably circa approx")
ROUND = _set("about around over under above below")
BEFORE_ROUND = _set("of with has have contains contain is are there holds hold shows show only to say")
VAGUE = _set("dozens hundreds thousands millions tens scores")
FRACTIONS = _set("quarter quarters third thirds halves half fifth fifths eighth eighths tenth tenths")
PEOPLE = _set("family crew team band group party staff panel jury squad class household troupe choir unit circle")
# Words for the picture that are things of their own, unless the prompt begins with them.
ARTWORKS = _set(
    """painting sketch watercolor watercolour cartoon comic poster engraving icon emoji sticker artwork art
    mosaic vector thumbnail collage print doodle anime rendition depiction screenshot snapshot macro panorama
    vignette diagram"""
)
# No things that one could count; with a numeral they say what kind, where or how often.
ABSTRACT = _set(
    """sense feeling air touch hint feel glimpse sort kind type variety moment instance act lack amount degree
    level range rest result reason idea thought dream memory mood vibe aura ambiance ambience aesthetic tone hue
    color colour shade texture tint gradient blend mix balance contrast harmony rhythm pace speed motion
    movement gesture expression gaze display arrangement sequence part piece portion process way order shape
    size length height width depth weight form silence calm peace joy happiness laughter surprise awe fear
    wonder delight serenity tranquility warmth energy power force flow flurry burst blur haze gleam glint
    sparkle shimmer flash hush whisper shout cry melody narrative tale testament symbol reminder celebration
    demonstration connection bond love friendship life death world universe distance direction perspective point
    view matter fact case number detail effect impact role task job project challenge opportunity experience
    adventure attempt effort goal success failure chance choice decision change swift sip bite taste smell scent
    aroma breath sigh wink nod yawn grin frown smirk glare beat step pause spin whirl style theme concept design
    pattern background foreground side"""
)
# Words in -ity, -ness, -ship and the like that are things.
CONCRETE = _set(
    """station university city community ambulance fence audience fortress spaceship airship warship battleship
    steamship flagship starship neighborhood kingdom constellation carnation entrance creation intersection plantation
    appliance witness lioness harness citizenship pavilion lion medallion stallion scallion cushion accordion"""
)
# Nouns that make an adjective with a numeral, before another noun: "a five star hotel", "two lane road".
NUMBERED = _set(
    """star lane piece pack way story storey door seat seater man person speed tier ply point course page part
    bedroom digit legged wheeled sided dimensional stage volume player passenger string finger hour minute day
    week month year"""
)
NOUNS = _set("dam log pan template vet")  # nouns that the part-of-speech lexicon has as verbs alone
NO_KINDS = _set("kinds types sorts styles ways directions sides ends times occasions versions varieties")
UNSURE_PLURALS = _set(
    """parts layers levels words letters colors colours shades steps turns rounds rows groups sets flocks herds teams
    columns lines stacks piles pieces halves sections patterns angles views scenes stages shots poses movements"""
)
# "cut into two pieces": nothing that is there twice.
DIVISIONS = _set(
    "piece part half slice third quarter section chunk segment strip bit cube wedge"
)  # "cut into two pieces"
# "one side", "one morning": where and when, not how many.
ONE_ASIDE = _set(
    """side end corner edge day morning evening night afternoon moment point time place direction way instance another
    piece thing part hand"""
)
POSITIONS = _set("left right front top back side rear middle ahead bottom inside outside center centre")
# Boundaries that describe what follows them directly: "high back chairs", "side tables", "outside lights".
LOOSE = _set("back side still past down up off over under inside outside out alone light like near")
