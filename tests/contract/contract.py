"""The whole contract, in the order of the table."""

from tests.contract import outcomes, repositories, round_trip
from tests.contract.declared import BEHAVIOURS, Behaviour

PARTS = (round_trip, outcomes, repositories)  # importing them declares it
CONTRACT: dict[str, Behaviour] = {
    name: one
    for part in PARTS
    for name, one in BEHAVIOURS.items()
    if one.observe.__module__ == part.__name__
}
