"""The mathematics: one operator per file, its forward, tangent and cotangent together.

    linear, matmul, embedding            Y = X W + b;  C = A B in all forms;  X = table[tokens] + positions[position_ids]
    softmax, attention                   P = softmax(S), masked;  O = softmax(τ Q Kᵀ + bias) V: the core, written out
    masks, fills                         which keys a query may attend to; what systems write where it may not
    multihead                            the layer, head by head: what one ships
    blockdiag                            the same layer as literal 2-D matrix formulas: what one derives
    layouts, fused                       W_Q, W_K and W_V in one matrix, in the orders of columns that models have; the layer with it

    steps                                a rule made of rules: a list of steps, and the same list reversed
    options, attend                      the table of what attention is made of;  attention with every option
    tile                                 some of the queries, all of their keys: what a loop is made of that holds no score matrix
    rms_norm, rope, cache, heads         the parts before the scores
    scores, temperature, softcap, score_bias, softmax_lse, dropout           the scores and after
    layer_norm, activation, entrywise    what stands around attention: norms, functions of one number, residuals and gates
    transformer                          a whole layer as a list of parts
    graph, graphs                        attention of every query to the keys in its own list; the lists

A rule imports torch and ``gradderiv.errors`` and nothing else of ours, and does not know which number is
inside the tensors it is given. ``f`` returns its value and ``saved``; ``f_jvp(saved, …)`` is the tangent,
``f_vjp(d…, saved)`` the gradient of each argument under the argument's name, ``f_vjp_jvp`` the tangent of
that (second order). A trailing comment on a line is the shape of what it assigns.
"""
