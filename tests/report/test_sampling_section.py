"""The table of candidates in the report."""

import re

from cpo_ray.report.sampling_section import render_sampling


def cells(stats):
    """kind -> heading -> text of the cell, in the table of candidates."""
    page = render_sampling([{"label": "run", "sampling": stats}], {"run": []})
    heads, *rows = re.findall(r"<tr.*?</tr>", page.split("</table>")[0], re.DOTALL)
    names = re.findall(r"<th[^>]*>(.*?)</th>", heads, re.DOTALL)
    table = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    return {row[0]: dict(zip(names, row, strict=True)) for row in table}


def test_golds_without_eos_are_shown_like_negatives_without_eos():
    counts = {"count": 200, "equal_to_gold": 0, "duplicates": 0}
    table = cells({"gold": counts | {"without_eos": 75}, "autoregressive": counts | {"without_eos": 50}})
    assert table["gold"]["without EOS"] == "75 <small>(37.5%)</small>"
    assert table["autoregressive"]["without EOS"] == "50 <small>(25.0%)</small>"
    assert table["autoregressive"]["duplicates"] == "0"
    assert table["gold"]["duplicates"] == table["gold"]["equal to gold"] != "0"
