"""The benchmarks behind README's figures.

verify     what five checkers of a backward pass catch, and what they cost
"""
