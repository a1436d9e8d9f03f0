"""HTML mail as text: what a reader sees, in the lines in which he sees it."""

# ruff: noqa: E501 - a page is easier to compare with its text on one line

import time
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.html import to_text
from gateway.mail.quoting import split
from gateway.text import plain_text

SHAPES = {
    "paragraphs": ("<p>a</p><p>b</p>", "a\n\nb"),
    "paragraphs of Outlook": ("<p class=MsoNormal>a</p><p class=MsoNormal><o:p>&nbsp;</o:p></p><p class=MsoNormal>b", "a\n\nb"),
    "paragraphs without margins": ('<p style="margin:0">a</p><p style="margin:0 0 0 5px">b</p>', "a\nb"),
    "divisions": ("<div>a</div><div>b<br>c</div>", "a\nb\nc"),
    "an empty line of Gmail": ("<div>a</div><div><br></div><div>b</div>", "a\n\nb"),
    "a break at the end of a block": ("<div>a<br></div>b", "a\nb"),
    "two breaks": ("a<br><br>b<br/>c</br>d", "a\n\nb\nc\nd"),
    "many breaks": ("<div>a" + "<br>" * 20 + "b</div>", "a\n\nb"),
    "white space": ("<div>  a \n b <b> c</b></div>", "a b c"),
    "source lines of Chinese": ("<div>您好，\n  请问\n</div>", "您好，请问"),
    "source lines of both": ("<div>您好\nJane</div>", "您好 Jane"),
    "lines of text that is called HTML": ("您好\r\n\r\n谢谢\r\n<b>张三</b>", "您好\n\n谢谢\n张三"),
    "kept lines": ('<div style="white-space: pre-wrap">a\n  b</div>c\nd', "a\n  b\nc d"),
    "indented Chinese": ("<p>\u3000\u3000您好</p>", "\u3000\u3000您好"),
    "preformatted": ("<pre>  a\n   b</pre>x  y", "  a\n   b\n\nx y"),
    "headings": ("<h1>a</h1>b<h2>c</h2>d", "a\n\nb\n\nc\n\nd"),
    "a list": ("<ul><li>a</li>\n<li>b</li></ul>c", "• a\n• b\n\nc"),
    "a list that counts": ("<ol start=3><li>a<li value=7>b<li><p>c</p></ol>", "3. a\n7. b\n8. c"),
    "lists in lists": ("<ul><li>a<ul><li>b</ul><li>c</ul>", "• a\n  • b\n• c"),
    "a list without bullets": ("<ul style='list-style:none'><li>a<li>b</ul>", "a\nb"),
    "definitions": ("<dl><dt>a<dd>b</dl>", "a\nb"),
    "rows": ("<table><tr><td>a<td>b<tr><td>c</table>", "a\tb\nc"),
    "rows with paragraphs": ("<table><tr><td><p>a</p></td><td><p>b</p></td></tr></table>", "a\tb"),
    "rows with headings": ("<table><thead><tr><th>型号<th>数量<tbody><tr><td>X200<td>3</table>", "型号\t数量\nX200\t3"),
    "an empty cell between": ("<table><tr><td>a<td><td>c</table>", "a\t\tc"),
    "a table for layout": ("<table><tr><td><p>a</p><p>b</p></td><td>c</td></tr></table>d", "a\n\nb\nc\nd"),
    "tables in tables": ("<table><tr><td><table><tr><td>a<td>b</table></td></tr><tr><td>c</table>", "a\tb\nc"),
    "cells without rows": ("<td>a<td>b", "a\nb"),
    "a table in a list": ("<ul><li><table><tr><td>a<td>b</table></ul>", "• a\tb"),
    "a rule": ("a<hr>b", "a\n--------\nb"),
    "a link": ('see <a href="https://x.example/a?b=1&amp;c=2">here</a>.', "see here <https://x.example/a?b=1&c=2>."),
    "a link that says where it leads": ('<a href="https://x.example/">x.example</a> <a href="mailto:A@b.c">a@b.c</a>', "x.example a@b.c"),
    "a link to an address": ('<a href="mailto:a@b.c?subject=x">write</a>', "write <a@b.c>"),
    "a link to a number": ('<a href="tel:+86-138">call</a> <a href="tel:138">138</a>', "call <+86-138> 138"),
    "links that lead nowhere": ('<a href="#x">a</a> <a href="javascript:x()">b</a> <a name=x>c</a> <a href="https://x"></a>d', "a b c d"),
    "a link that is not closed": ('<a href="https://x.example">a <a href="https://y.example">b', "a <https://x.example> b <https://y.example>"),
    "a picture": ('<img alt="a &amp; b" src=x>', "a & b"),
    "a picture for words": ('好的<img alt="[微笑]" src="https://x/1.gif">', "好的[微笑]"),
    "an enclosed picture": ('a <img src="cid:image001.png@01DA6E">', "a [image: image001.png]"),
    "an enclosed picture without a name": ('a <img src="cid:1234@x"> <img src="data:image/png;base64,YQ==">', "a"),
    "a picture that counts readers": ('a<img src="https://x/pixel.gif" width=1 height=1>', "a"),
    "a reference that is too long": ("a&#" + "1" * 6000 + ";b", "a\ufffdb"),
    "entities": ("&lt;b&gt; &amp;amp; &#x4f60;&nbsp;&hearts;", "<b> &amp; 你 ♥"),
    "what is no text": ("<script>x</script><style>y</style><!-- z --><title>t</title>a", "a"),
    "what is hidden": (
        '<div style="display:none;max-height:0">pre</div><span style="mso-hide:all">x</span>a<i style="visibility: hidden">y</i>'
        "<p hidden>z</p><p style='display:none'>w<p>b",
        "a\n\nb",
    ),
    "what is hidden in a hidden one": ('<div style="display:none"><div>a</div>b</div>c', "c"),
    "a class that is called hidden": ('<p class="x hidden" style="overflow: hidden">a</p>', "a"),
    "a page that is hidden": ('<div style="display:none">a</div>', "a"),
    "what cannot be seen": ("a\u200bb\ufeffc\u00add &zwnj;&nbsp;&zwnj;&nbsp;", "abcd"),
    "controls": ("a &#7;\x07\0b", "a b"),
    "an address in brackets": ("Jane <jane@example.net> said <https://x.example/y>", "Jane <jane@example.net> said <https://x.example/y>"),
    "end tags of nothing": ("</pre></li></td><p>a   b</div>", "a b"),
    "conditions": ("<!--[if mso]>no<![endif]--><![if !mso]>yes<![endif]>", "yes"),
    "a signature's mark": ("<div>a</div><div>-- <br></div><div>Jane</div>", "a\n-- \nJane"),
    "nothing": ("<html><body></body></html>", ""),
}  # fmt: skip


