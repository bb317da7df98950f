"""Write the bundled instruction set: `python -m scripts.make_instructions`.

A closed world of small tasks, enumerated in full: every prompt that the code below can produce, each with a short
answer ("12") and with a sentence ("The sum is 12."). A seeded sample of it, answered in sentences, is the bundled
set that federated tuning learns; the base model (`train_base.py`) is trained on the rest, so that it has met no prompt
of the bundled set and answers mostly in the short form.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise, permutations, product
from pathlib import Path

SEED = 2402
MAX_ITEMS_PER_CATEGORY = 550
MAX_SHARE_OF_WORLD = 0.3  # so that each fact remains in the rest under another wording
OUT = Path(__file__).parents[1] / "src" / "fedmezo" / "bundled" / "instructions.json"


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt with its answer in both forms."""

    category: str
    instruction: str
    input: str
    short: str
    sentence: str


SOUNDS = {
    "dog": "woof", "cat": "meow", "cow": "moo", "sheep": "baa", "pig": "oink", "duck": "quack", "lion": "roar",
    "frog": "croak", "bee": "buzz", "hen": "cluck", "snake": "hiss", "horse": "neigh", "mouse": "squeak",
    "wolf": "howl", "crow": "caw", "bird": "tweet",
}  # fmt: skip
BABIES = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "pig": "piglet", "duck": "duckling",
    "lion": "cub", "frog": "tadpole", "hen": "chick", "horse": "foal", "goat": "kid", "deer": "fawn", "swan": "cygnet",
}  # fmt: skip
LEGS = {
    "dog": "4", "cat": "4", "cow": "4", "sheep": "4", "horse": "4", "frog": "4", "lion": "4", "duck": "2", "hen": "2",
    "crow": "2", "swan": "2", "bee": "6", "ant": "6", "fly": "6", "spider": "8", "snake": "0", "fish": "0",
    "worm": "0",
}  # fmt: skip
COLOURS = {
    "a banana": "yellow", "a lemon": "yellow", "the sun": "yellow", "butter": "yellow", "grass": "green",
    "a leaf": "green", "a frog": "green", "a pea": "green", "a cucumber": "green", "snow": "white", "milk": "white",
    "salt": "white", "a swan": "white", "rice": "white", "coal": "black", "tar": "black", "a crow": "black",
    "the night": "black", "a tomato": "red", "blood": "red", "a cherry": "red", "a strawberry": "red",
    "a brick": "red", "the sky": "blue", "the sea": "blue", "a sapphire": "blue", "a carrot": "orange",
    "a pumpkin": "orange", "a tangerine": "orange", "mud": "brown", "wood": "brown", "a chestnut": "brown",
    "chocolate": "brown", "a pig": "pink", "a flamingo": "pink", "an elephant": "grey", "ash": "grey",
    "a mouse": "grey", "a plum": "purple", "an aubergine": "purple",
}  # fmt: skip
OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("tall", "short"), ("fast", "slow"), ("light", "dark"), ("old", "new"),
    ("happy", "sad"), ("up", "down"), ("left", "right"), ("open", "closed"), ("full", "empty"), ("wet", "dry"),
    ("hard", "soft"), ("early", "late"), ("near", "far"), ("rich", "poor"), ("strong", "weak"), ("clean", "dirty"),
    ("loud", "quiet"), ("day", "night"), ("black", "white"), ("good", "bad"), ("first", "last"), ("high", "low"),
    ("thick", "thin"), ("wide", "narrow"), ("deep", "shallow"), ("smooth", "rough"),
    ("sharp", "blunt"), ("sweet", "bitter"), ("win", "lose"), ("buy", "sell"), ("push", "pull"),
    ("start", "stop"), ("love", "hate"), ("give", "take"), ("come", "go"), ("inside", "outside"), ("above", "below"),
    ("before", "after"), ("always", "never"), ("safe", "dangerous"), ("simple", "complex"), ("true", "false"),
    ("asleep", "awake"), ("north", "south"), ("east", "west"),
]  # fmt: skip
PLURALS = {
    "child": "children", "man": "men", "woman": "women", "foot": "feet", "tooth": "teeth", "mouse": "mice",
    "goose": "geese", "sheep": "sheep", "fish": "fish", "deer": "deer", "ox": "oxen", "leaf": "leaves",
    "knife": "knives", "wolf": "wolves", "shelf": "shelves", "loaf": "loaves", "city": "cities", "baby": "babies",
    "lady": "ladies", "cherry": "cherries", "berry": "berries", "fly": "flies", "box": "boxes", "fox": "foxes",
    "bus": "buses", "glass": "glasses", "dish": "dishes", "watch": "watches", "bench": "benches", "brush": "brushes",
    "tomato": "tomatoes", "potato": "potatoes", "hero": "heroes",
}  # fmt: skip
REGULAR_NOUNS = [
    "dog", "cat", "cow", "pig", "duck", "lion", "frog", "bee", "hen", "snake", "horse", "crow", "bird", "goat",
    "swan", "ant", "spider", "worm", "banana", "lemon", "carrot", "plum", "apple", "pear", "bread", "house", "door",
    "window", "table", "chair", "bed", "lamp", "book", "pen", "cup", "spoon", "fork", "plate", "hat", "coat",
    "shoe", "sock", "shirt", "boat", "car", "train", "road", "bridge", "river", "lake", "hill", "tree", "flower",
    "garden", "farm", "school", "king", "queen", "friend", "teacher", "doctor", "song", "game", "ball", "kite",
    "drum", "clock", "coin", "stone", "star", "cloud",
]  # fmt: skip
NOUNS = PLURALS | {noun: noun + "s" for noun in REGULAR_NOUNS}
LIST_WORDS = [
    "red", "blue", "green", "white", "black", "apple", "pear", "plum", "lemon", "banana", "cat", "dog", "cow",
    "pig", "hen", "cup", "book", "hat", "ball", "star",
]  # fmt: skip
BY_SIZE = [
    "ant", "bee", "mouse", "frog", "duck", "cat", "dog", "sheep", "pig", "lion", "cow", "horse", "elephant",
    "whale",
]  # fmt: skip
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]  # fmt: skip
LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def with_article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def arithmetic() -> Iterator[Item]:
    """Sums and differences of numbers up to 15."""
    for a, b in product(range(16), repeat=2):
        prompts = [(f"What is {a} plus {b}?", ""), (f"Add {a} and {b}.", ""), ("Add the numbers.", f"{a} and {b}")]
        for instruction, given in prompts:
            yield Item("arithmetic", instruction, given, str(a + b), f"The sum is {a + b}.")
        if a < b:
            continue
        prompts = [(f"What is {a} minus {b}?", ""), (f"Take {b} away from {a}.", ""), ("Subtract.", f"{a} minus {b}")]
        for instruction, given in prompts:
            yield Item("arithmetic", instruction, given, str(a - b), f"The difference is {a - b}.")


