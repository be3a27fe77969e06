"""Made-up Python programs of simple, repetitive idioms, as many as one likes.

Gao et al. 2025 (appendix A.6) train on such programs, sampled from language models and not released: a small model sees
each idiom often enough to learn the rule behind it. These are drawn from a grammar that knows which variables there are
and of which kind, so that names, brackets, quotes and indentation follow from what came before.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

WORDS = """
    account action address age amount animal answer author balance base batch block board body book box branch
    buffer button cache car card cell chapter check child city client code color column command config content
    copy cost count counter country current data date day depth digit direction document door edge employee end
    entry error event face factor field file flag folder friend game grade grid group guest head height hero
    house image index info input item job key kind label language left length letter level limit line link list
    location lock log machine map mark mask max message method min minute mode model module month move movie
    name node note number object offset option order origin output owner page pair parent part password path
    pattern person phone pixel place plan planet player point position power prefix price process product
    profile query queue range rank rate ratio reader record region report request result right road robot role
    room root row rule sample scale school score season second section seed sender sensor server service shape
    signal size slot song source speed square stack stage start state status step stock store string student sum
    symbol system table tag target task team temperature test text theme ticket time title token tool total
    track tree type unit user valid value vector version video view wall weather week weight width winner word
    worker year zone
""".split()  # noqa: SIM905
VERBS = """
    add build check clean close compute count create delete draw fetch filter find format get handle join load
    make merge move open parse print process read remove reset run save search send set show sort split start
    stop store update validate write
