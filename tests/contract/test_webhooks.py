"""Every webhook channel, by every one of its drivers, against every check of `webhook.py`."""

import pytest

from gateway.contract import WebhookConnector
from tests.contract import webhook
from tests.contract.cases import cases
from tests.contract.driver import Subject, subjects
from tests.contract.rig import Check, OpenRig


@pytest.mark.parametrize(("subject", "check"), cases(subjects(WebhookConnector), webhook.CHECKS))
async def test_contract(subject: Subject, check: Check, open_rig: OpenRig) -> None:
    async with open_rig(subject.new_driver()) as rig:
        await check(rig)
