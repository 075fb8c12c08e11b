"""docs/tour.md leads to files and names that are there."""

import re
from pathlib import Path

import loire

ROOT = Path(loire.__file__).parent
TOUR = (ROOT.parents[1] / "docs" / "tour.md").read_text()


def test_every_file_of_the_tour_is_there() -> None:
    paths = re.findall(r"`([a-z_]+/[a-z_/]+\.(?:py|h|cpp))`", TOUR)
    assert len(paths) > 50
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_every_name_is_where_the_tour_says() -> None:
    named = re.findall(r"`([a-z_/]+\.py)`, `([A-Za-z_.]+)`", TOUR)
    named += [
        (path, name) for name, path in re.findall(r"`([A-Za-z_.]+)` of\s+`([a-z_/]+\.py)`", TOUR)
    ]
    assert len(named) > 10
    for path, name in named:
        text = (ROOT / path).read_text()
        for part in name.split("."):
            assert re.search(rf"(class|def) {part}\b", text), f"{path} has no {part}"
