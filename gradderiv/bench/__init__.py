"""The benchmarks behind README's figures.

attention  attention's derivatives of first and second order beside torch's kernels
graph      attention on neighbour lists beside dense masked attention
verify     what five checkers of a backward pass catch, and what they cost
"""
