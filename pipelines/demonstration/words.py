"""The words of the drawn scenes: class names, their synonyms, and words for things that are never drawn."""

from ovss_core.vocabulary import Vocabulary

CLASS_NAMES: tuple[str, ...] = tuple(Vocabulary.load("demo").names)
CLASS_INDEX: dict[str, int] = {name: index for index, name in enumerate(CLASS_NAMES)}

SYNONYMS: dict[str, tuple[str, ...]] = {
    "sky": ("heaven",),
    "cloud": ("clouds",),
    "sun": ("sunshine",),
    "moon": ("full moon",),
    "mountain": ("mountains", "peak"),
    "hill": ("hills", "hillside"),
    "snow": ("snowfield",),
    "sea": ("ocean", "seawater"),
    "river": ("stream",),
    "lake": ("pond",),
    "sand": ("beach", "sandy ground"),
    "grass": ("lawn", "meadow"),
    "field": ("farmland", "ploughed field"),
    "road": ("street", "path"),
    "house": ("cottage", "home", "building"),
    "shed": ("hut", "cabin"),
    "door": ("doorway",),
    "window": ("windowpane",),
    "roof": ("rooftop",),
    "fence": ("railing", "wooden fence"),
    "bridge": ("footbridge",),
    "tent": ("camping tent",),
    "bench": ("park bench",),
    "lighthouse": ("beacon",),
    "windmill": ("mill",),
    "tree": ("trees", "pine tree", "oak"),
    "bush": ("shrub", "bushes"),
    "flower": ("flowers", "blossom"),
    "rock": ("stone", "boulder"),
    "car": ("automobile",),
    "bus": ("coach",),
    "truck": ("lorry",),
    "boat": ("ship", "sailing boat"),
    "train": ("locomotive", "railway train"),
    "aeroplane": ("airplane", "plane"),
    "balloon": ("hot air balloon",),
    "bird": ("birds", "gull"),
    "cat": ("kitten",),
    "dog": ("puppy",),
    "horse": ("pony",),
    "cow": ("cattle", "bull"),
    "sheep": ("lamb",),
    "person": ("people", "man", "woman"),
    "umbrella": ("parasol",),
}
"""Other phrases for each class, read during training only; the vocabulary file keeps one phrase a class."""

DISTRACTORS: tuple[str, ...] = tuple(
    word.strip()
    for word in """
    piano, violin, trumpet, drum, flute, harp, table, armchair, stool, wardrobe, cupboard, drawer, shelf, pillow, blanket, mattress,
    carpet, curtain, ceiling, staircase, bathtub, sink, shower, towel, soap, toothbrush, mirror, refrigerator, oven, kettle, teapot, cup,
    mug, saucer, plate, bowl, fork, knife, spoon, frying pan, toaster, banana, apple, lemon, strawberry, grape, carrot, potato, onion,
    mushroom, bread, cheese, sausage, pizza, hamburger, cake, biscuit, candy, coffee, juice, bottle, jar, tin, box, bag, suitcase, wallet,
    shirt, trousers, dress, skirt, coat, sock, shoe, boot, glove, scarf, hat, helmet, crown, necklace, ring, watch, spectacles, computer,
    keyboard, mouse, printer, telephone, television, radio, camera, microphone, loudspeaker, cable, battery, lamp, candle, lantern, torch,
    hammer, saw, screwdriver, spanner, drill, nail, screw, rope, chain, ladder, bucket, broom, shovel, rake, scissors, needle, thread,
    pencil, pen, paper, envelope, stamp, newspaper, map, globe, ruler, eraser, paintbrush, easel, statue, vase, basket, elephant, giraffe,
    zebra, lion, tiger, leopard, kangaroo, koala, panda, gorilla, camel, hippopotamus, rhinoceros, whale, dolphin, shark, octopus, crab,
    lobster, jellyfish, snake, crocodile, turtle, frog, butterfly, beetle, ant, spider, snail, penguin, ostrich, submarine, rocket,
    helicopter, tank, tractor, motorcycle, skateboard, parachute, escalator, elevator, airport terminal, factory, stadium, prison, cathedral,
    laboratory, library, kitchen, bathroom, bedroom, office, corridor, tunnel, mine, desert cactus, volcano, iceberg, coral reef, skyscraper,
    crane, oil rig, satellite, robot, doll, teddy bear, puzzle, dice, playing card, chessboard, guitar, accordion, bell, clock, hourglass
    """.replace("\n", " ").split(",")
)
"""Words that training contrasts with every patch, so that words for things never drawn land away from them."""

ABSENT_WORDS: tuple[str, ...] = (
    "sofa",
    "wine glass",
    "laptop",
    "remote control",
    "microwave",
    "dining table",
    "backpack",
    "tie",
    "orange",
    "broccoli",
    "donut",
    "hair dryer",
    "vending machine",
    "saxophone",
    "calculator",
    "bookcase",
    "chandelier",
    "fireplace",
    "pillowcase",
    "washing machine",
    "traffic light",
    "bear",
    "monkey",
    "squid",
    "scorpion",
    "wheelchair",
    "swimming pool",
    "stove",
    "poster",
    "chopsticks",
    "sandwich",
    "waffle",
    "typewriter",
    "telescope",
    "stethoscope",
    "perfume",
    "lipstick",
    "necktie",
    "sewing machine",
    "toilet",
    "hot dog",
    "baseball bat",
    "tennis racket",
    "projector",
)
"""Words of no class that training never reads, one a class: the absent half of the over-complete vocabulary."""

ADE_WORDS: tuple[str, ...] = tuple(
    name for name in Vocabulary.load("ade20k").names if name not in CLASS_INDEX
)[:100]
"""The first 100 words of ade20k that are no class here. Some name what is drawn, as "building" and "water" do: a list that
holds more than the images do has such words, and pixels that get them are wrong."""


def phrases_of(name: str) -> tuple[str, ...]:
    """Return a class's name and synonyms, the name first."""
    return (name, *SYNONYMS[name])