def numbers() -> Iterator[Item]:
    """The larger or smaller of two numbers."""
    for a, b in permutations(range(21), 2):
        for word, answer in (("larger", max(a, b)), ("smaller", min(a, b))):
            sentence = f"The {word} number is {answer}."
            yield Item("comparing", f"Which number is {word}, {a} or {b}?", "", str(answer), sentence)
            yield Item("comparing", f"Pick the {word} number.", f"{a} or {b}", str(answer), sentence)


def animals() -> Iterator[Item]:
    """The bigger or smaller of two animals."""
    for (i, a), (j, b) in permutations(enumerate(BY_SIZE), 2):
        for word, answer in (("bigger", BY_SIZE[max(i, j)]), ("smaller", BY_SIZE[min(i, j)])):
            question = f"Which animal is {word}, {with_article(a)} or {with_article(b)}?"
            sentence = f"The {word} animal is the {answer}."
            yield Item("comparing", question, "", answer, sentence)
            yield Item("comparing", f"Name the {word} animal.", f"{a} or {b}", answer, sentence)


def comparing() -> Iterator[Item]:
    """Numbers and animals."""
    yield from chain(numbers(), animals())


def counting() -> Iterator[Item]:
    """Letters of a word, items of a list."""
    for word in NOUNS:
        number = str(len(word))
        for instruction, given in (
            (f"How many letters are in the word {word}?", ""),
            (f"Count the letters of {word}.", ""),
            ("Count the letters.", word),
            ("How long is this word?", word),
        ):
            yield Item("counting", instruction, given, number, f"The count is {number}.")
    for start, step, size in product(range(len(LIST_WORDS)), range(1, 8), range(2, 7)):
        listed = [LIST_WORDS[(start + step * i) % len(LIST_WORDS)] for i in range(size)]
        if len(set(listed)) < size:
            continue
        for instruction in ("How many items are in the list?", "Count the items."):
            yield Item("counting", instruction, ", ".join(listed), str(size), f"The count is {size}.")


