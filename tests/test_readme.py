"""README.md's numbers: written from the reports, and found when they drift."""

import math

import numpy as np
import pytest
from scipy import stats

from kd.errors import ConfigError
from kd.report import page, readme
from kd.study.paths import ROOT

pytest_plugins = ["made_up_root"]
README = """# Title

<!-- table:kd_main -->
filled long ago
<!-- end -->

The end.
"""


def test_readme_is_filled_and_drift_is_found(repository):
    page.write_reports(repository / "reports" / "digits")
    path, results = repository / "README.md", repository / "reports" / "digits" / "results.csv"
    path.write_text(README)
    with pytest.raises(ConfigError, match="differs from results.csv at table:kd_main; run"):
        readme.write_readme(check=True, readme=path, results=results)
    assert path.read_text() == README  # a check changes nothing
    readme.write_readme(readme=path, results=results)
    text = path.read_text()
    accuracy = [93.0, 93.21, 93.44]
    half = stats.t.ppf(0.975, 2) * np.std(accuracy, ddof=1) / math.sqrt(3)
    assert f"| KD | {np.mean(accuracy):.2f} ± {half:.2f} |" in text and "on digits: mean and 95 % t-interval over 3 seeds" in text
    assert "| student alone | 90.20 ± 0.50 |" in text and "long ago" not in text and text.endswith("The end.\n")
    readme.write_readme(check=True, readme=path, results=results)
    results.write_text(results.read_text().replace("93.44", "95.44"))
    with pytest.raises(ConfigError, match="differs"):
        readme.write_readme(check=True, readme=path, results=results)
    for wrong, message in (
        ("number:kd_main/KD", "1 `<!-- end -->` too many or without a marker that is known: table, claims, findings, conclusions, bench$"),
        ("gain:kd_main/KD", "without a marker that is known"),
        ("table:kd_mein", "unknown table 'kd_mein'"),
        ("conclusions:kd", "only the combined study has conclusions"),
        ("tabel:kd_main", "without a marker that is known"),
    ):
        path.write_text(f"<!-- {wrong} -->x<!-- end -->")
        with pytest.raises(ConfigError, match=message):
            readme.write_readme(readme=path, results=results)


def test_readme_holds_the_committed_numbers():
    page, results = ROOT / "README.md", ROOT / "reports" / "digits" / "results.csv"
    if not (page.exists() and results.exists()):
        pytest.skip("no README.md or no committed reports here")
    readme.write_readme(check=True)