@pytest.mark.parametrize(("html", "text"), SHAPES.values(), ids=SHAPES)
def test_html_becomes_text(html: str, text: str) -> None:
    assert to_text(html) == text


QUOTES = {
    "a quote": ("a<blockquote>b<blockquote>c</blockquote></blockquote>d", "a\n\n> b\n>\n>> c\n\nd"),
    "Gmail": (
        '<div dir="ltr">好的</div><br><div class="gmail_quote"><div dir="ltr" class="gmail_attr">客服 &lt;<a href="mailto:a@b.c">'
        'a@b.c</a>&gt; 于2024年3月5日周二 10:11写道：<br></div><blockquote class="gmail_quote" style="margin:0 0 0 .8ex;border-left:1px'
        ' solid">您好<br></blockquote></div>',
        "好的\n\n> 客服 <a@b.c> 于2024年3月5日周二 10:11写道：\n>\n> 您好",
    ),
    "Gmail's indent": ('a<blockquote style="margin:0 0 0 40px;border:none;padding:0px"><div>b</div></blockquote>', "a\n\nb"),
    "Apple Mail": ('<div>ok</div><blockquote type="cite"><div>On 5 Mar 2024, x wrote:</div><br><div>b</div></blockquote>', "ok\n\n> On 5 Mar 2024, x wrote:\n>\n> b"),
    "Thunderbird": ('<div class="moz-cite-prefix">On 3/5/24 10:11, x wrote:<br></div><blockquote type="cite" cite="mid:1">a</blockquote><p>b</p>', "> On 3/5/24 10:11, x wrote:\n>\n> a\n\nb"),
    "Yahoo": ('<div>ok</div><div id="x" class="yahoo_quoted"><div>On Tuesday, x wrote:</div><div>a</div></div>', "ok\n> On Tuesday, x wrote:\n> a"),
    "QQ": ("<div>好</div><div><includetail><div>------------------ 原始邮件 ------------------</div>a</includetail></div>", "好\n> ------------------ 原始邮件 ------------------\n> a"),
    "163": ('<div>好</div><br>在 2024-03-05 10:11:12，"x" &lt;a@b.c&gt; 写道：<br><blockquote id="isReplyContent" style="padding-left:1ex">a</blockquote>', '好\n\n在 2024-03-05 10:11:12，"x" <a@b.c> 写道：\n\n> a'),
    "Foxmail": ('<div>好</div><blockquote style="margin-top: 0px; margin-left: 0.5em;"><div>a</div></blockquote>', "好\n\n> a"),
    "飞书": ('<div>好</div><div class="history-quote-wrapper"><div>发件人: x</div>a</div>', "好\n> 发件人: x\n> a"),
    "Proton": ('<div>ok</div><div class="protonmail_quote">On Tuesday, x wrote:<br><blockquote class="protonmail_quote" type="cite">a</blockquote></div>', "ok\n> On Tuesday, x wrote:\n>\n>> a"),
    "Zoho": ('<div>ok</div><div class="zmail_extra"><div>---- x wrote ----</div><div>a</div></div>', "ok\n> ---- x wrote ----\n> a"),
    "网易邮箱大师": ('<div>好</div><div class="ntes-mailmaster-quote"><div>---- 回复的原邮件 ----</div>a</div>', "好\n> ---- 回复的原邮件 ----\n> a"),
    "a quote in a cell": ("<table><tr><td>a<blockquote>b</blockquote></td></tr></table>", "a\n\n> b"),
    "a cell in a quote": ("<blockquote><table><tr><td>a<td>b</table></blockquote>", "> a\tb"),
}  # fmt: skip


