"""Every channel that runs on its own, and a small one of the suite's, against every check of `running.py`."""

import pytest

from gateway.contract import RunningConnector
from tests.contract import running
from tests.contract.cases import cases
from tests.contract.driver import Subject, subjects
from tests.contract.outside import lines
from tests.contract.rig import Check, OpenRig

SUBJECTS = [*subjects(RunningConnector), Subject("lines", lines.Driver)]


@pytest.mark.parametrize(("subject", "check"), cases(SUBJECTS, running.CHECKS))
async def test_contract(subject: Subject, check: Check, open_rig: OpenRig, outsiders: None) -> None:
    async with open_rig(subject.new_driver()) as rig:
        await check(rig)
