"""The benchmarks behind README's figures.

graph      attention on neighbour lists beside dense masked attention
verify     what five checkers of a backward pass catch, and what they cost
"""