@pytest.mark.parametrize(("html", "text"), QUOTES.values(), ids=QUOTES)
def test_quotes_are_marked(html: str, text: str) -> None:
    assert to_text(html) == text


OUTLOOK = """
    <div class="elementToProof">附件是日志。</div><div id="appendonsend"></div>
    <hr style="display:inline-block;width:98%" tabindex="-1">
    <div id="divRplyFwdMsg" dir="ltr"><font><b>发件人:</b> 客服 &lt;a@b.c&gt;<br><b>发送时间:</b> 2024年3月5日 10:11<br>
    <b>收件人:</b> 张三 &lt;x@y.z&gt;<br><b>主题:</b> 日志</font><div>&nbsp;</div></div><div>请发日志。</div>
"""
OUTLOOK_DESKTOP = """
    <div class=WordSection1><p class=MsoNormal>The log is attached.<o:p></o:p></p><p class=MsoNormal><o:p>&nbsp;</o:p></p>
    <div><div style='border:none;border-top:solid #E1E1E1 1.0pt;padding:3.0pt 0cm 0cm 0cm'><p class=MsoNormal><b>From:</b>
    Support &lt;a@b.c&gt; <br><b>Sent:</b> Tuesday, March 5, 2024 10:11 AM<br><b>To:</b> Jane<br><b>Subject:</b> Log
    <o:p></o:p></p></div></div><p class=MsoNormal>Please send the log.</p></div>
"""
NETEASE_MASTER = """
    <div>什么时候修好？</div><div>---- 回复的原邮件 ----<br><table><tr><td>发件人</td><td>客服&lt;a@b.c&gt;</td></tr>
    <tr><td>发送日期</td><td>2024年03月05日 10:11</td></tr><tr><td>收件人</td><td>x</td></tr><tr><td>主题</td><td>维修</td></tr>
    </table>检测中。</div>
"""
GMAIL_INLINE = """
    <div class="gmail_quote"><div class="gmail_attr">On Tue, Mar 5, 2024 at 10:11 AM x &lt;a@b.c&gt; wrote:</div>
    <blockquote class="gmail_quote">Which device?</blockquote><div>A Pixel.</div>
    <blockquote class="gmail_quote">Which version?</blockquote><div>14.</div></div>
"""
GMAIL_FORWARD = """
    <div>Is this from you?</div><div class="gmail_quote"><div class="gmail_attr">---------- Forwarded message ---------<br>
    From: x &lt;a@b.c&gt;<br>Subject: Pay<br></div>Pay now.</div>
"""
WRITTEN = {
    "Outlook on the web": (OUTLOOK, "附件是日志。"),
    "Outlook desktop": (OUTLOOK_DESKTOP, "The log is attached."),
    "网易邮箱大师": (NETEASE_MASTER, "什么时候修好？"),
    "Gmail, answers between": (GMAIL_INLINE, "> Which device?\n\nA Pixel.\n\n> Which version?\n\n14."),
    "Gmail": (QUOTES["Gmail"][0], "好的"),
    "Apple Mail": (QUOTES["Apple Mail"][0], "ok"),
    "Thunderbird": (QUOTES["Thunderbird"][0], "b"),
    "Yahoo": (QUOTES["Yahoo"][0], "ok"),
    "QQ": (QUOTES["QQ"][0], "好"),
    "163": (QUOTES["163"][0], "好"),
    "Foxmail": (QUOTES["Foxmail"][0], "好"),
    "飞书": (QUOTES["飞书"][0], "好"),
    "Proton": (QUOTES["Proton"][0], "ok"),
    "Zoho": (QUOTES["Zoho"][0], "ok"),
}


