"""The embedded corpus: labelled film reviews from a small grammar of our own, so that every command runs offline.

A review has a true opinion, pos or neg, and always states it once in a *verdict*, a sentence about the whole
film ("in the end it was hardly a masterpiece"). Around it stand sentences that a count of words cannot tell from
the verdict: aspects that are praised or blamed almost independently of the opinion, what friends or critics
thought, contrasts whose other half says the opposite ("the acting was great, yet in the end it was a waste").
Praise and blame are negated as often for one opinion as for the other ("not bad", "never boring"), thus the
words themselves carry little. A consequence ("I would not recommend it") nearly always follows the verdict, so a
language model that predicts the next word must remember the verdict: that is what makes pre-training pay.

`generate` is a pure function of (split, seed). The opinions of a split are balanced exactly, and exactly
`LABEL_NOISE` of its labels are flipped at random. A reader who knows the grammar recovers every opinion, hence
the best accuracy any classifier can expect is `CEILING` = 1 - `LABEL_NOISE` = 0.955, and on a whole split that
reader scores exactly this. `benchmarks/sample_baseline.py` measures how far below it word counts stay.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TypedDict

SPLITS = ("train", "valid", "test", "unsup")
LABELS = ("neg", "pos")
SIZES = {"train": 2000, "valid": 400, "test": 600, "unsup": 3000}
LABEL_NOISE = 0.045  # times each labelled size is a whole number
CEILING = 1.0 - LABEL_NOISE
MIN_WORDS, MAX_WORDS = 30, 120

GRAMMAR_VERSION = 1  # part of the random seed; raise it when the grammar changes

# Each pair of lists is (words of blame, words of praise): the index is the opinion.
_ADJECTIVES = (
    "boring dull awful terrible bad tedious predictable clumsy shallow lifeless silly weak stale hollow "
    "confusing".split(),
    "great wonderful brilliant superb good gripping original elegant profound lively clever strong fresh moving "
    "charming".split(),
)
_NOUNS = (
    "waste,mess,disaster,bore,failure,disappointment".split(","),
    "masterpiece,triumph,gem,delight,joy,treat".split(","),
)
_VERBS = (("hated", "disliked", "loathed"), ("loved", "liked", "adored"))
_VERBS_BASE = (("hate", "dislike", "loathe"), ("love", "like", "adore"))

_NEGATIONS = ("not", "not", "not", "never", "hardly", "far from", "anything but")
_NEGATIONS_NOUN = ("not", "hardly", "far from", "anything but")
_INTENSIFIERS = (
    "really",
    "truly",
    "simply",
    "rather",
    "quite",
    "so",
    "sooooo",
    "very",
    "very very very very",
    "just",
    "absolutely",
    "utterly",
    "soooo",
    "too too too",
    "nothing but",
    "as always",
)
_CUES = ("in the end", "all in all", "overall", "on balance", "looking back", "at the end of the day")
_WHOLE = ("it", "it", "it", "the film", "this movie", "the whole thing")
_CONTRASTS = ("but", "but", "yet", "still", "however")

_ASPECTS = (
    "acting",
    "plot",
    "music",
    "camera work",
    "dialogue",
    "ending",
    "script",
    "lighting",
    "editing",
    "first half",
    "second half",
    "villain",
    "hero",
    "chase",
    "love story",
    "soundtrack",
    "humour",
    "pace",
    "costume design",
    "opening scene",
    "supporting cast",
    "narrator",
    "setting",
    "final twist",
)
_PEOPLE = (
    "my friends",
    "the critics",
    "my parents",
    "most reviewers",
    "the people next to us",
    "my colleagues",
    "all my neighbours",
    "the jury",
    "our children",
    "my two brothers",
)
_GENRES = (
    "comedy",
    "thriller",
    "western",
    "drama",
    "horror film",
    "musical",
    "romance",
    "war film",
    "cartoon",
    "documentary",
    "crime story",
    "ghost story",
    "road movie",
    "spy film",
)
_TITLE_FIRST = (
    "Silent",
    "Crimson",
    "Last",
    "Hidden",
    "Broken",
    "Golden",
    "Seventh",
    "Paper",
    "Distant",
    "Frozen",
    "Burning",
    "Empty",
    "Winter",
    "Midnight",
    "Northern",
    "Stolen",
    "Lonely",
    "Iron",
    "Glass",
    "Secret",
)
_TITLE_SECOND = (
    "River",
    "Garden",
    "Promise",
    "Harbour",
    "Mirror",
    "Letter",
    "Station",
    "Kingdom",
    "Summer",
    "Bridge",
    "Orchard",
    "Captain",
    "Island",
    "Lantern",
    "Highway",
    "Daughter",
    "Window",
    "Voyage",
    "Clock",
    "Forest",
)
_NAMES_FIRST = (
    "Anna",
    "Carlos",
    "Emily",
    "George",
    "Helen",
    "Ivan",
    "Julia",
    "Kenji",
    "Laura",
    "Marcus",
    "Nina",
    "Oscar",
    "Paula",
    "Robert",
    "Sofia",
    "Thomas",
)
_NAMES_LAST = (
    "Almeida",
    "Brandt",
    "Castell",
    "Dorsey",
    "Eriksen",
    "Fontaine",
    "Granger",
    "Hollis",
    "Ishida",
    "Jansen",
    "Keller",
    "Lindqvist",
    "Moreau",
    "Novak",
    "Okafor",
    "Prescott",
)
_JOBS = (
    "a detective",
    "a young nurse",
    "a retired teacher",
    "a sailor",
    "a farmer",
    "a pianist",
    "a taxi driver",
    "a bank clerk",
    "a soldier",
    "an architect",
    "a priest",
    "a journalist",
    "a thief",
    "a widow",
)
_PLACES = (
    "a small village",
    "the desert",
    "New York",
    "an old hotel",
    "the mountains",
    "Berlin",
    "a fishing town",
    "the suburbs",
    "a train to Moscow",
    "a lighthouse",
    "Naples",
    "a boarding school",
    "outer space",
)
_GOALS = (
    "a lost brother",
    "a hidden treasure",
    "the truth about the past",
    "a way home",
    "an old enemy",
    "a missing letter",
    "a second chance",
    "the murderer of a friend",
    "a forgotten song",
    "some peace",
)
_TIMES = (
    "last week",
    "on a rainy Sunday",
    "on television",
    "last night",
    "at a festival",
    "on a long flight",
    "years ago",
    "with my sister",
    "after work",
    "in an almost empty cinema",
    "twice this month",
)
_FILLERS = (
    "The story is set in {place} and {place2}.",
    "I saw it because {name} plays in it.",
    "I had waited for this movie because I liked the book.",
    "We went because of the {genre} before it.",
    "It was made in {year}.",
    "It runs for about {minutes} minutes.",
    "{name} wrote the script together with {name2}.",
    "There is also a short scene with {name2}.",
    "The book it is based on came out in {year}.",
    "It is the {nth} film by {name}.",
    "I had read nothing about it before.",
    "We sat in the {nth} row.",
    "The credits list {minutes} people.",
    "Some scenes were shot in {place}.",
    "{name2} has a part as {job2}.",
    "There were {few} of us.",
)
_OPENINGS = (
    "I saw {title} {time}.",
    "{title} is a {genre} by {name}.",
    "I watched this {genre} {time}.",
    "We rented {title} {time}.",
    "{title} came out in {year} and I saw it {time}.",
    "A {genre} with {name} and {name2}.",
    "So this is {title}, the {nth} {genre} by {name}.",
)
_PLOTS = (
    "{name} plays {job} who looks for {goal} in {place}.",
    "It is about {job} and {job2} in {place}.",
    "{job} comes to {place} and finds {goal}.",
    "It tells of {job} who leaves {place} to find {goal}.",
    "In {place}, {job} meets {job2} and together they search for {goal}.",
    "{name} is {job}, and {name2} is {job2} with {goal} on the mind.",
)
# What follows from an opinion, said by the writer or by others; the same words stand on both sides, only negation
# or direction tell them apart.
_CONSEQUENCES = (
    (
        "would not recommend it to anyone",
        "cannot recommend it",
        "will never watch it again",
        "wanted the money back",
        "regretted the ticket",
        "gave up before the last scene",
        "did not want to see more of it",
        "left early",
        "will not forgive the director",
        "could not wait for the end",
        "would rather have stayed at home",
    ),
    (
        "would recommend it to anyone",
        "can only recommend it",
        "will watch it again",
        "never wanted the money back",
        "did not regret the ticket",
        "never gave up before the last scene",
        "wanted to see more of it",
        "would not have left early",
        "will not forget the director",
        "could not have waited for more",
        "would not rather have stayed at home",
    ),
)

P_NEGATED = 0.35  # of all evaluations
P_ASPECT_AGREES = 0.65  # an aspect says what the verdict says
P_VERDICT_FIRST = 0.08
P_CONSEQUENCE = 0.97


class Review(TypedDict):
    """One row of the sample: the text and the observed label (index into `LABELS`, -1 in unsup)."""

    text: str
    label: int


class _Writer:
    """Draws the parts of one review; `opinion` arguments are 0 (neg) or 1 (pos)."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        pick = rng.choice
        place, place2 = rng.sample(_PLACES, 2)
        job, job2 = rng.sample(_JOBS, 2)
        self.aspects = rng.sample(_ASPECTS, 10)  # none is spoken of twice; no review needs ten
        self.facts = {
            "title": f"The {pick(_TITLE_FIRST)} {pick(_TITLE_SECOND)}",
            "genre": pick(_GENRES),
            "time": pick(_TIMES),
            "name": f"{pick(_NAMES_FIRST)} {pick(_NAMES_LAST)}",
            "name2": f"{pick(_NAMES_FIRST)} {pick(_NAMES_LAST)}",
            "place": place,
            "place2": place2,
            "job": job,
            "job2": job2,
            "goal": pick(_GOALS),
            "year": str(rng.randrange(1950, 2010, 3)),
            "minutes": str(rng.randrange(80, 200, 10)),
            "nth": pick(("second", "third", "fourth", "fifth", "last")),
            "few": pick(("two", "three", "ten")),
        }

    def fact(self, templates: tuple[str, ...]) -> str:
        return self.rng.choice(templates).format(**self.facts)

    def evaluation(self, opinion: int) -> str:
        """A predicate after "was" that expresses `opinion`, by its own words or by negating the opposite ones."""
        rng, negated = self.rng, self.rng.random() < P_NEGATED
        polarity = 1 - opinion if negated else opinion
        if rng.random() < 0.25:
            noun = rng.choice(_NOUNS[polarity])
            if negated:
                return f"{rng.choice(_NEGATIONS_NOUN)} a {noun}"
            return f"{rng.choice(('a', 'a real', 'nothing short of a', 'quite a', 'a complete'))} {noun}"
        adjective, second = rng.sample(_ADJECTIVES[polarity], 2)
        if rng.random() < 0.08:
            adjective = adjective.upper()
        if rng.random() < 0.4:  # a pair is always of one polarity: the language model can tell who belongs to whom
            if negated:
                return rng.choice(("neither {} nor {}", "not {} or {}", "never {} or {}")).format(adjective, second)
            return f"{adjective} and {second}"
        if negated:
            negation = rng.choice(_NEGATIONS)
            return f"{negation.upper() if rng.random() < 0.05 else negation} {adjective}"
        if rng.random() < 0.5:
            return f"{rng.choice(_INTENSIFIERS)} {adjective}"
        return adjective

    def aspect(self, opinion: int) -> str:
        return f"the {self.aspects.pop()} was {self.evaluation(opinion)}"

    def praise_or_blame(self, agrees: int) -> str:
        """A sentence on one or two aspects, "and" joins two of one opinion, "while" and "but" two of opposite ones."""
        rng = self.rng
        first = agrees if rng.random() < P_ASPECT_AGREES else 1 - agrees
        form, sentence = rng.random(), self.aspect(first)
        if form < 0.25:
            sentence += f" and {self.aspect(first)}"
        elif form < 0.5:
            sentence += f" {rng.choice(('while', 'but'))} {self.aspect(1 - first)}"
        return sentence + "."

    def hearsay(self) -> str:
        """What others thought: independent of the opinion."""
        rng, other = self.rng, self.rng.randrange(2)
        people = rng.choice(_PEOPLE)
        if rng.random() < 0.6:
            return f"{people} {rng.choice(_CONSEQUENCES[other])}."
        if rng.random() < 0.5:
            return f"{people} {rng.choice(_VERBS[other])} it."
        return f"{people} did not {rng.choice(_VERBS_BASE[1 - other])} it."

    def verdict(self, opinion: int) -> str:
        """The one sentence that decides: always about the whole film and from the writer's own mouth."""
        rng = self.rng
        claim = f"{rng.choice(_CUES)} {rng.choice(_WHOLE)} was {self.evaluation(opinion)}"
        form = rng.random()
        if form < 0.50:
            return f"{claim}."
        if form < 0.78:
            return f"{self.aspect(1 - opinion)}, {rng.choice(_CONTRASTS)} {claim}."
        if form < 0.83:
            return f"{claim}, even if {self.aspect(1 - opinion)}."
        if form < 0.93:
            people, verb = rng.choice(_PEOPLE), rng.choice(_VERBS[1 - opinion])
            if rng.random() < 0.5:
                return f"{people} {verb} it, I did not."
            return f"{people} {rng.choice(_VERBS[opinion])} it, and so did I."
        hoped, got = rng.choice(_NOUNS[1 - opinion]), rng.choice(_NOUNS[opinion])
        if rng.random() < 0.5:
            return f"{rng.choice(('I expected', 'they promised'))} a {hoped} and I got a {got}."
        return f"I got a {got} where {rng.choice(('I expected', 'they promised'))} a {hoped}."

    def review(self, opinion: int) -> str:
        rng = self.rng
        opening = [self.fact(_OPENINGS), self.fact(_PLOTS)]
        middle = [self.praise_or_blame(opinion) for _ in range(rng.choice((1, 1, 2, 2, 3)))]
        middle += [self.hearsay()] * (rng.random() < 0.7)
        middle += [self.fact(_FILLERS)] * (rng.random() < 0.5)
        rng.shuffle(middle)
        verdict = [self.verdict(opinion)]
        if rng.random() < P_CONSEQUENCE:
            verdict.append(f"I {rng.choice(_CONSEQUENCES[opinion])}.")
        body = opening + (verdict + middle if rng.random() < P_VERDICT_FIRST else middle + verdict)
        fillers = iter(rng.sample(_FILLERS, len(_FILLERS)))
        while sum(len(sentence.split()) for sentence in body) < MIN_WORDS + 2:
            body.insert(1, next(fillers).format(**self.facts))
        return self.set_type(body)

    def set_type(self, sentences: list[str]) -> str:
        """Capitals, exclamation marks and line breaks, independent of the opinion."""
        rng = self.rng
        shouting = rng.random() < 0.03
        broken = rng.random() < 0.35
        text = ""
        for number, sentence in enumerate(sentences):
            sentence = sentence[0].upper() + sentence[1:]
            if rng.random() < 0.10:
                sentence = sentence[:-1] + rng.choice(("!", "!!!!", "!!!!!!", "...", " ....", "!!"))
            if shouting and number >= 2:
                sentence = sentence.upper()
            separator = "" if not number else "<br /><br />" if broken and rng.random() < 0.3 else " "
            text += separator + sentence
        return text


def generate(split: str, *, seed: int = 0) -> Iterator[Review]:
    """Yields the reviews of `split` (one of `SPLITS`), `SIZES[split]` in all, in random order of labels.

    A pure function of (split, seed). Reviews have `MIN_WORDS` to `MAX_WORDS` words. `label` is 0 (neg) or 1 (pos),
    flipped in exactly `LABEL_NOISE` of the labelled reviews, and -1 throughout "unsup". Raises KeyError for
    another split.
    """
    size = SIZES[split]
    rng = random.Random(f"ulmfit sample {GRAMMAR_VERSION} {split} {seed}")
    opinions = [index % 2 for index in range(size)]
    rng.shuffle(opinions)
    flipped = set() if split == "unsup" else set(rng.sample(range(size), round(LABEL_NOISE * size)))
    for index, opinion in enumerate(opinions):
        text = _Writer(rng).review(opinion)
        label = -1 if split == "unsup" else 1 - opinion if index in flipped else opinion
        yield Review(text=text, label=label)
