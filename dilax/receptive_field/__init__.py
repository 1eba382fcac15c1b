"""Receptive fields: their arithmetic is in `dilax.ops`; here they are looked at."""

from dilax.receptive_field.effective import EffectiveField, effective_field
from dilax.receptive_field.gridding import Gridding, gridding, suggest_rates
from dilax.receptive_field.pictures import (
    heat_picture,
    in_letters,
    save_picture,
    stack_picture,
)

__all__ = [
    "EffectiveField",
    "Gridding",
    "effective_field",
    "gridding",
    "heat_picture",
    "in_letters",
    "save_picture",
    "stack_picture",
    "suggest_rates",
]