""".split()  # noqa: SIM905
PHRASES = (
    "not found",
    "is missing",
    "is empty",
    "done",
    "hello",
    "invalid",
    "ready",
    "started",
    "finished",
    "failed",
    "is too large",
    "loaded",
    "saved",
    "unknown",
    "ok",
    "total",
    "result",
    "please wait",
    "try again",
    "no data",
)
READ_NAMES = ("input_file", "source_file", "config_path", "input_path", "data_file", "source", "filename", "infile")
WRITE_NAMES = (
    "output_file",
    "target_file",
    "report_path",
    "output_path",
    "log_file",
    "target",
    "result_file",
    "outfile",
)
KINDS = ("number", "string", "list", "dict", "set", "flag")
INDENT = "    "


def simple_programs(count: int, seed: int = 0) -> list[str]:
    """``count`` programs of some ten to a hundred lines; the same for the same arguments, on every machine."""
    return [_Program(Random(f"simple python {seed} {number}")).text() for number in range(count)]


class _Program:
    """Writes one program; ``scope`` holds the variables that can be used here, and their kinds."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.lines: list[str] = []
        self.depth = 0
        self.scope: dict[str, str] = {}

    def text(self) -> str:
        for _ in range(self.rng.randint(2, 6)):
            self.rng.choice([self.function, self.function, self.klass, self.script])()
            self.lines.append("")
        return "\n".join(self.lines)

    # ---- layout

    def line(self, text: str) -> None:
        self.lines.append(INDENT * self.depth + text)

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """Lines below a header; names that are made there are forgotten after it."""
        self.line(header)
        known = dict(self.scope)
        self.depth += 1
        yield
        self.depth -= 1
        self.scope = known

    # ---- words

    def word(self) -> str:
        return self.rng.choice(WORDS)

    def fresh(self, kind: str) -> str:
        """A new variable."""
        name = self.word()
        while name in self.scope:
            name = self.word()
        if kind == "list" and self.rng.random() < 0.5:
            name += "s"
        self.scope[name] = kind
        return name

    def known(self, *kinds: str) -> str | None:
        """A variable of one of these kinds (of any, if none are named)."""
        names = [name for name, kind in self.scope.items() if not kinds or kind in kinds]
        return self.rng.choice(names) if names else None

    def some(self, *kinds: str) -> str:
        """A variable of one of these kinds, or else a value of the first."""
        return self.known(*kinds) or self.value(kinds[0] if kinds else "number")

    def quoted(self, text: str) -> str:
        quote = self.rng.choice("'\"")
        return f"{quote}{text}{quote}"

    def phrase(self) -> str:
        start = [self.word()] if self.rng.random() < 0.7 else []
        return " ".join([*start, self.rng.choice(PHRASES)])

    # ---- expressions

    def value(self, kind: str) -> str:
        rng = self.rng
        if kind == "number":
            return str(rng.choice([0, 0, 1, 1, 2, 3, 5, 8, 10, 12, 20, 50, 100]))
        if kind == "string":
            return self.quoted(rng.choice([self.word(), self.word(), self.phrase(), ""]))
        if kind == "flag":
            return rng.choice(["True", "False"])
        if kind == "set":
            return "set()"
        if kind == "dict":
            items = [f"{self.quoted(self.word())}: {self.atom()}" for _ in range(rng.randint(0, 3))]
            if rng.random() < 0.4:
                items = [f"{self.atom()}: {self.atom()}" for _ in items]
            return "{" + ", ".join(items) + "}"
        return self.list_of(rng.randint(0, 4), rng.random() < 0.35)

    def list_of(self, length: int, is_nested: bool) -> str:
        if is_nested and length:
            return "[" + ", ".join(self.list_of(self.rng.randint(1, 3), False) for _ in range(length)) + "]"
        atom = self.rng.choice([self.atom, lambda: self.value("number"), self.word_string])
        return "[" + ", ".join(atom() for _ in range(length)) + "]"

    def word_string(self) -> str:
        return self.quoted(self.word())

    def atom(self) -> str:
        """A name if there is one, or else something short."""
        return (self.rng.random() < 0.7 and self.known()) or self.value(self.rng.choice(["number", "string", "flag"]))

    def expression(self, kind: str) -> str:
        rng, known = self.rng, self.known
        if kind == "number":
            a, b = self.some("number"), self.some("number")
            options = [f"{a} {rng.choice('+-*')} {b}", self.value(kind)]
            options += [f"len({thing})" for thing in [known("list", "set", "dict", "string")] if thing]
            return rng.choice(options)
        if kind == "string":
            options = [self.value(kind), self.f_string(), f"str({self.some('number')})"]
            options += [f"{thing}.{rng.choice(['strip', 'lower', 'upper'])}()" for thing in [known("string")] if thing]
            return rng.choice(options)
        if kind == "list":
            options = [self.value(kind)]
            options += [f"sorted({thing})" for thing in [known("list", "set")] if thing]
            options += [f"{thing}.split({self.quoted(rng.choice(',;: '))})" for thing in [known("string")] if thing]
            options += [f"list({thing}.keys())" for thing in [known("dict")] if thing]
            items = known("list", "set")
            if items:
                x = rng.choice("xab")
                options.append(f"sorted({items}, key=lambda {x}: {x}[{rng.choice([0, 1])}])")
                options.append(f"[{x} for {x} in {items} if {x} != {self.atom()}]")
            return rng.choice(options)
        if kind == "flag":
            return rng.choice([self.value(kind), self.condition()])
        return self.value(kind)

    def f_string(self) -> str:
        text, name = self.rng.choice([self.word(), self.rng.choice(PHRASES)]), self.known() or "name"
        return "f" + self.quoted(self.rng.choice([f"{text} {{{name}}}", f"{text}: {{{name}}}", f"{{{name}}} {text}"]))

    def condition(self) -> str:
        rng = self.rng
        options = [f"not {self.known()}" if self.known() else "True"]
        number, string, flag = self.known("number"), self.known("string"), self.known("flag")
        many, anything = self.known("list", "set", "dict"), self.known()
        if number:
            options += [f"{number} {rng.choice(['==', '>', '<', '>=', '!='])} {self.some('number')}", number]
        if string:
            options += [f"{string} == {self.value('string')}", f"{string}.startswith({self.word_string()})"]
        if flag:
            options += [flag, f"{flag} == {rng.choice(['True', 'False'])}"]
        if many:
            options += [f"{self.atom()} in {many}", f"{self.atom()} not in {many}", many]
        if anything:
            options += [f"{anything} is None", f"{anything} == {rng.choice(['None', 'True', 'False', self.atom()])}"]
        return rng.choice(options)

    # ---- statements

    def statements(self, count: int) -> None:
        for _ in range(count):
            plain: list[Callable[[], None]] = [self.assign, self.assign, self.say, self.call, self.augment, self.swap]
            plain += [self.ternary, self.small_function]
            nested = [self.gather, self.loop, self.loop, self.branch, self.branch, self.use_file, self.repeat]
            self.rng.choice(plain + (nested if self.depth < 4 else []))()

    def assign(self) -> None:
        kind = self.rng.choice(KINDS)
        value = self.expression(kind)
        self.line(f"{self.fresh(kind)} = {value}")

    def say(self) -> None:
        options = [self.quoted(self.phrase()), self.f_string(), self.f_string()]
        options += [f"{self.quoted(self.word())}, {name}" for name in [self.known()] if name]
        self.line(f"print({self.rng.choice(options)})")

    def call(self) -> None:
        arguments = ", ".join(self.atom() for _ in range(self.rng.randint(0, 2)))
        self.line(f"{self.rng.choice(VERBS)}_{self.word()}({arguments})")

    def augment(self) -> None:
        kind = self.rng.choice(["number", "string", "list", "set"])
        name = self.known(kind)
        if name is None:
            return self.assign()
        by = {"number": "{} += {}", "string": "{} += {}", "list": "{}.append({})", "set": "{}.add({})"}[kind]
        self.line(by.format(name, self.some(kind) if kind in ("number", "string") else self.atom()))

    def swap(self) -> None:
        kind = self.rng.choice(["number", "string"])
        while len([name for name, other in self.scope.items() if other == kind]) < 2:
            value = self.value(kind)
            self.line(f"{self.fresh(kind)} = {value}")
        a, b = self.rng.sample([name for name, other in self.scope.items() if other == kind], 2)
        self.line(f"{a}, {b} = {b}, {a}")

    def ternary(self) -> None:
        kind = self.rng.choice(["number", "string"])
        text = f"{self.some(kind)} if {self.condition()} else {self.value(kind)}"
        self.line(f"{self.fresh(kind)} = {text}")

    def small_function(self) -> None:
        x = self.rng.choice(["x", "a", self.word()])
        body = self.rng.choice([f"{x} + {self.value('number')}", f"{x} * 2", f"{x}[0]", f"len({x})", f"not {x}"])
        self.line(f"{self.rng.choice(VERBS)} = lambda {x}: {body}")

    def gather(self) -> None:
        """Start with something empty, and fill it in a loop."""
        kind = self.rng.choice(["set", "string", "list", "dict", "number"])
        items = self.known("list", "set") or self.fresh("list")
        if self.rng.random() < 0.2 and "current" not in self.scope:
            name = "current"
            self.scope[name] = kind
        else:
            name = self.fresh(kind)
        empty = {"set": "set()", "string": self.rng.choice(['""', "''"]), "list": "[]", "dict": "{}", "number": "0"}
        self.line(f"{name} = {empty[kind]}")
        if self.rng.random() < 0.3:
            self.statements(1)
        item = self.word()
        with self.block(f"for {item} in {items}:"):
            self.scope[item] = "string"
            fill = {
                "set": f"{name}.add({item})",
                "string": f"{name} += {item}",
                "list": f"{name}.append({item})",
                "dict": f"{name}[{item}] = {self.value('number')}",
                "number": f"{name} += {item}",
            }
            if self.rng.random() < 0.3:
                with self.block(f"if {self.condition()}:"):
                    self.line(fill[kind])
            else:
                self.line(fill[kind])

    def loop(self) -> None:
        rng = self.rng
        item, i = self.word(), rng.choice(["i", "j", "n", "index"])
        items, table = self.known("list", "set"), self.known("dict")
        size = rng.choice([self.some("number"), f"len({items})" if items else "10"])
        headers = [(f"for {i} in range({size}):", {i: "number"})]
        if items:
            headers.append((f"for {item} in {items}:", {item: "string"}))
            headers.append((f"for {i}, {item} in enumerate({items}):", {i: "number", item: "string"}))
        if table:
            headers.append((f"for {item}, value in {table}.items():", {item: "string", "value": "number"}))
        header, made = rng.choice(headers)
        with self.block(header):
            self.scope |= made
            self.statements(rng.randint(1, 2))

    def repeat(self) -> None:
        rng = self.rng
        with self.block(f"while {rng.choice(['True', 'True', self.condition()])}:"):
            self.statements(rng.randint(1, 2))
            if rng.random() < 0.5:
                with self.block(f"if {self.condition()}:"):
                    self.line(rng.choice(["break", "break", "return True", "return False"]))

    def branch(self) -> None:
        rng = self.rng
        with self.block(f"if {self.condition()}:"):
            self.statements(1)
        for _ in range(rng.choice([0, 0, 1, 2])):
            with self.block(f"elif {self.condition()}:"):
                self.statements(1)
        if rng.random() < 0.5:
            with self.block("else:"):
                self.statements(1)

    def use_file(self) -> None:
        rng = self.rng
        reads = rng.random() < 0.5
        name = rng.choice(READ_NAMES if reads else WRITE_NAMES)
        mode = self.quoted("r" if reads else "w")
        arguments = rng.choice([f"{name}, {mode}", f"{name}, {mode}", name]) if reads else f"{name}, {mode}"
        handle = rng.choice(["f", "file", "handle"])
        if rng.random() < 0.25:
            self.line(f"{handle} = open({arguments})")
            self.line(f"{handle}.close()")
            return
        with self.block(f"with open({arguments}) as {handle}:"):
            if reads:
                made = rng.choice(["data", "text", "content", "lines"])
                self.line(f"{made} = {handle}.{'readlines' if made == 'lines' else 'read'}()")
            else:
                self.line(f"{handle}.write({self.some('string')})")

    def leave(self) -> None:
        """A last statement of a function."""
        name = self.known()
        self.line(
            self.rng.choice([f"return {name or 'None'}", f"return {name or 'True'}", "return True", "return False"])
        )

    # ---- definitions

    def parameters(self, count: int) -> list[str]:
        """Once one has a default, the later ones have too."""
        first_default = self.rng.choice([count, count, *range(count)]) if count else 0
        names = [self.fresh(self.rng.choice(KINDS)) for _ in range(count)]
        default = self.rng.choice(["None", "None", "0", "True", "''"])
        return [name if n < first_default else f"{name}={default}" for n, name in enumerate(names)]

    def function(self, *before: str) -> None:
        self.scope = {}
        name = f"{self.rng.choice(VERBS)}_{self.word()}" if self.rng.random() < 0.8 else self.word()
        parameters = ", ".join([*before, *self.parameters(self.rng.randint(0, 4))])
        with self.block(f"def {name}({parameters}):"):
            if self.rng.random() < 0.2:
                self.line(f'"""{self.phrase().capitalize()}."""')
            self.statements(self.rng.randint(1, 5))
            self.leave()
        self.scope = {}

    def klass(self) -> None:
        with self.block(f"class {self.word().capitalize()}{self.rng.choice(['', '', self.word().capitalize()])}:"):
            self.scope = {}
            parameters = self.parameters(self.rng.randint(1, 4))
            names = list(self.scope)
            with self.block(f"def __init__({', '.join(['self', *parameters])}):"):
                if self.rng.random() < 0.3:
                    self.rng.shuffle(names)
                for name in names:
                    self.line(f"self.{name} = {name}")
                for _ in range(self.rng.randint(0, 2)):
                    self.line(f"self.{self.word()} = {self.value(self.rng.choice(KINDS))}")
            for _ in range(self.rng.randint(0, 2)):
                self.lines.append("")
                self.method(names)
        self.scope = {}

    def method(self, attributes: list[str]) -> None:
        self.scope = {}
        with self.block(f"def {self.rng.choice(VERBS)}_{self.word()}(self):"):
            own = self.rng.choice(attributes)
            self.statements(self.rng.randint(0, 2))
            self.line(
                self.rng.choice([f"return self.{own}", f"print(self.{own})", f"self.{own} = {self.value('number')}"])
            )

    def script(self) -> None:
        self.scope = {}
        self.statements(self.rng.randint(2, 6))