@pytest.mark.parametrize(("html", "written"), WRITTEN.values(), ids=WRITTEN)
def test_what_was_written_now_is_found_in_html(html: str, written: str) -> None:
    assert split(to_text(dedent(html))).text == written


def test_a_forwarded_mail_is_kept() -> None:
    assert split(to_text(GMAIL_FORWARD)).text.endswith("Pay now.")


PIECES = st.sampled_from(
    ["<p>", "</p>", "<b", ">", "<td>", "<tr>", "<table>", "</table>", "<!--", "-->", "<script>", "</script>", "<a href='",
     "'", '"', "&", "&lt;", "&#0;", "<img src=cid:x alt=y>", "<style>", "<pre>", "</pre>", "\n", "<li>", "<ol>", "</ol>",
     "<blockquote>", "</blockquote>", "<br>", "<hr>", "<div style='display:none'>", "</div>", "<![CDATA[", "<a@b.c>",
     "<ul>", "</td>", "</tr>", "<div class=yahoo_quoted>", "<div style='white-space:pre'>"]
)  # fmt: skip
PAGES = st.lists(PIECES | st.text(), max_size=30).map("".join)


@given(PAGES)
def test_any_html_becomes_text(html: str) -> None:
    text = to_text(html)

    assert plain_text(text) == text
    assert "\n\n\n" not in text


WORDS = st.lists(st.sampled_from(["<p>", "</p>", "<td>", "<tr>", "</table>", "<table>", "<li>", "<ul>", "</ul>", "</td>",
                                  "<blockquote>", "</blockquote>", "<br>", "</div>", "<pre>", "word"]))  # fmt: skip


@given(WORDS)
def test_no_word_is_lost(pieces: list[str]) -> None:
    assert to_text("".join(pieces)).count("word") == pieces.count("word")


HOSTILE = {
    "elements left open": "<div>",
    "paragraphs": "<p>x",
    "lists left open": "<ul><li>x",
    "tables left open": "<table><tr><td>x",
    "quotes left open": "<blockquote>x",
    "cells": "<td>x",
    "rows": "<tr><td>a<td>b</tr>",
    "links": "<a href=https://x>y",
    "formats and ends of others": "<b></div>",
    "end tags": "</p></div></td>",
    "attributes": "<p style='a:b' class=c x=y>",
    "tags never closed": "<a href='\"",
    "comments never closed": "<!--",
    "entities": "&#x4f60;",
    "blanks": " \n",
    "blanks between Chinese": "你\n",
    "hard blanks": "&nbsp;",
    "breaks": "<br>",
}


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
def test_the_time_grows_with_the_length(piece: str) -> None:
    small = piece * (20_000 // len(piece))

    ratio = _seconds(small * 4) / _seconds(small)

    assert ratio < 9  # 4 where it is linear, 16 where it is quadratic


def test_a_page_in_its_outermost_cells_is_not_copied_for_each() -> None:
    page = "<table><tr><td>" * 100 + "x<br>" * 4000

    ratio = _seconds(page + "x<br>" * 12_000) / _seconds(page)

    assert ratio < 9


def _seconds(html: str) -> float:
    return min(_once(html) for _ in range(3))


def _once(html: str) -> float:
    started = time.process_time()
    to_text(html)
    return time.process_time() - started
