"""The mathematics: one operator per file, its forward, tangent and cotangent together.

    linear     Y = X W + b
    softmax    P = softmax(S), masked
    attention  O = softmax(τ Q Kᵀ + bias) V
    multihead  the layer, head by head: what one ships
    layouts    W_Q, W_K and W_V in one matrix, in the orders of columns that models have
    blockdiag  the same layer as literal 2-D matrix formulas: what one derives

A rule imports torch and ``gradderiv.errors`` and nothing else of ours, and does not know which number is
inside the tensors it is given. ``f`` returns its value and ``saved``; ``f_jvp(saved, …)`` is the tangent,
``f_vjp(d…, saved)`` the gradient of each argument under the argument's name, ``f_vjp_jvp`` the tangent of
that (second order). A trailing comment on a line is the shape of what it assigns.
"""
