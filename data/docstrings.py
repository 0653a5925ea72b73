"""The embedded corpus and task: docstrings of what is installed with Foreword.

Of the standard library and of the dependencies that Foreword has, directly or not;
their prose alone. Both files are made once for an environment, kept in the cache, and
beside them the names and versions of the packages they were made of.
"""

import ast
import collections
import contextlib
import functools
import gc
import hashlib
import importlib.metadata
import json
import platform
import re
import sys
import sysconfig
import tomllib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from data import cache
from errors import UserError

# Part of the cache's name: to be raised whenever the filter below changes.
PROSE_VERSION = 1

PROMPT_OR_TABLE = re.compile(r"^\s*(>>>|\.\.\.( |$)|In \[|\$ |\.\. |[|+]|@|#)")
RULE = re.compile(r"^\s*([-=~^*#_`'\"+.:])\1{2,}[-=~^*#_`+ ]*$")
ITEM = re.compile(
    r"""^\s*(?:
        [-*•+]\s+                                  # bullet
      | \(?\d{1,2}[.)]\s+                          # numbered
      | :\w+[^:]*:\s*                              # :param x:
      | \*{0,2}[\w.`]+(?:\s\([^)]*\)|\s?\[[^]]*\])?:(?=\s)\s*   # name (type): ...
    )""",
    re.VERBOSE,
)
MARKUP: tuple[tuple[re.Pattern, str], ...] = (
    (re.compile(r":[\w:]+:`~?([^`<]+?)(?:\s*<[^>]*>)?`"), r"\1"),  # :class:`x`
    (re.compile(r"`([^`<]+?)\s*<[^>]*>`_{0,2}"), r"\1"),  # `text <link>`_
    (re.compile(r"\[([^]]+)\]\([^)]*\)"), r"\1"),  # [text](link)
    (re.compile(r"``(.+?)``|`([^`]+)`_{0,2}"), r"\1\2"),  # ``code``, `name`_
    (re.compile(r"\*\*(.+?)\*\*"), r"\1"),  # strong
    (re.compile(r"(?<!\w)\*([^*\s][^*]*)\*(?!\w)"), r"\1"),  # emphasis
    (re.compile(r"\s*\[[\d, ]+\]_"), ""),  # footnote
    (re.compile(r"\s+"), " "),
)
WORD = re.compile(r"^[\"'(\[]*[A-Za-z]+(?:['’-][A-Za-z]+)*[\"')\].,;:!?]*$")
FUNCTION_WORDS = re.compile(
    "a|an|the|of|to|in|is|are|be|was|for|on|by|with|as|at|from|that|this|it|its|if|or|and"
    "|not|when|which|will|can|may|must|into|than|but|has|have|no|you|we|they|used|does|do"
    "|all|any|each|only|should|use"
)


def prose(text: str) -> str:
    """The English prose of a docstring: a paragraph a line, the rest left out.

    Code, prompts, tables, headings and bare lists of names go; labels of parameters and
    light markup go, their descriptions stay. A paragraph stays when it has at least
    five words, when seven in ten of its tokens are plain words and one in eight is a
    function word, and when it ends in a full stop or the like (a colon before code
    counts).
    """
    paragraphs = (_without_markup(item) for item in _items(text))
    return "\n".join(filter(_is_prose, paragraphs))


def _items(text: str) -> Iterator[str]:
    """Paragraphs and list items, each with its lines joined; code blocks left out."""
    for block in re.split(r"\n\s*\n", text.expandtabs()):
        lines: list[str] = []
        hanging = False  # the item began with a label, its next lines are indented
        indent = 0
        for line in block.splitlines():
            if RULE.match(line):  # the line above it was a heading
                lines = []
                continue
            if PROMPT_OR_TABLE.match(line):
                lines = []
                break  # what follows in this block is its output
            here = len(line) - len(line.lstrip())
            label = ITEM.match(line)
            if label or here < indent or (here > indent and not hanging):
                if lines:
                    yield " ".join(lines)
                lines = []
                hanging = bool(label)
            elif here > indent:
                hanging = False
            indent = here
            lines.append(line[label.end() :] if label else line.strip())
        if lines:
            yield " ".join(lines)


def _without_markup(paragraph: str) -> str:
    for pattern, replacement in MARKUP:
        paragraph = pattern.sub(replacement, paragraph)
    return paragraph.strip()


