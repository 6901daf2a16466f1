"""The README keeps its promises: its commands, options, paths, links and pictures exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from delta_pipelines.cli import app

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SHELLS = ("sh", "bash", "console", "shell")

FENCE = re.compile(r"^(?P<fence>`{3,}|~{3,})[ ]*(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=fence)[ ]*$", re.M | re.S)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(
    r"!?\[[^\]]*\]\(<?([^)\s>]+)>?[^)]*\)|<(?:img|source)[^>]*\bsrc(?:set)?=[\"']([^\"' ]+)|<a [^>]*href=[\"']([^\"']+)"
)
ASSIGNMENT = re.compile(r"^[A-Za-z_]\w*=")
TREE_LINE = re.compile(r"^(?P<indent>[ │├└─]*)(?P<path>[\w.][\w./-]*)(?:\s{2,}(?P<about>.*)|\s*)$")
PATH_WORD = re.compile(r"^[\w.*-]+(?:/[\w.*-]+)*/$|^[\w*-]+(?:/[\w.*-]+)*\.(?:md|toml|json|zarr|py)$")


@pytest.fixture(scope="module")
def readme() -> str:
    assert README.is_file(), "there is no README.md at the top of the repository"
    return README.read_text(encoding="utf-8")


def blocks(text: str, *languages: str) -> list[str]:
    return [match["body"] for match in FENCE.finditer(text) if match["language"] in languages]


def commands(block: str) -> Iterator[list[str]]:
    """Yield the commands of a shell block as words, without prompts, comments, assignments and output."""
    prompted = any(line.startswith("$ ") for line in block.splitlines())
    for line in block.replace("\\\n", " ").splitlines():
        if prompted and not line.startswith("$ "):
            continue
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("();<>|&"):
                yield from [words] if words else []
                words = []
            elif words or not ASSIGNMENT.match(word):
                words.append(word)


def complaint_about(words: list[str], whole: bool = True) -> str:
    """What is wrong with a command: "" where nothing is; a part of one may lack arguments."""
    name, *arguments = words
    if name == "make":
        wanted = [word for word in arguments if not word.startswith("-") and "=" not in word]
        missing = sorted(set(wanted) - make_targets())
        return f"the Makefile has no {', '.join(missing)}" if missing else ""
    return _parse(typer.main.get_command(app), arguments, whole)


def _parse(command: Any, arguments: list[str], whole: bool) -> str:
    subcommands = getattr(command, "commands", {})
    if subcommands:
        if not arguments or arguments[0].startswith("-"):
            known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            return "" if set(arguments) <= known else f"no options {arguments}"
        if arguments[0] not in subcommands:
            return f"there is no command {arguments[0]}"
        return _parse(subcommands[arguments[0]], arguments[1:], whole)
    try:
        command.make_context(command.name, list(arguments), resilient_parsing=not whole)
    except Exception as error:  # click's own classes move between its versions
        return str(getattr(error, "message", error)) or type(error).__name__
    return ""


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def ours(words: list[str]) -> bool:
    return words[0] in ("delta", "make")


def test_every_command_in_the_readme_can_be_called(readme):
    found = [words for block in blocks(readme, *SHELLS) for words in commands(block) if ours(words)]
    assert {"make demo", "make test"} <= {" ".join(words) for words in found}
    assert len([words for words in found if words[0] == "delta"]) >= 4
    wrong = {" ".join(words): reason for words in found if (reason := complaint_about(words))}
    assert wrong == {}


def test_every_command_named_in_the_text_exists(readme):
    spans = [shlex.split(span) for span in SPAN.findall(FENCE.sub("", readme))]
    named = [[word for word in words if not ASSIGNMENT.match(word)] for words in spans]
    wrong = {
        " ".join(words): reason
        for words in named
        if words and ours(words) and (reason := complaint_about(words, whole=False))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("delta cache build photos store.zarr", ""),
        ("DELTA_TEACHER=/somewhere delta demo  # with a comment", ""),
        ("delta train store.zarr run --set epochs=3 --set loss.gradient=2", ""),
        ("make demo", ""),
        ("make PYTHON=python3.12 test-slow", ""),
        ("delta trane store run", "there is no command trane"),
        ("delta cache bild photos store", "there is no command bild"),
        ("delta train store", "Missing"),
        ("delta train store run --epochs 3", "--epochs"),
        ("delta predict model.onnx photo.jpg out", "Missing|unexpected"),
        ("make dmeo", "the Makefile has no dmeo"),
    ],
)
def test_a_command_that_cannot_be_called_would_be_found(line, reason):
    (words,) = [words for words in commands(line) if ours(words)]
    complaint = complaint_about(words)
    assert re.search(reason, complaint, re.I) if reason else complaint == ""


def test_commands_are_found_among_prompts_output_pipes_and_continued_lines():
    block = "$ delta cache info \\\n    store.zarr --json | head\ntotal: 3\n$ pip install . && delta demo; make test\n"
    assert [words for words in commands(block) if ours(words)] == [
        ["delta", "cache", "info", "store.zarr", "--json"],
        ["delta", "demo"],
        ["make", "test"],
    ]


def tree(text: str) -> Iterator[tuple[Path, str]]:
    """Yield the paths that the README draws as a tree, with what it says about each."""
    for block in blocks(text, "", "text"):
        lines = [TREE_LINE.match(line) for line in block.splitlines() if line.strip()]
        if not all(lines) or not any(line and line["path"].endswith("/") for line in lines):
            continue
        parents: list[tuple[int, Path]] = []
        for line in filter(None, lines):
            depth = len(line["indent"])
            parents = [parent for parent in parents if parent[0] < depth]
            path = (parents[-1][1] if parents else ROOT) / line["path"]
            parents.append((depth, path))
            yield path, line["about"] or ""


def test_the_tree_in_the_readme_names_what_exists(readme):
    drawn = list(tree(readme))
    assert len(drawn) >= 6
    assert {path.name for path, _ in drawn} >= {"delta", "cache", "pipelines", "tests"}
    assert [str(path.relative_to(ROOT)) for path, _ in drawn if not path.exists()] == []


def test_what_the_tree_says_is_inside_is_inside(readme):
    """A folder or file named beside an entry is in it, however deep."""
    missing = [
        f"{path.relative_to(ROOT)}: {word}"
        for path, about in tree(readme)
        for word in (word.strip(",;:()") for word in about.split())
        if PATH_WORD.match(word) and not any(path.rglob(word.rstrip("/")))
    ]
    assert missing == []


def markdown_files() -> list[Path]:
    top = [README, *ROOT.glob("*.md")]
    below = [path for room in ("delta", "cache", "pipelines", "app", "docs") for path in (ROOT / room).rglob("*.md")]
    return sorted(set(top + below))


@pytest.mark.parametrize("path", markdown_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_and_pictures_lead_somewhere(path):
    assert path.is_file(), f"there is no {path.name} at the top of the repository"
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    targets = [next(filter(None, groups)) for groups in LINK.findall(text)]
    relative = [target for target in targets if not re.match(r"[a-z][a-z+.-]*:|#", target)]
    broken = [target for target in relative if not (path.parent / target.split("#")[0]).exists()]
    assert broken == []


def test_the_readme_shows_a_picture(readme):
    pictures = [target for target in re.findall(r"!\[[^\]]*\]\(([^)\s]+)", readme) if not target.startswith("http")]
    assert pictures
    assert all((ROOT / picture).stat().st_size > 1000 for picture in pictures)
