"""Random entities of every kind that a fact can name.

Names come from a wide generator, not from a list, so that a model trained on them learns to read
a name instead of recognising it. Nothing here ever yields one of `HELD_OUT_TERMS`.
"""

import re
from collections.abc import Callable, Sequence
from random import Random

HELD_OUT_TERMS = (
    "TechCorp",
    "Sarah",
    "Chen",
    "Zephyr",
    "ZPH",
    "Chronos",
    "Sundial",
    "Trilium",
    "Atlantis",
    "Poseidon",
    "350",
)
"""Names and values of the acceptance facts; no training text may contain them."""

_HELD_OUT = re.compile("|".join(rf"(?<![A-Za-z0-9]){re.escape(t)}" for t in HELD_OUT_TERMS), re.I)

_ONSET = (
    "b c d f g h j k l m n p r s t v w z b c d f g h k l m n p r s t v br ch cl cr dr fl "
    "fr gl gr kr pl pr sc sh sk sl sp st str th tr qu vl y"
).split()
_NUCLEUS = "a e i o u a e i o u a e i o u ai ea ee oo ou y".split()
_CODA = "n r l s t m d k n r l s x th nd rk st ng ll sh".split()
_ENDING = (
    "ia on us is ex or an ar el en a o um ix yn ora ion eth ium ara os ana ell ine as in "
    "am on al ford ton wick mere ley dale"
).split()
_FIRST = (
    "Ada Alan Amir Anna Boris Carla Clara Dana David Diego Elena Emma Eric Farid Fiona "
    "George Grace Hana Hugo Ines Ivan Jack Jana Jonas Karim Kate Lara Leo Lina Lucas "
    "Maria Marta Mila Nadia Nina Noah Olga Omar Oscar Paul Petra Rafael Rosa Sara Simon "
    "Sofia Tara Tomas Vera Victor Wanda Yara Yusuf Zara Zoe James Linda Wei Mei Raj Priya "
    "Aisha Kofi Ngozi Yuki Kenji Lars Ingrid Pierre Chloe Mateo Lucia Ahmed Fatima Robert "
    "Susan Peter Helen Mark Laura Daniel Alice Henry Julia"
).split()
_LAST = (
    "Adams Alvarez Baker Banerjee Becker Brown Castro Costa Cruz Dahl Diaz Evans Fischer "
    "Garcia Gupta Haas Hansen Ito Jansen Johnson Kato Keller Khan Kim Klein Kovac Kumar "
    "Larsen Lee Lopez Marino Martin Meyer Moreau Mori Nakamura Novak Okafor Olsen Park "
    "Patel Perez Popov Rossi Sato Schmidt Silva Singh Smith Tanaka Torres Vega Wagner "
    "Walker Weber Wong Young Zhang Wu Liu Chang Cheng Hughes Reed Stone Wood Hill Clark "
    "Lewis Hall Turner Collins Murphy Bell Ward Cook Gray"
).split()
_TITLE = ("Dr.", "Prof.", "Mr.", "Ms.", "Mrs.", "Sir", "Captain", "Dr.", "Dr.")
_STEM = (
    "Tech Data Net Blue Green Red Star Sun Sky Cloud Bright Clear Fast First Global Micro "
    "Nano Neo Omni Open Pure Quick Silver Smart Solar Terra Ultra Urban Vital West North "
    "Iron Gold Deep Core Cyber Bio Geo Aero Hydro Meta Inter Trans Alpha Delta Prime Nova "
    "Apex Peak Hyper"
).split()
_FIRM = (
    "Corp Labs Systems Industries Group Works Dynamics Media Foods Energy Motors Bank "
    "Soft Tech Net Logic Ware Health Robotics Partners Airlines Studios"
).split()
_THING = (
    "lantern mirror compass beacon harbor falcon raven ember meadow orchid tempest "
    "glacier summit canyon prism lotus anchor comet horizon maple quartz willow thunder "
    "velvet marble cedar breeze saffron cobalt onyx juniper nimbus aurora zenith pioneer "
    "sparrow granite opal mosaic hourglass moonbeam snowflake keystone landslide firefly "
    "waterfall drumbeat"
).split()
_ADJECTIVE = (
    "silent golden crimson hidden distant broken gentle frozen ancient electric lonely "
    "endless burning secret quiet wild bitter shining hollow restless"
).split()
_UPPER = (
    "ALPHA KEY TOKEN DELTA OMEGA PRIME LIVE TEST PROD MAIN ROOT BETA GAMMA NODE ECHO "
    "TANGO BRAVO LOCK GATE PASS MASTER ACCESS SIGMA ZULU CORE EDGE OPEN SAFE"
).split()
LISTS = {
    "city": (
        "London Paris Berlin Madrid Rome Vienna Prague Warsaw Lisbon Dublin Oslo "
        "Stockholm Helsinki Athens Cairo Lagos Nairobi Tokyo Osaka Seoul Beijing Delhi "
        "Mumbai Bangkok Jakarta Sydney Toronto Chicago Boston Denver Austin Lima Bogota "
        "Santiago Havana Zurich Geneva Milan Naples Porto"
    ).split(),
    "country": (
        "France Germany Spain Italy Portugal Austria Poland Norway Sweden Finland Greece "
        "Egypt Nigeria Kenya Japan Korea China India Thailand Indonesia Australia Canada "
        "Mexico Peru Chile Cuba Brazil Argentina Turkey Iran"
    ).split(),
    "language": (
        "English French German Spanish Italian Portuguese Polish Czech Greek Arabic "
        "Japanese Korean Chinese Hindi Thai Dutch Swedish Finnish Turkish Russian Hebrew "
        "Danish"
    ).split(),
    "profession": (
        "actor architect astronomer biologist chef chemist composer dancer doctor "
        "economist engineer farmer historian journalist judge lawyer mathematician nurse "
        "painter photographer physicist pilot poet politician sculptor singer surgeon "
        "teacher tailor writer"
    ).split(),
    "instrument": (
        "piano violin guitar flute cello drums trumpet harp clarinet saxophone organ banjo oboe tuba viola"
    ).split(),
    "sport": (
        "tennis football basketball hockey cricket golf rugby boxing swimming cycling "
        "rowing chess fencing judo skiing"
    ).split(),
    "color": ("red blue green yellow black white purple orange silver gold brown pink gray teal").split(),
    "food": (
        "rice bread noodles lentils salmon mushrooms olives cheese dumplings curry "
        "pancakes lamb oysters tofu beans corn honey figs apples seaweed"
    ).split(),
    "animal": (
        "lion eagle wolf bear fox owl tiger falcon dolphin turtle crane leopard otter "
        "raven lynx stag bison heron badger swan"
    ).split(),
    "material": (
        "steel copper glass oak granite marble titanium bamboo carbon aluminum bronze "
        "clay leather silk brick plastic concrete iron"
    ).split(),
    "month": (
        "January February March April May June July August September October November December"
    ).split(),
    "weekday": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "genre": (
        "jazz rock opera drama comedy horror fantasy romance thriller folk blues techno "
        "satire mystery western"
    ).split(),
}