def _is_prose(paragraph: str) -> bool:
    tokens = paragraph.split()
    if len(tokens) < 5 or not re.search(r"[.!?:;][\"')\]]*$", paragraph):
        return False
    words = [token for token in tokens if WORD.match(token)]
    functions = sum(
        bool(FUNCTION_WORDS.fullmatch(word.strip("\"'()[].,;:!?").lower()))
        for word in words
    )
    return len(words) >= 0.7 * len(tokens) and functions * 8 >= len(tokens)


@functools.cache
def pydoc_topics() -> list[str]:
    """The prose of the topics of `pydoc`, in the order of their names."""
    from pydoc_data.topics import topics  # half a megabyte of text

    return list(filter(None, (prose(topics[name]) for name in sorted(topics))))


def docstrings(path: Path) -> list[str]:
    """The prose of every docstring of a Python file, in source order."""
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # templates and code for another Python
        return []
    return [prose(docstring) for docstring in _docstrings_below(tree)]


def _docstrings_below(node: ast.AST) -> Iterator[str]:
    if isinstance(
        node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    ):
        yield ast.get_docstring(node) or ""
    # Only bodies (also of if, with, try): expressions hold no definitions.
    for child in getattr(node, "body", []):
        if isinstance(getattr(child, "body", None), list):
            yield from _docstrings_below(child)


def _is_test(path: Path) -> bool:
    return not {"test", "tests", "idle_test"}.isdisjoint(path.parts) or bool(
        re.search(r"^(test_.*|.*_test|conftest)\.py$", path.name)
    )


