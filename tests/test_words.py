"""The words of the product, as far as a program can check them: how docstrings open, and words to avoid."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROLES = ("edge_agent", "trainer", "converter", "collector")

OPENINGS = re.compile(r"\s*(What|Whether|Who|Whom|Whose|How|Where|When|Why|Which|Those)\b")
"""A docstring that opens with one of these is a clause, where a reader expects a noun or a verb."""

AVOIDED = re.compile(r"\b(told|lest|by lot|heirs|held back|wrongly asked|ever more)\b", re.IGNORECASE)
"""Words that cost an operator a second reading: the field says reported, at random, suppressed, usage error."""


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Yield each docstring, those of attributes too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


def texts(tree: ast.Module) -> Iterator[str]:
    """Yield each text: log lines, errors, help and docstrings alike, also the parts of one with values in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def faults(source: str) -> list[str]:
    """Return the first line of each docstring that opens as a clause, then each text with a word to avoid."""
    tree = ast.parse(source)
    return [text.partition("\n")[0] for text in docstrings(tree) if OPENINGS.match(text)] + [
        text for text in texts(tree) if AVOIDED.search(text)
    ]


def test_the_product_has_no_docstring_that_opens_as_a_clause_and_no_word_to_avoid():
    paths = [path for role in ROLES for path in sorted((ROOT / role).rglob("*.py"))]
    assert len(paths) > 100
    wrong = {str(path.relative_to(ROOT)): lines for path in paths if (lines := faults(path.read_text("utf-8")))}
    assert wrong == {}


def test_each_kind_of_fault_is_found():
    source = '''
"""How a thing is done."""
logger.error("nobody was told: %s", 1)
raise ValueError(f"{1} held back")
text = "drawn by lot"
LIMIT = 3
"""Where it ends."""
'''
    assert sorted(faults(source)) == [
        " held back",
        "How a thing is done.",
        "Where it ends.",
        "drawn by lot",
        "nobody was told: %s",
    ]
