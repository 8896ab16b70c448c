"""The steps of random programs. A step puts one or more statements; where it does not fit, it says so and nothing is left of it."""

from steps import attention, leaning, moves, products, tables, writes  # they enter their steps
from steps.registry import STEPS

__all__ = ["STEPS", "attention", "leaning", "moves", "products", "tables", "writes"]
