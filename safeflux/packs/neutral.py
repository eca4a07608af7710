"""Everyday things that a run preserves where its packs and its model name no others."""

THINGS = (
    "a cat, a dog, a horse, a cow, a sheep, an owl, a parrot, a duck, a goldfish, a turtle, a butterfly, a honeybee, "
    "an elephant, a giraffe, a penguin, a whale, an apple, a banana, a lemon, a bunch of grapes, a loaf of bread, a "
    "cheese, a pizza, a salad, a bowl of soup, a birthday cake, an ice cream, a cup of tea, a glass of water, a rose, "
    "a sunflower, a cactus, a palm tree, an oak tree, a mountain, a waterfall, a beach, a rainbow, a house, a castle, "
    "a lighthouse, a bridge, a windmill, a car, a bus, a bicycle, a train, an airplane, a sailing boat, a tractor, a "
    "football, a tennis racket, a kite, a guitar, a violin, a piano, a drum, a book, a pencil, a paintbrush, a "
    "camera, a laptop, a telephone, a clock, an umbrella, a hat, a pair of shoes, a scarf, a chair, a lamp, a key, a "
    "ladder, a bucket, a teapot, a vase, a woman, a man, a child, a baker, a gardener, a teacher"
)
WORDS = tuple(THINGS.split(", "))
"""Things with their articles."""

STYLES = (
    *("Claude Monet", "Vincent van Gogh", "Katsushika Hokusai", "Gustav Klimt", "Edward Hopper", "Albrecht Dürer"),
    *("pop art", "art deco", "a woodcut", "a children's book", "a blueprint", "a vintage postcard"),
)
"""Styles that a run against another style preserves."""


def split(words: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words for training, and every third one, which only the evaluation uses.

    Examples:
        >>> split(("a cat", "a dog", "an owl", "a cow"))
        (('a dog', 'an owl'), ('a cat', 'a cow'))
    """
    held_out = words[::3] if len(words) > 3 else ()
    return tuple(word for word in words if word not in held_out), held_out