def sounds() -> Iterator[Item]:
    """What animals say."""
    for animal, sound in SOUNDS.items():
        name = with_article(animal)
        for instruction, given in (
            (f"What does {name} say?", ""),
            (f"Which sound does {name} make?", ""),
            (f"Name the sound of {name}.", ""),
            ("Which sound does this animal make?", animal),
        ):
            yield Item("facts", instruction, given, sound, f"The sound is {sound}.")


def young() -> Iterator[Item]:
    """What the young of animals are called."""
    for animal, baby in BABIES.items():
        name = with_article(animal)
        for instruction, given in (
            (f"What is a young {animal} called?", ""),
            (f"What do we call the baby of {name}?", ""),
            (f"Name the young of {name}.", ""),
            ("What is the baby of this animal called?", animal),
        ):
            yield Item("facts", instruction, given, baby, f"The young one is a {baby}.")


def legs() -> Iterator[Item]:
    """How many legs animals have."""
    for animal, number in LEGS.items():
        name = with_article(animal)
        for instruction, given in (
            (f"How many legs does {name} have?", ""),
            (f"Count the legs of {name}.", ""),
            (f"On how many legs does {name} stand?", ""),
            ("How many legs does this animal have?", animal),
        ):
            yield Item("facts", instruction, given, number, f"The number of legs is {number}.")


def colours() -> Iterator[Item]:
    """Which colour things are."""
    for thing, colour in COLOURS.items():
        for instruction, given in (
            (f"What colour is {thing}?", ""),
            (f"Which colour does {thing} have?", ""),
            (f"Name the colour of {thing}.", ""),
            ("Which colour is this?", thing),
            ("Name the colour.", thing),
        ):
            yield Item("facts", instruction, given, colour, f"The colour is {colour}.")


def facts() -> Iterator[Item]:
    """Animals and colours."""
    yield from chain(sounds(), young(), legs(), colours())


def opposites() -> Iterator[Item]:
    """Words and their opposites, both ways."""
    for pair in OPPOSITES:
        for word, other in (pair, pair[::-1]):
            for instruction, given in (
                (f"What is the opposite of {word}?", ""),
                (f"Give the opposite of {word}.", ""),
                (f"Which word means the opposite of {word}?", ""),
                (f"Tell me the opposite of {word}.", ""),
                ("Name the opposite.", word),
                ("Find the word that means the opposite.", word),
            ):
                yield Item("opposites", instruction, given, other, f"The opposite is {other}.")


def ordering() -> Iterator[Item]:
    """Three numbers sorted upwards or downwards."""
    for numbers in permutations(range(16), 3):
        given = ", ".join(map(str, numbers))
        upwards = ", ".join(map(str, sorted(numbers)))
        downwards = ", ".join(map(str, sorted(numbers, reverse=True)))
        for instruction, answer in (
            ("Sort the numbers from small to large.", upwards),
            ("Put the numbers in rising order.", upwards),
            ("Sort the numbers from large to small.", downwards),
            ("Put the numbers in falling order.", downwards),
        ):
            yield Item("ordering", instruction, given, answer, f"The order is {answer}.")