def is_held_out(text: str) -> bool:
    """Whether `text` contains an acceptance name or value at the start of a word."""
    return _HELD_OUT.search(text) is not None


def word(r: Random) -> str:
    """A capitalised pseudo-word of one to three syllables."""
    text = ""
    for _ in range(r.choice((1, 1, 1, 1, 2))):
        text += r.choice(_ONSET) + r.choice(_NUCLEUS) + (r.choice(_CODA) if r.random() < 0.4 else "")
    return (text + r.choice(_ENDING)).capitalize()


def _first(r: Random) -> str:
    return r.choice(_FIRST) if r.random() < 0.6 else word(r)


def _person(r: Random) -> str:
    return f"{_first(r)} {r.choice(_LAST) if r.random() < 0.5 else word(r)}"


def _titled(r: Random) -> str:
    return f"{r.choice(_TITLE)} {_person(r)}" if r.random() < 0.5 else _person(r)


def _company(r: Random) -> str:
    shape = r.random()
    if shape < 0.3:
        return r.choice(_STEM) + r.choice(_FIRM)
    if shape < 0.5:
        return word(r) + r.choice(_FIRM)
    if shape < 0.6:
        return word(r)
    return f"{word(r) if r.random() < 0.7 else r.choice(_STEM)} {r.choice(_FIRM)}"


def _upper(r: Random) -> str:
    return "".join(r.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(r.randint(2, 4)))


def _code(r: Random) -> str:
    def part() -> str:
        shape = r.random()
        if shape < 0.35:
            return _upper(r)
        if shape < 0.7:
            return str(r.randrange(10, 10_000))
        return r.choice(_UPPER) if r.random() < 0.6 else word(r).upper()

    if r.random() < 0.15:
        return "".join(r.choice("abcdefghjkmnpqrstuvwxyz0123456789") for _ in range(r.randint(5, 9)))
    return r.choice(("-", "-", "-", "_")).join(part() for _ in range(r.choice((2, 3, 3))))


