"""The page: one file, safe from what people write into their records, the same for the same records."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from samestep.errors import UsageError
from samestep.report import page
from tests.report import made

EVIL = '<script>alert("x")</script>'
EVIL_NAME = "a <script>alert(1)<script> & 'b' \"c\""


class Seen(HTMLParser):
    """Elements, attributes and the text of scripts, as a browser would find them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.scripts: list[str] = []
        self._is_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self._is_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._is_script = False

    def handle_data(self, data: str) -> None:
        if self._is_script:
            self.scripts.append(data)


def parse(html: str) -> Seen:
    seen = Seen()
    seen.feed(html)
    return seen


def evil(folder: Path) -> Path:
    """Records in which every name tries to be a script."""
    run = made.run(
        workload=EVIL,
        end=EVIL,
        notices=[EVIL],
        config=made.config(optimizer=EVIL, **{EVIL: EVIL}),
        environment=made.environment(processor=EVIL, **{EVIL: EVIL}),
    )
    for evaluation in run["evaluations"]:
        evaluation["means"][EVIL] = 1.0
    study = made.study(study={"workload": EVIL, "axes": ["strong"]}, config=made.config(optimizer="</style>"))
    made.write_run(folder / EVIL_NAME, run)
    made.write_study(folder / "control\x01character", study)
    return folder


def test_written_beside_the_records(tmp_path: Path) -> None:
    path = page.write(made.fill(tmp_path))
    assert path == tmp_path / "report.html"
    assert path.read_text().startswith("<!DOCTYPE html>")


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    first = page.write(made.fill(tmp_path)).read_bytes()
    assert page.write(tmp_path).read_bytes() == first


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    html = page.write(made.fill(tmp_path)).read_text()
    seen = parse(html)
    assert not {"link", "img", "iframe", "object", "embed", "form"} & set(seen.tags)
    links = {value for name, value in seen.attributes if name in ("src", "href", "srcset", "action", "xlink:href")}
    assert links
    assert all(link.startswith("#") for link in links)
    assert not [name for name, _ in seen.attributes if name.startswith("on") or name == "style"]
    assert "url(http" not in html
    assert "@import" not in html


def test_the_policy_allows_this_style_and_this_script_only(tmp_path: Path) -> None:
    html = page.write(made.fill(tmp_path)).read_text()
    policy = next(value for name, value in parse(html).attributes if value.startswith("default-src"))
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert f"'{page._hash(content)}'" in policy


def test_a_warning_stands_between_the_verdict_and_the_first_chart(tmp_path: Path) -> None:
    made.write_study(tmp_path / "scale", made.disturbed(made.study()))
    made.write_run(tmp_path / "one")
    made.write_run(tmp_path / "two", made.run(environment=made.environment(processor="Another CPU")))
    html = page.write(tmp_path).read_text()
    titles = ["Unstable: measured again, scale may say something else", "Not measured alike"]
    places = [html.index(each) for each in ("Run two", *titles, "measure on an idle machine", "<figure")]
    assert places[0] < places[1] < places[3] < places[2] < places[4]
    assert html.count('role="group" aria-labelledby="alert-') == 2
    assert html.count("processor is Made-up CPU in one and Another CPU in the other") == 1
    for number, title in enumerate(titles, 1):
        assert f'<h3 id="alert-{number}">{title}</h3>' in html


def test_names_cannot_do_anything(tmp_path: Path) -> None:
    html = page.write(evil(tmp_path)).read_text()
    seen = parse(html)
    plain = parse(page.write(made.fill(tmp_path / "plain")).read_text())
    assert seen.tags.count("script") == 3  # two records and ours; a planted one would be a fourth
    assert plain.tags.count("script") == 4
    assert set(seen.tags) == set(plain.tags)
    assert {name for name, _ in seen.attributes} == {name for name, _ in plain.attributes}
    assert not [script for script in seen.scripts if script.startswith("alert")]
    assert "\x01" not in html
    assert "&lt;script&gt;alert(" in html


def test_the_oracle_sees_what_is_not_escaped(tmp_path: Path) -> None:
    html = page.write(evil(tmp_path)).read_text().replace("&lt;", "<").replace("&gt;", ">")
    seen = parse(html)
    assert [script for script in seen.scripts if script.startswith("alert")]


def test_every_value_is_inside(tmp_path: Path) -> None:
    made.fill(tmp_path)
    run = json.loads((tmp_path / "one" / "record.json").read_text())
    study = json.loads((tmp_path / "scale" / "scale.json").read_text())
    inside = [json.loads(script) for script in parse(page.write(tmp_path).read_text()).scripts[:-1]]
    assert inside[0] == study
    assert inside[1] == run


@pytest.mark.parametrize("fill", [made.write_run, made.write_study])
def test_one_record_alone(fill: object, tmp_path: Path) -> None:
    assert callable(fill)
    fill(tmp_path)
    assert "Verdict" in page.write(tmp_path).read_text()


def test_two_studies_have_names_of_their_own(tmp_path: Path) -> None:
    made.write_study(tmp_path / "a")
    made.write_study(tmp_path / "b")
    html = page.write(tmp_path).read_text()
    identifiers = [value for name, value in parse(html).attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    assert "Scaling of fashion-mlp (b)" in html


def test_a_bad_record_leaves_the_old_page(tmp_path: Path) -> None:
    path = page.write(made.fill(tmp_path))
    before = path.read_bytes()
    (tmp_path / "two" / "record.json").write_text("{}")
    with pytest.raises(UsageError, match=r"two/record\.json"):
        page.write(tmp_path)
    assert path.read_bytes() == before


def test_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    folder = tmp_path / "odd\udc80name"
    try:
        made.write_run(folder / "in\udcffside")
    except OSError:
        pytest.skip("this file system takes only names that are UTF-8")
    assert "odd\ufffdname" in page.write(folder).read_text()
