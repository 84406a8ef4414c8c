"""Makes a small six-class task of short questions, comparable in size and shape to TREC-6 (Li & Roth 2002).

    python benchmarks/trec_like.py FOLDER [--seed 0] [--tfidf]
    python train_clf.py --preset tiny --data FOLDER --output-dir runs/trec_like

Writes FOLDER/train.csv (5,500 questions) and FOLDER/test.csv (500), columns label,text, from a seeded
grammar of our own; the classes are TREC's (what the answer is: ABBR an abbreviation or its expansion, DESC
a description, ENTY a thing, HUM a person or group, LOC a place, NUM a number), in about TREC's proportions.
About half of the questions tell their class only by the order of the words: "what city did the singer Ann
Bell leave" asks for a place, "what singer did the city of Lima honor" for a person. 5 % of the labels, in
both files, are replaced by another class, so that no classifier does better than about 0.95. --tfidf fits a
bag of words and a logistic regression on the files and prints its accuracy (needs the extra "dev").
"""

from __future__ import annotations

import argparse
import csv
import random
from collections.abc import Iterator
from pathlib import Path

SIZES = {"train": 5500, "test": 500}
NOISE = 0.05
# Shares of the classes in TREC's 5,452 training questions, in per cent.
SHARES = {"ABBR": 1.6, "DESC": 21.3, "ENTY": 22.9, "HUM": 22.4, "LOC": 15.3, "NUM": 16.5}

WORDS = {
    "given": """Ann Mary Ruth Clara Edith Helen Laura Nora Rosa Vera Ivy Ella Grace Hilda Irma Judith
        Karen Lydia Adam Boris Carl David Emil Felix George Hugo Ivan James Karl Leo Martin Otto Paul
        Robert Simon Thomas Victor Walter""",
    "family": """Bell Carver Dunn Ellis Fisher Grant Harlow Irving Jansen Keller Lindt Mercer Novak Olsen
        Porter Quinn Ramsey Sutton Turner Underhill Vance Weber Yates Zeller Abbott Barlow Crane Dalton
        Emerson Fuller Garner Hewitt Ingram Jarvis Kemp Langley Marsh Norris Osborne Parrish""",
    "place": """Lima Oslo Cairo Dublin Geneva Havana Lisbon Madrid Nairobi Prague Quito Riga Sofia Tokyo
        Vienna Warsaw Zurich Boston Chicago Denver Houston Memphis Portland Seattle Peru Chile Norway
        Egypt Ireland Cuba Spain Kenya Japan Austria Poland Canada Brazil India Nepal Ghana Ohio Texas
        Nevada Maine Oregon Utah Iowa Malta Cyprus Crete Iceland Corsica Borneo Sumatra""",
    "animal": """tiger wolf otter falcon beaver badger camel donkey eagle ferret giraffe hamster iguana
        jaguar kangaroo leopard moose newt octopus penguin rabbit salmon turtle walrus zebra spider beetle
        lizard""",
    "thing": """telephone piano violin bicycle camera compass engine radio rocket telescope typewriter
        umbrella windmill zipper battery clock elevator helmet ladder magnet mirror needle pencil printer
        refrigerator saddle thermometer toaster tractor trumpet vaccine wheel bridge candle canal hammer
        lantern parachute submarine calculator""",
    "food": """bread cheese butter honey coffee chocolate garlic ginger lemon mustard olive onion pepper
        potato rice saffron sugar tomato vanilla vinegar wine yogurt noodle pumpkin""",
    "idea": """gravity inflation photosynthesis democracy lightning friction magnetism erosion evaporation
        nationalism surrealism hypnosis digestion radiation fermentation baroque feudalism jazz insomnia
        asthma malaria anemia amnesia nostalgia irony metaphor""",
    "event": """war flood strike fire eclipse festival election parade earthquake expedition treaty
        coronation tournament marathon auction exhibition""",
    "period": """January February March April June July August October spring winter 1804 1815 1848 1861
        1871 1889 1905 1912 1929 1936 1945 1953 1961 1969 1977 1984 1989 1991""",
    "letters": """NATO NASA UNESCO FBI CIA DNA RAM CPU BBC IBM GDP HTML LED MRI OPEC PIN RSVP SOS UFO
        UNICEF VAT WHO AIDS ASAP ATM CEO DVD ESP GPS IQ""",
    # The noun behind "what" that says what is asked for.
    "HUM": """singer painter president inventor author explorer general actress scientist king pilot
        composer poet architect boxer company team senator doctor emperor""",
    "LOC": """city country river island state mountain lake continent desert province village harbor
        county street valley ocean""",
    "ENTY": """animal color sport language food disease instrument book film plant currency religion ship
        weapon dance game""",
    "NUM": "year date percentage distance price temperature weight speed age amount length salary",
    "DESC": "reason meaning origin definition purpose effect importance history",
    "doing": """honor visit discover describe save leave defend love protect admire destroy study reach
        support mention own""",
    "done": """honored visited discovered described saved left defended loved protected admired destroyed
        studied reached supported mentioned owned""",
    "many": "people animals ships books films islands rivers teams planets bones teeth soldiers songs",
    "measure": "far tall old fast deep heavy long large hot expensive often",
    "act": "work form spread move begin grow change end develop happen",
}
LEXICON = {name: words.split() for name, words in WORDS.items()}