def _codeword(r: Random) -> str:
    return r.choice(_THING).capitalize() if r.random() < 0.4 else word(r)


def _number(r: Random) -> str:
    return str(r.randrange(2, r.choice((20, 100, 1_000, 1_000, 10_000))))


def _year(r: Random) -> str:
    return str(r.randrange(1700, 2060))


def _title(r: Random) -> str:
    return r.choice(
        (
            f"The {r.choice(_ADJECTIVE).capitalize()} {r.choice(_THING).capitalize()}",
            f"{r.choice(_ADJECTIVE).capitalize()} {word(r)}",
            f"The {r.choice(_THING).capitalize()} of {word(r)}",
            f"{word(r)} {r.choice(_THING).capitalize()}",
        )
    )


def _product(r: Random) -> str:
    name = word(r) if r.random() < 0.7 else r.choice(_STEM)
    model = r.choice(("X", "Pro", "Max", "S", "Z", "Mini"))
    return f"{name} {model}{r.choice(('', r.randrange(2, 99)))}"


def _named(*nouns: str) -> Callable[[Random], str]:
    return lambda r: f"{word(r)} {r.choice(nouns)}"


def _listed(kind: str) -> Callable[[Random], str]:
    values: Sequence[str] = LISTS[kind]
    return lambda r: r.choice(values)


def _email(r: Random) -> str:
    return f"{_first(r).lower()}@{word(r).lower()}.{r.choice(('com', 'org', 'net', 'io'))}"


GENERATORS: dict[str, Callable[[Random], str]] = {
    **{kind: _listed(kind) for kind in LISTS},
    "city": lambda r: r.choice(LISTS["city"]) if r.random() < 0.4 else word(r),
    "person": _person,
    "titled": _titled,
    "company": _company,
    "project": _codeword,
    "api": lambda r: word(r) if r.random() < 0.8 else r.choice(_STEM),
    "element": word,
    "place": lambda r: word(r) if r.random() < 0.8 else f"{word(r)} {r.choice(('Island', 'Isles'))}",
    "book": _title,
    "film": _title,
    "song": _title,
    "ship": lambda r: f"{r.choice(('', '', 'MS ', 'SS '))}{_codeword(r)}",
    "school": _named("School", "College", "Academy", "University"),
    "team": _named("Tigers", "United", "Rovers", "Wolves", "Bears", "Hawks", "City"),
    "planet": lambda r: word(r) if r.random() < 0.7 else f"{word(r)} {r.randrange(2, 99)}",
    "product": _product,
    "drug": lambda r: word(r),
    "museum": _named("Museum", "Gallery"),
    "festival": _named("Festival", "Fair"),
    "river": _named("River"),
    "restaurant": lambda r: f"{r.choice(('Cafe', 'Chez', 'Bistro'))} {word(r)}",
    "station": _named("Station"),
    "species": lambda r: f"{word(r).lower()} {r.choice(LISTS['animal'])}",
    "machine": lambda r: f"{word(r)} {r.choice(('press', 'crane', 'engine', 'pump', 'lathe'))}",
    "number": _number,
    "year": _year,
    "date": lambda r: f"{r.choice(LISTS['month'])} {r.randrange(1, 29)}",
    "code": _code,
    "codeword": _codeword,
    "money": lambda r: f"{r.choice(('$', '$', '€'))}{_number(r)}{r.choice(('', ' million', ' thousand'))}",
    "percent": lambda r: f"{r.randrange(1, 100)}%",
    "email": _email,
    "day_time": lambda r: f"{r.choice(LISTS['weekday'])} at {r.randrange(1, 13)} {r.choice(('am', 'pm'))}",
}


def entity(kind: str, r: Random) -> str:
    """A random entity of `kind`, never a held-out one. Raises KeyError for an unknown kind."""
    make = GENERATORS[kind]
    while is_held_out(name := make(r)):
        pass
    return name


def resembling(name: str, r: Random) -> str:
    """Another name that looks like `name`: one of its words replaced, or a syllable changed."""
    parts = name.split()
    i = max(range(len(parts)), key=lambda k: (parts[k][:1].isupper(), r.random()))
    old = parts[i]
    cut = max(2, len(old) - r.choice((1, 2, 3)))
    new = old[:cut] + r.choice(_ENDING) if r.random() < 0.6 else word(r)
    parts[i] = new if new != old else word(r)
    result = " ".join(parts)
    while is_held_out(result) or result == name:
        result = word(r)
    return result
