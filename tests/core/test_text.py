"""Text and HTML made harmless, whatever they were."""

import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.text import MAX_DEPTH, file_name, one_line, plain_text, sanitise_html, without_controls

# Plain text


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a\r\nb\rc\u2028d\x85e", "a\nb\nc\nd\ne"),
        ("a\0\x07\x1b[31m\x7f\x9b\ufffe\ud800b\tc", "a[31mb\tc"),
        ("\n\n  a  \n\n", "  a"),
        ("你好，\u3000😀", "你好，\u3000😀"),
    ],
)
def test_plain_text(text: str, plain: str) -> None:
    assert plain_text(text) == plain


def test_text_without_controls_keeps_its_blanks() -> None:
    assert without_controls(" a \0\r\n") == " a \n"


def test_one_line() -> None:
    assert one_line(" a\n\tb\0 ") == "a  b"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("C:\\Users\\me\\a.txt", "a.txt"),
        ("../../etc/passwd", "passwd"),
        ("照片 1.png", "照片 1.png"),
        ("a\0b\n.txt", "ab .txt"),
        ("invoice\u202egnp.exe", "invoicegnp.exe"),
        ("..", ""),
        ("folder/", ""),
        ("x" * 300 + ".png", "x" * 196 + ".png"),
    ],
)
def test_file_name(path: str, name: str) -> None:
    assert file_name(path) == name


# HTML


@pytest.mark.parametrize(
    ("html", "clean"),
    [
        ("<p>Hello <b>you</b></p>", "<p>Hello <b>you</b></p>"),
        ("a < b & c > d", "a &lt; b &amp; c &gt; d"),
        ("&lt;script&gt;", "&lt;script&gt;"),
        ("<script>alert(1)</script>x", "x"),
        ("<scr<script>ipt>alert(1)</script>", "&lt;scr"),
        ("<style>p{}</style><title>t</title>x", "x"),
        ("<!-- a --><!DOCTYPE html><?php x ?>x", "x"),
        ("<!--[if mso]>no<![endif]--><![if !mso]>yes<![endif]>", "yes"),
        ("<div onclick='x()' style='x' class=x id=x>t</div>", "<div>t</div>"),
        ("<iframe src=//x></iframe><form><input>x</form>", "x"),
        ('<a href="javascript:alert(1)">x</a>', '<a rel="noopener noreferrer">x</a>'),
        ('<a href="&#106;avascript:alert(1)">x</a>', '<a rel="noopener noreferrer">x</a>'),
        ('<a href="/relative">x</a>', '<a rel="noopener noreferrer">x</a>'),
        ('<a href="data:text/html,x">x</a>', '<a rel="noopener noreferrer">x</a>'),
        ("<a href='https://x/?a=1&b=2'>x</a>", '<a href="https://x/?a=1&amp;b=2" rel="noopener noreferrer">x</a>'),
        ('<img src="https://tracker/x.gif" alt="a > b">', '<img alt="a &gt; b">'),
        ('<img srcset="https://x 2x" src="//x">', "<img>"),
        ('<img src="cid:1">', '<img src="cid:1">'),
        ('<img src="data:image/png;base64,YQ==">', '<img src="data:image/png;base64,YQ==">'),
        ('<img src="data:image/svg+xml;base64,YQ==">', "<img>"),
        ("<p>a<p>b<ul><li>c<li>d</ul>", "<p>a</p><p>b</p><ul><li>c</li><li>d</li></ul>"),
        ("<table><tr><td>a</div><td>b</table>", "<table><tbody><tr><td>a</td><td>b</td></tr></tbody></table>"),
        ("<b><i>x</b></i>", "<b><i>x</i></b>"),
        ("<svg><script>alert(1)</script></svg><math>x</math>", "x"),
        ("<custom-tag>x</custom-tag>", "x"),
    ],
)  # fmt: skip
def test_html_is_sanitised(html: str, clean: str) -> None:
    assert sanitise_html(html) == clean


class Tree(HTMLParser):
    """How deep elements nest, and which attributes they have."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.depth = self.deepest = 0
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes |= {name for name, _ in attrs}
        if tag not in {"br", "hr", "img", "wbr"}:
            self.depth += 1
            self.deepest = max(self.deepest, self.depth)

    def handle_endtag(self, tag: str) -> None:
        self.depth -= 1


PIECES = st.sampled_from(
    ["<p>", "</p>", "<b", ">", "<td>", "<table>", "</table>", "<!--", "-->", "<script>", "</script>", "<a href='", "'",
     '"', "&", "&lt;", "&#0;", "<img src=x onerror=x>", "<style>", "<svg onload=x>", "<pre>", "\n", "<li>", "<![CDATA["]
)  # fmt: skip
PAGES = st.lists(PIECES | st.text(), max_size=30).map("".join)


@given(PAGES)
def test_nothing_gets_through(html: str) -> None:
    clean = sanitise_html(html)

    tree = Tree(clean)
    assert tree.attributes <= {"alt", "href", "rel", "src", "title"}
    assert tree.depth == 0
    assert not any(tag in clean for tag in ("<script", "<style", "<svg", "<!--"))


def test_what_is_too_deep_loses_its_tags_and_keeps_its_text() -> None:
    clean = sanitise_html("<div>" * 1000 + "x" + "</div>" * 1000)

    assert Tree(clean).deepest == MAX_DEPTH
    assert re.sub("<[^<>]*>", "", clean) == "x"


BOMBS = {
    "elements left open": "<div>" * 200_000,
    "formats reopened": "<p>" + "".join(f"<b title=x{n}>" for n in range(5000)) + "</p>" + "<p>x</p>" * 5000,
    "attributes without end": "<a " + " ".join(f"x{n}" for n in range(100_000)) + ">x</a>",
    "an attribute's name without end": "<a " + "a" * 1_000_000 + ">",
    "tags never closed": "<a href='\"" * 100_000,
    "comments never closed": "<!--" * 200_000,
    "ampersands": "&" * 500_000,
    "hard blanks": "\xa0" * 500_000,
    "lesser-than signs": "<" * 300_000,
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_no_page_takes_long(bomb: str) -> None:
    started = time.process_time()

    sanitise_html(bomb)

    assert time.process_time() - started < 10  # a second or less here; without the care taken, minutes or all memory