# {x} draws from LEXICON["x"], or fills one of the phrases PHRASES["x"].
PHRASES = {
    "person": ["{given} {family}"],
    "anyone": ["the {HUM} {person}", "the {HUM} {person}", "{person}", "the {HUM} of {place}"],
    "anywhere": ["the {LOC} of {place}", "the {LOC} of {place}", "{place}", "the {LOC} near {place}"],
    "anything": ["the {thing}", "the {animal}", "the {ENTY} of {place}", "the {event} of {period}", "{food}"],
    "measured": ["the {NUM} of {anywhere}", "the {NUM} of {anything}", "the {DESC} of {anything}"],
    "rival": [
        "the {HUM} of {place}",
        "the {LOC} of {place}",
        "the {ENTY} of {place}",
        "the {HUM} {person}",
        "the {LOC} near {place}",
        "the {ENTY} of {person}",
        "the {NUM} of {anyone}",
        "the {DESC} of {anything}",
    ],
    "other": ["{anyone}", "{anyone}", "{anywhere}", "{anywhere}", "{anything}", "{anything}", "{measured}"],
}
# Questions that a few words give away.
PLAIN = {
    "ABBR": [
        "what does {letters} stand for ?",
        "what is the full form of {letters} ?",
        "what is the abbreviation for the {event} of {place} ?",
        "what does the abbreviation {letters} mean ?",
    ],
    "DESC": [
        "what is {idea} ?",
        "why did {anyone} {doing} {other} ?",
        "how does a {thing} {act} ?",
        "what is the difference between {idea} and {idea} ?",
        "what causes {idea} in a {animal} ?",
        "what happened to {anyone} after the {event} ?",
        "how did the {event} in {place} {act} ?",
        "what is a {thing} made for ?",
        "what is the {DESC} of {idea} ?",
        "who was {person} ?",
    ],
    "ENTY": [
        "what is the fastest {animal} in {place} called ?",
        "name a {ENTY} that contains {food} .",
        "what {ENTY} do people in {place} like most ?",
        "what kind of {animal} lives in {place} ?",
        "what is the best {food} to eat with {food} ?",
        "which {ENTY} was banned in {place} ?",
    ],
    "HUM": [
        "who invented the {thing} ?",
        "who was the first {HUM} of {place} ?",
        "who {done} {other} ?",
        "what is the name of the {HUM} who {done} {other} ?",
        "whose {thing} was sold in {place} ?",
        "name the {HUM} who lost the {event} of {period} .",
    ],
    "LOC": [
        "where is the {LOC} of {place} ?",
        "where was {anyone} born ?",
        "where did the {event} {act} ?",
        "what is the capital of {place} ?",
        "in what part of {place} does the {animal} live ?",
        "what is the largest {LOC} in {place} ?",
    ],
    "NUM": [
        "how many {many} are there in {place} ?",
        "how {measure} is the {LOC} of {place} ?",
        "when did {anyone} {doing} {other} ?",
        "how {measure} does a {animal} get ?",
        "what is the population of {place} ?",
        "when was the {thing} invented ?",
        "how much does a {thing} cost in {place} ?",
    ],
}
# Questions in which the nouns of several classes stand together and their order decides; {ask} is a noun of
# the class.
ORDERED = {
    "HUM": [
        "what {ask} did {rival} {doing} in {period} ?",
        "which {ask} was {done} by {rival} ?",
        "what is the {ask} that {rival} {done} ?",
        "by which {ask} was {rival} {done} ?",
        "what {ask} {done} {rival} ?",
        "what is the {ask} in the {NUM} of {rival} ?",
    ],
    "NUM": [
        "in what {ask} did {rival} {doing} {rival} ?",
        "what is the {ask} of {rival} ?",
        "at what {ask} was {rival} {done} by {rival} ?",
        "what was the {ask} when {rival} {done} {rival} ?",
    ],
    "DESC": [
        "what is the {ask} of {rival} ?",
        "what was the {ask} of the {NUM} of {rival} ?",
        "for what {ask} did {rival} {doing} {rival} ?",
        "what {ask} does the {ENTY} of {place} have ?",
    ],
}
ORDERED["ENTY"] = ORDERED["HUM"]
ORDERED["LOC"] = [*ORDERED["HUM"], "in what {ask} did {rival} {doing} {rival} ?"]
ORDERED_SHARE = 0.5


