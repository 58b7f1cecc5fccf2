"""The public surface: one sorted list, light to import."""

import subprocess
import sys

import pytest

import unspool


def test_all_is_sorted_and_every_name_resolves() -> None:
    assert unspool.__all__ == sorted(unspool.__all__)
    for name in unspool.__all__:
        assert getattr(unspool, name) is not None


def test_all_is_complete() -> None:
    own = {n for n, v in vars(unspool).items() if getattr(v, "__module__", "").startswith("unspool.")}
    assert own <= set(unspool.__all__)
    assert set(unspool._HOME) <= set(unspool.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        unspool.nothing  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    [
        "import unspool",
        "import unspool.cli; unspool.cli.main(['--help'])",
        "import unspool.cli; unspool.cli.main(['track', '--help'])",
        "import unspool.cli; unspool.cli.main(['segment', '--help'])",
        "import unspool.cli; unspool.cli.main(['--version'])",
        "import unspool.cli; unspool.cli.main(['track', '--no-such-option'])",
        "import unspool.page_server, unspool.masks, unspool.video, unspool.results, unspool.metrics",
    ],
)
def test_torch_is_not_imported_by(statement: str) -> None:
    code = (
        f"import sys\ntry:\n    {statement}\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
