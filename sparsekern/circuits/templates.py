"""The texts of the twenty tasks: pairs of prompts that differ in one cue, and what may follow each.

The tasks are those of Gao et al. 2025, table 1, whose prompts were not released; the templates are ours. Both prompts
of a pair share every word that the cue does not decide, so nothing else tells them apart. Words are drawn at random
from short lists, and half of the prompts follow a line or two of other code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

NAMES = """
    args array base batch block body buf cache cls code col config context count cur data depth digits dirs elem
    end entry error event field flags fmt func group handler head index info item key kind label left length
    level line lines mode module msg name names node num obj offset op other parent parts path pattern pos
    prefix proc queue result right root rows section seq size source stack start state step suffix table tag
    target text token total tree type unit user val value values version width word x y
""".split()  # noqa: SIM905
FUNCTIONS = """
    add append call check close debug find format get join load log open parse print read run send set split
""".split()  # noqa: SIM905
WORDS = """
    bad base case char code data end error file found line list mode name no not path set size test text type
    value
""".split()  # noqa: SIM905
CLASSES = """
    Base Block Entry Event Field Group Item Line Node Object Point Reader State Table Token Tree User Value
""".split()  # noqa: SIM905
FILES = ("path", "filename", "name", "file", "source", "infile", "input_file", "data_file", "config_path", "input_path")
READ_FROM_WRITE_TO = (
    ("input", "output"),
    ("infile", "outfile"),
    ("in_file", "out_file"),
    ("source", "target"),
    ("src", "dst"),
    ("input_path", "output_path"),
    ("config_in", "config_out"),
    ("original", "copy"),
)

Texts = tuple[str, str]


@dataclass(frozen=True)
class Draft:
    """A pair before it meets a tokenizer.

    Attributes:
        prompts: two texts that differ in the cue.
        answers: what may follow the first and the second prompt, in the order of preference: the first of these for
            which both answers are single tokens is taken.
    """

    prompts: Texts
    answers: tuple[Texts, ...]


@dataclass(frozen=True)
class Template:
    """A task: what is to be decided, by which cue, and how its pairs are drawn."""

    between: str
    cue: str
    draw: Callable[[Random], Draft]


TEMPLATES: dict[str, Template] = {}


def _task(name: str, between: str, cue: str) -> Callable[[Callable[[Random], Draft]], Callable[[Random], Draft]]:
    def register(draw: Callable[[Random], Draft]) -> Callable[[Random], Draft]:
        TEMPLATES[name] = Template(between, cue, draw)
        return draw

    return register


def _words(rng: Random, words: list[str], n: int) -> list[str]:
    """Different ones."""
    return rng.sample(words, n)


def _prompts(rng: Random, first: str, second: str) -> Texts:
    """Both as they are, or both after the same lines of other code, indented alike."""
    indent = "    " * rng.randrange(3)
    a, b, c = _words(rng, NAMES, 3)
    lead = rng.choice(["", "", f"{indent}{a} = {b}\n", f"{indent}{a}({b})\n{indent}{c} = None\n"])
    return lead + _indented(first, indent), lead + _indented(second, indent)


def _indented(text: str, indent: str) -> str:
    return indent + text.replace("\n", "\n" + indent)


@_task("single_double_quote", "`')` vs `\")`", "the quote that opened the string")
def _single_double_quote(rng: Random) -> Draft:
    function, text = rng.choice(FUNCTIONS), " ".join(_words(rng, WORDS, rng.randint(1, 4)))
    prompts = _prompts(rng, f"{function}('{text}", f'{function}("{text}')
    return Draft(prompts, (("')", '")'), ("')\n", '")\n'), ("'", '"')))


@_task("final_kwarg", "`=None` vs `):`", "whether earlier parameters have defaults")
def _final_kwarg(rng: Random) -> Draft:
    function, *names, last = _words(rng, NAMES, rng.randint(3, 5))
    some, none = ("".join(f"{name}{default}, " for name in names) for default in ("=None", ""))
    prompts = _prompts(rng, f"def {function}({some}{last}", f"def {function}({none}{last}")
    return Draft(prompts, (("=None", "):\n"), ("=", "):\n"), ("=", "):"), ("=", ")")))


def _set_or_string_of(rng: Random, name: str) -> Draft:
    item, items = _words(rng, NAMES, 2)
    first, second = (f"{name} = {start}\nfor {item} in {items}:\n    {name}" for start in ("set()", '""'))
    return Draft(_prompts(rng, first, second), ((".add", " +="), (".update", " +="), (".", " +="), (".", " +")))


@_task("set_or_string", "`.add` vs `+=`", "whether the variable began as set() or as a string")
def _set_or_string(rng: Random) -> Draft:
    return _set_or_string_of(rng, rng.choice(NAMES))


@_task("set_or_string_fixedvarname", "`.add` vs `+=`", "the same, the variable always named current")
def _set_or_string_fixedvarname(rng: Random) -> Draft:
    return _set_or_string_of(rng, "current")


@_task("class_init", "the two parameters' names", "which attribute is being assigned")
def _class_init(rng: Random) -> Draft:
    a, b = _words(rng, NAMES, 2)
    head = f"class {rng.choice(CLASSES)}:\n    def __init__(self, {a}, {b}):\n"
    first, second = (f"{head}        self.{x} = {x}\n        self.{y} =" for x, y in ((b, a), (a, b)))
    return Draft((first, second), ((f" {a}", f" {b}"),))


@_task("with_as", "`as` vs not", "a with statement or an assignment")
def _with_as(rng: Random) -> Draft:
    name, path = rng.choice(NAMES), rng.choice(FILES)
    prompts = _prompts(rng, f"with open({path}", f"{name} = open({path}")
    return Draft(prompts, ((")", ")\n"),))  # a new line would be one token with the bracket, so "as" follows


@_task("bracket_brace", "`:` vs `,`", "inside of a dict or of a list")
def _bracket_brace(rng: Random) -> Draft:
    name, *items, last = _words(rng, NAMES, rng.randint(2, 4))
    pairs, singles = "".join(f"{item}: None, " for item in items), "".join(f"{item}, None, " for item in items)
    prompts = _prompts(rng, f"{name} = {{{pairs}{last}", f"{name} = [{singles}{last}")
    return Draft(prompts, ((":", ","),))


@_task("with_open", "`'r'` vs `'w'`", "whether the name of the file suggests reading or writing")
def _with_open(rng: Random) -> Draft:
    read, write = rng.choice(READ_FROM_WRITE_TO)
    quote, function = rng.choice("'\""), rng.choice(["open", "open", "io.open"])
    start = rng.choice(["with ", f"{rng.choice(NAMES)} = "])
    first, second = (f"{start}{function}({name}, {quote}" for name in (read, write))
    return Draft(_prompts(rng, first, second), (("r", "w"), ("rb", "wb")))


@_task("bracket_counting", "`]` vs `]]`", "lists one or two deep")
def _bracket_counting(rng: Random) -> Draft:
    name, *items = _words(rng, NAMES, rng.randint(2, 5))
    prompts = _prompts(rng, f"{name} = [{', '.join(items)}", f"{name} = [[{', '.join(items)}")
    return Draft(prompts, (("]\n", "]]\n"), ("]", "]]"), ("]\n", "],"), ("]", "],")))


@_task("for_while", "`in` vs `:`", "for or while")
def _for_while(rng: Random) -> Draft:
    name = rng.choice(NAMES)
    return Draft(_prompts(rng, f"for {name}", f"while {name}"), ((" in", ":\n"), (" in", ":")))


@_task("else_elif", "`:` vs not", "else or elif")
def _else_elif(rng: Random) -> Draft:
    a, b, c = _words(rng, NAMES, 3)
    first, second = (f"if {a}:\n    {b} = {c}\n{word}" for word in ("else", "elif"))
    return Draft(_prompts(rng, first, second), ((":\n", " not"), (":\n", " self"), (":", " not"), (":", " ")))


@_task("fstring_brace", "inserting a variable vs not", "whether the printed string is an f-string")
def _fstring_brace(rng: Random) -> Draft:
    text = " ".join(_words(rng, WORDS, rng.randint(1, 3)))
    prompts = _prompts(rng, f'print(f"{text}', f'print("{text}')
    return Draft(prompts, ((" {", '")'), (" {", '"')))


@_task("if_ternary", "`:` vs not", "an if statement or the condition of a ternary")
def _if_ternary(rng: Random) -> Draft:
    name, value, condition = _words(rng, NAMES, 3)
    prompts = _prompts(rng, f"if {condition}", f"{name} = {value} if {condition}")
    return Draft(prompts, ((":\n", " else"), (":", " else")))


@_task("var_swap", "the two variables' names", "which of them comes first")
def _var_swap(rng: Random) -> Draft:
    a, b = _words(rng, NAMES, 2)
    return Draft(_prompts(rng, f"{a}, {b} = {b},", f"{b}, {a} = {a},"), ((f" {a}", f" {b}"),))


@_task("indent_for", "one level of indentation vs two", "how far the for header is indented")
def _indent_for(rng: Random) -> Draft:
    function, argument, item, items = _words(rng, NAMES, 4)
    rest = f"for {item} in {items}:\n"
    lead = rng.choice(["", f"{function}({argument})\n"])
    return Draft((lead + rest, _indented(lead, "    ").rstrip(" ") + "    " + rest), (("   ", "       "),))


@_task("lambda_func", "`:` vs `(`", "lambda or def")
def _lambda_func(rng: Random) -> Draft:
    name = rng.choice(NAMES)
    return Draft(_prompts(rng, f"lambda {name}", f"def {name}"), ((":", "(self"), (":", "(")))


@_task("if_equals", "`==` vs `=`", "a condition or an assignment")
def _if_equals(rng: Random) -> Draft:
    name = rng.choice(NAMES)
    return Draft(_prompts(rng, f"if {name}", name), ((" ==", " ="),))


@_task("enumerate_range", "`enumerate` vs `range`", "two loop variables or one")
def _enumerate_range(rng: Random) -> Draft:
    i, name = rng.choice("ijkn"), rng.choice(NAMES)
    prompts = _prompts(rng, f"for {i}, {name} in", f"for {i} in")
    return Draft(prompts, ((" enumerate", " range"), (" zip", " range")))


@_task("var_if", "`:` and a new line vs a new line", "if x == True or x = True")
def _var_if(rng: Random) -> Draft:
    name, value = rng.choice(NAMES), rng.choice(["True", "False", "None"])
    return Draft(_prompts(rng, f"if {name} == {value}", f"{name} = {value}"), ((":\n", "\n"),))


@_task("while_return_true", "`:` vs a new line", "while True or return True")
def _while_return_true(rng: Random) -> Draft:
    value = rng.choice(["True", "False"])
    return Draft(_prompts(rng, f"while {value}", f"return {value}"), ((":\n", "\n"),))
