import re

from rich.console import Console

from cpo_ray.report.terminal import format_table
from cpo_ray.report.write import write_report
from tests.report.fake_run import MODELS, make_fake_run


def test_terminal_table_marks_differences_that_are_not_significant(tmp_path):
    make_fake_run(tmp_path / "run")
    written = write_report([tmp_path / "run"], tmp_path / "report")
    console = Console(width=120, record=True)
    console.print(format_table(written))
    text = console.export_text()
    assert len(re.findall(r"^│ (?:reference|mle|cpo|merged)", text, re.MULTILINE)) == len(MODELS)
    assert "n.s." in text
    assert re.search(r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", text)
    assert "baseline" in text
