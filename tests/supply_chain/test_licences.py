"""The list of licences matches the locked packages, and all licences are permitted."""

import re

import pytest

from supply_chain import licences
from supply_chain.locks import LockError


@pytest.mark.uses("console")
def test_the_list_is_that_of_what_is_locked() -> None:
    licences.check()


@pytest.mark.uses("console")
@pytest.mark.parametrize(
    ("pattern", "instead", "said"),
    [
        (r", six [\d.]+", ", six 9.9", "six is listed as 9.9, locked as"),
        (r", six [\d.]+", "", "six is missing"),
        (r", (six [\d.]+)", r", \1, left-pad 1.0", "left-pad is not locked"),
        (r", (six [\d.]+)(.*)", r"\2\n- MIT AND (GPL-3.0-only OR MIT): \1", "six: the licence GPL-3.0-only"),
        (r", (six [\d.]+)(.*)", r"\2\n- GPL-2.0-only: \1", "six: the licence GPL-2.0-only"),
        (r", (six [\d.]+)(.*)", rf"\2\n- {licences.NVIDIA}: \1", f"six: the licence {licences.NVIDIA}"),
    ],
)
def test_what_is_wrong_with_it_is_named(pattern: str, instead: str, said: str) -> None:
    text = licences.LIST.read_text()
    changed = re.sub(pattern, instead, text)
    assert changed != text
    assert said in "\n".join(licences.complaints(changed))


@pytest.mark.parametrize(
    ("said", "spdx", "not_permitted"),
    [
        ("MIT License", "MIT", []),
        ("Apache Software License; BSD License", "Apache-2.0 AND BSD", []),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", "MPL-2.0 AND (Apache-2.0 OR MIT)", []),
        ("Apache-2.0 WITH LLVM-exception", "Apache-2.0 WITH LLVM-exception", []),
        ("AGPL-3.0-only", "AGPL-3.0-only", ["AGPL-3.0-only"]),
        ("DFSG approved; MIT License", "MIT", []),
        ("NVIDIA Proprietary Software", "LicenseRef-NVIDIA", ["LicenseRef-NVIDIA"]),
        ("Proprietary; MIT License", "Proprietary AND MIT", ["Proprietary"]),
    ],
)
def test_what_packages_say_is_read_in_one_way(said: str, spdx: str, not_permitted: list[str]) -> None:
    assert licences.normalised(said) == spdx
    assert licences.forbidden(spdx) == not_permitted


def test_an_unknown_licence_stops_the_writing() -> None:
    with pytest.raises(LockError, match="accelerate"):
        licences.table({})
