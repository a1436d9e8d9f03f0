"""`huiru new-channel`: what it makes is a channel that passes its own tests and the contract suite, in a checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.template import FILES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this one, with a new channel type `demo`."""
    for folder in ("gateway", "connectors", "normalizers", "config", "tests"):
        # With what is compiled: a copy keeps its times, by which Python knows it.
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns(".*"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    python(tmp_path, "-m", "gateway", "new-channel", "demo")
    return tmp_path


def python(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the modules of that checkout, and of no other."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    return subprocess.run([sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True)


def pytest_in(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(root, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-q", "-rA", *arguments)


def test_every_file_is_made_and_forgets_where_it_came_from(checkout: Path) -> None:
    made = [checkout / path.format("demo") for path in FILES]

    assert all("echo" not in path.read_text("utf-8").lower() for path in made)


@pytest.mark.long
def test_it_passes_its_own_tests(checkout: Path) -> None:
    done = pytest_in(checkout, "tests/connectors/test_demo.py", "tests/normalizers/test_demo.py")

    assert done.returncode == 0, done.stdout
    assert "PASSED tests/connectors/test_demo.py::" in done.stdout
    assert "PASSED tests/normalizers/test_demo.py::" in done.stdout


@pytest.mark.long
def test_it_passes_the_contract_suite(checkout: Path) -> None:
    done = pytest_in(checkout, "tests/contract", "-k", "demo or is_met")

    assert done.returncode == 0, done.stdout
    for test in (
        "test_shape.py::test_the_example_loads[demo]",
        "test_normalizers.py::test_every_normalizer_is_met",
        "test_normalizers.py::test_whatever_comes_is_a_message_or_rejected[demo]",
        "test_webhooks.py::test_contract[demo-a_good_message_is_one_ticket]",
    ):
        assert f"PASSED tests/contract/{test}" in done.stdout


@pytest.mark.long
def test_the_contract_suite_asks_for_a_driver(checkout: Path) -> None:
    (checkout / "tests/contract/drivers/demo.py").unlink()

    done = pytest_in(checkout, "tests/contract/test_shape.py", "-k", "demo")

    assert done.returncode == 1
    assert "write tests/contract/drivers/demo.py with a class Driver(WebhookDriver)" in done.stdout


@pytest.mark.long
def test_the_contract_suite_refuses_a_stale_waiver(checkout: Path) -> None:
    driver = checkout / "tests/contract/drivers/demo.py"
    check = "another_method_is_refused"
    waived = f'class Driver(WebhookDriver):\n    waivers = {{"{check}": "it is shy"}}\n'
    driver.write_text(driver.read_text().replace("class Driver(WebhookDriver):\n", waived))

    done = pytest_in(checkout, "tests/contract/test_webhooks.py", "-k", f"demo and {check}")

    assert done.returncode == 1
    assert "[XPASS(strict)] it is shy" in done.stdout