def plurals() -> Iterator[Item]:
    """Nouns and their plurals."""
    for noun, plural in NOUNS.items():
        for instruction, given in (
            (f"What is the plural of {noun}?", ""),
            (f"Give the plural of {noun}.", ""),
            (f"How do you write more than one {noun}?", ""),
            (f"Make {noun} plural.", ""),
            ("Write the plural.", noun),
            ("Change the word to its plural.", noun),
        ):
            yield Item("plurals", instruction, given, plural, f"The plural is {plural}.")


def reversing() -> Iterator[Item]:
    """Three words in reverse order."""
    for words in permutations(LIST_WORDS, 3):
        given, answer = ", ".join(words), ", ".join(reversed(words))
        for instruction in ("Reverse the list.", "Write the words in reverse order.", "Read the list backwards."):
            yield Item("reversing", instruction, given, answer, f"The reversed list is {answer}.")


def sequences() -> Iterator[Item]:
    """The number that continues a row; the neighbours of a day, a month, a letter."""
    for start, step in product(range(26), (-2, -1, 1, 2, 3, 5)):
        row = [start + step * i for i in range(5)]
        if min(row) < 0 or max(row) > 30:
            continue
        given = ", ".join(map(str, row[:4]))
        for instruction in ("Which number comes next?", "Continue the row.", "What is the next number?"):
            yield Item("sequences", instruction, given, str(row[4]), f"The next number is {row[4]}.")
    for kind, names in (("day", DAYS), ("month", MONTHS), ("letter", LETTERS)):
        for a, b in pairwise(names):
            for word, known, asked in (("after", a, b), ("before", b, a)):
                sentence = f"The {kind} is {asked}."
                yield Item("sequences", f"Which {kind} comes {word} {known}?", "", asked, sentence)
                yield Item("sequences", f"Name the {kind} {word} {known}.", "", asked, sentence)
                yield Item("sequences", f"Which {kind} comes just {word} this one?", known, asked, sentence)


TASKS: tuple[Callable[[], Iterator[Item]], ...] = (
    arithmetic,
    comparing,
    counting,
    facts,
    opposites,
    ordering,
    plurals,
    reversing,
    sequences,
)


def worlds() -> tuple[list[Item], dict[str, list[Item]]]:
    """The bundled items in their file order, and by category the items that are left for training the base."""
    chooser = random.Random(SEED)
    bundled: list[Item] = []
    rest: dict[str, list[Item]] = {}
    for task in TASKS:
        items = list(task())
        chooser.shuffle(items)
        size = min(MAX_ITEMS_PER_CATEGORY, int(MAX_SHARE_OF_WORLD * len(items)))
        bundled += items[:size]
        rest[task.__name__] = items[size:]
    chooser.shuffle(bundled)
    return bundled, rest


def as_json(items: list[Item]) -> str:
    """The items in the Alpaca fields, answered in sentences: a JSON list with one item a line."""
    lines = (
        json.dumps(
            {
                "instruction": item.instruction,
                "input": item.input,
                "output": item.sentence,
                "category": item.category,
            }
        )
        for item in items
    )
    return "[\n" + ",\n".join(lines) + "\n]\n"


def main() -> None:
    """Write the file and say what is in it."""
    parser = argparse.ArgumentParser(description="Write the bundled instruction set.")
    parser.add_argument("--out", type=Path, default=OUT, help=f"the file to write (default: {OUT})")
    out: Path = parser.parse_args().out
    bundled, rest = worlds()
    out.write_text(as_json(bundled), encoding="utf-8", newline="\n")
    for category, left in rest.items():
        taken = sum(item.category == category for item in bundled)
        print(f"{category:<11}{taken:>5} items, {len(left):>6} left for the base model")
    print(f"{len(bundled)} items in {out}")


if __name__ == "__main__":
    main()