def standard_library() -> list[Path]:
    """Its Python files in the order of their paths, tests left out."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "__pycache__"}
    relative = (path.relative_to(root) for path in root.rglob("*.py"))
    return [
        root / path
        for path in sorted(relative)
        if left_out.isdisjoint(path.parts) and not _is_test(path)
    ]


def installed_dependencies() -> dict[str, importlib.metadata.Distribution]:
    """The installed distributions that Foreword needs, directly or not, by name.

    Whatever else is installed stays out: the corpus is to be the same on every machine
    with the same versions, and to be ready soon where hundreds of packages are.
    """
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    waiting = list(tomllib.loads(pyproject.read_text())["project"]["dependencies"])
    found: dict[str, importlib.metadata.Distribution] = {}
    while waiting:
        requirement = waiting.pop()
        stem = re.match(r"[\w.-]+", requirement)
        assert stem, requirement
        name = re.sub(r"[-_.]+", "-", stem[0]).lower()
        if name in found or re.search(r"\bextra\s*==", requirement):
            continue
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.distribution(name)
            waiting += found[name].requires or []
    return dict(sorted(found.items()))


def distribution_files(distribution: importlib.metadata.Distribution) -> list[Path]:
    """Its Python files in the order of their paths, tests left out."""
    files = (Path(file) for file in distribution.files or [])
    return [
        path
        for file in sorted(files)
        if file.suffix == ".py" and ".." not in file.parts and not _is_test(file)
        if (path := Path(str(distribution.locate_file(str(file))))).is_file()
    ]


def environment_digest() -> str:
    """Changes with Python, the installed dependencies and the filter to prose."""
    versions = [
        f"{name}=={found.version}" for name, found in installed_dependencies().items()
    ]
    environment = [f"prose {PROSE_VERSION}", f"python {sys.version}", *versions]
    return hashlib.blake2b("\n".join(environment).encode(), digest_size=8).hexdigest()


def packages() -> dict[str, str]:
    """What `corpus_file` is made of here, and in which versions."""
    found = installed_dependencies().items()
    return {"python": platform.python_version()} | {n: f.version for n, f in found}


def corpus_file() -> Path:
    """The cached text of `python_docs`, built (20 s) if this environment has none yet.

    A document is a module: the prose of its docstrings, a paragraph a line. A paragraph
    that came before anywhere is dropped, so no boilerplate is learnt by heart and the
    held-out documents share none with the others. Ordered by distribution and path.
    """
    import tqdm  # the other sources need none

    path = cache.cache_folder() / f"python_docs-{environment_digest()}.txt"
    if path.is_file():
        return path
    files = standard_library()
    for distribution in installed_dependencies().values():
        files += distribution_files(distribution)
    seen: set[str] = set()
    with _no_garbage_collection():
        progress = tqdm.tqdm(
            files, "collecting docstrings, once", unit=" files", disable=None
        )
        documents = [_unseen(docstrings(file), seen) for file in progress]
    documents += [_unseen([topic], seen) for topic in pydoc_topics()]
    documents = list(filter(None, documents))
    text = "\n\n".join(documents) + "\n"
    _write(path, text)
    made_of = ", ".join(f"{name} {version}" for name, version in packages().items())
    print(
        f"Wrote {len(documents):,} documents, {len(text) / 1e6:.1f} MB: {path}, of the "
        f"docstrings of {made_of}"
    )
    return path


def _write(path: Path, text: str) -> None:
    versions = json.dumps(packages(), indent=1) + "\n"
    cache.write_whole(path.with_suffix(".packages.json"), versions.encode())
    cache.write_whole(path, text.encode())


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Syntax trees hold no cycles, and looking for some takes most of the parsing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _unseen(texts: Iterable[str], seen: set[str]) -> str:
    """The paragraphs of the texts that are not in `seen`, which gains them."""
    kept = []
    for paragraph in "\n".join(texts).splitlines():
        if paragraph and paragraph not in seen:
            seen.add(paragraph)
            kept.append(paragraph)
    return "\n".join(kept)


# The task

# Part of the cache's name: to be raised whenever what follows changes.
TASK_VERSION = 1
LIBRARIES = (
    *("flax", "fonttools", "jax", "matplotlib", "numpy", "optax", "orbax-checkpoint"),
    *("pillow", "python", "scikit-learn", "scipy", "tensorflow-datasets"),
)
# Of the libraries, and how they are imported; the last ones count as words only.
NAMES = re.compile(
    r"font[ -]?tools|flax|jax|matplotlib|numpy|optax|orbax|pillow|python|scikit-learn"
    r"|sklearn|scipy|tensorflow(?:[ _-]datasets)?"
    r"|(?<![a-z])(?:jnp|mpl|np|pil|plt|tfds)(?![a-z])",
    re.IGNORECASE,
)
PER_LIBRARY, CANDIDATES = 250, 400
MIN_WORDS = 10


def task_file() -> Path:
    """The cached file of the task, made (10 s) if this environment has none yet.

    An object a line: text, label (the library), file.

    A text is the first two paragraphs of a docstring's prose, with the name of every
    library masked by the word "library": its own would tell the label, and another's
    would tell what it is not. A docstring with a paragraph that stands in another one
    as well, but for digits and punctuation, is left out: no text is on both sides of a
    split, nor in two libraries.
    """
    digest = f"{TASK_VERSION}-{environment_digest()}"
    path = cache.cache_folder() / f"python_docs_task-{digest}.jsonl"
    if path.is_file():
        return path
    print("collecting docstrings, once")
    with _no_garbage_collection():
        found = {
            library: list(_candidates(root, files))
            for library, (root, files) in sorted(_library_files().items())
        }
    counts = collections.Counter(
        _letters(paragraph)
        for candidates in found.values()
        for _, paragraphs in candidates
        for paragraph in paragraphs
    )
    lines = []
    for library, candidates in found.items():
        alone = [
            {"text": " ".join(paragraphs), "label": library, "file": file}
            for file, paragraphs in candidates
            if all(counts[_letters(paragraph)] == 1 for paragraph in paragraphs)
        ]
        lines += [json.dumps(fields) + "\n" for fields in alone[:PER_LIBRARY]]
    _write(path, "".join(lines))
    print(f"Wrote {len(lines):,} labelled docstrings: {path}")
    return path


def _library_files() -> dict[str, tuple[Path, list[Path]]]:
    """Library -> its folder and its Python files."""
    dependencies = installed_dependencies()
    files = {"python": (Path(sysconfig.get_path("stdlib")), standard_library())}
    for library in LIBRARIES:
        if library in dependencies:
            root = Path(str(dependencies[library].locate_file("")))
            files[library] = root, distribution_files(dependencies[library])
    missing = {*LIBRARIES} - {*files}
    if missing:
        raise UserError(
            f"python_docs is made from libraries of which {', '.join(sorted(missing))} "
            "is not installed: install Foreword's dependencies, as the README says"
        )
    return files


def _candidates(root: Path, files: list[Path]) -> Iterator[tuple[str, list[str]]]:
    """(file, paragraphs) of some docstrings; from files drawn by a hash of their path.

    So few files need parsing, and they are not those of one corner of the library.
    """
    named = {path.relative_to(root).as_posix(): path for path in files}
    count = 0
    for name in sorted(named, key=lambda n: hashlib.blake2b(n.encode()).digest()):
        for docstring in docstrings(named[name]):
            paragraphs = NAMES.sub("library", docstring).splitlines()[:2]
            if len(" ".join(paragraphs).split()) >= MIN_WORDS:
                count += 1
                yield name, paragraphs
        if count >= CANDIDATES:
            return


def _letters(paragraph: str) -> str:
    return re.sub(r"[\W\d_]+", " ", paragraph).casefold()