def fill(template: str, rng: random.Random, ask: str = "") -> str:
    """The template with every {slot} drawn anew; slots of phrases are filled in turn."""
    words = []
    for word in template.split():
        slot = word.strip("{}")
        if slot == word:
            words.append(word)
        elif slot == "ask":
            words.append(rng.choice(LEXICON[ask]))
        elif slot in PHRASES:
            words.append(fill(rng.choice(PHRASES[slot]), rng))
        else:
            words.append(rng.choice(LEXICON[slot]))
    for i, word in enumerate(words[1:]):
        if words[i] == "a" and word[0] in "aeiou":
            words[i] = "an"
    return " ".join(words)


def questions(count: int, seed: int, split: str) -> Iterator[tuple[str, str]]:
    """Yields `count` pairs (label, question), a function of (seed, split) alone."""
    rng = random.Random(f"{seed} {split}")
    classes = list(SHARES)
    made = 0
    while made < count:
        label = rng.choices(classes, weights=list(SHARES.values()))[0]
        if label in ORDERED and rng.random() < ORDERED_SHARE:
            text = fill(rng.choice(ORDERED[label]), rng, ask=label)
        else:
            text = fill(rng.choice(PLAIN[label]), rng)
        if rng.random() < NOISE:
            label = rng.choice([other for other in classes if other != label])
        yield label, text[0].upper() + text[1:]
        made += 1


def write(folder: Path, seed: int) -> None:
    """Writes train.csv and test.csv; no question of the test stands in train."""
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for split, size in SIZES.items():
        with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(["label", "text"])
            kept = 0
            for label, text in questions(10 * size, seed, split):
                if kept < size and text not in seen:
                    seen.add(text)
                    out.writerow([label, text])
                    kept += 1
        assert kept == size, "the grammar has too few questions"


def tfidf_accuracy(folder: Path) -> float:
    """Accuracy on test.csv of a logistic regression on the TF-IDF of single words of train.csv."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    columns = {}
    for split in SIZES:
        with open(folder / f"{split}.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns[split] = [row["text"] for row in rows], [row["label"] for row in rows]
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000, C=10))
    return model.fit(*columns["train"]).score(*columns["test"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tfidf", action="store_true", help="print the accuracy of a bag of words")
    args = parser.parse_args()
    write(args.folder, args.seed)
    print(f"{args.folder}: {SIZES['train']} train, {SIZES['test']} test questions")
    if args.tfidf:
        print(f"TF-IDF + logistic regression: accuracy {tfidf_accuracy(args.folder):.3f}")


if __name__ == "__main__":
    main()
