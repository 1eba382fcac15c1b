"""Some trials of every part of the campaign; `python -m tests.campaign` makes more."""

import campaign
import pytest

QUICK = {
    campaign.checkpoints: 4,
    campaign.maps: 100,
    campaign.records: 200,
    campaign.images: 200,
}


@pytest.mark.parametrize("part", QUICK, ids=lambda part: part.__name__)
def test_no_damage_is_silent(part):
    found = campaign.run(part, seed=1, count=QUICK[part])
    assert found.total() >= QUICK[part]


@pytest.mark.full
@pytest.mark.parametrize(
    "part", [*{*campaign.PARTS} - {campaign.crashes}], ids=lambda part: part.__name__
)
def test_the_campaign(part):
    assert campaign.run(part, seed=2, count=campaign.PARTS[part])
