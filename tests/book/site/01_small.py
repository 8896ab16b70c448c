# %% [markdown]
# # 1 A small chapter
#
# $$ \dot{\ell} = \langle dY, \dot{Y} \rangle $$
#
# The product $X W$ has the gradient $X^{\top} dY$; see [below](#the-exercise).
#
# | matrix | shape |
# |---|---|
# | $X$ | $n \times d$ |
#
# ```{admonition} A mistake
# :class: warning
# The sign of $dW$.
# ```
#
# That is all.

# %%
import torch

from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, differential, display, inner, moves
from gradderiv.book.exercises import check_chain
from gradderiv.book.pictures import heat
from gradderiv.rules.linear import linear, linear_vjp

at = Point(n=3, d=4, e=2)
X, W, dY = at.free("X", "n, d"), at.free("W", "d, e"), at.free("dY", "n, e")
Y, saved = linear(X, W)
MAP = definition(at.let("Y", Y), X @ W)
print("before")
display(X @ W)
print("after")

# %%
W_dot = at.tangent(W)
Y_dot, _ = differential(linear, X, moves(W, W_dot), name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, X @ W_dot), MAP.moves)
G = line.let("G", X.mT @ dY)
line(inner(G, W_dot), laws.LEFT)
line.reads_off(W_dot, linear_vjp(dY, saved).W)
display(line)

# %%
display(heat({"P": torch.eye(2)}, rows="query", columns="key", alt="each query sees its own key"))

# %% [markdown]
# ## The exercise

# %% [markdown] exercise="1.1" kind="chain" points=1 title="The input"
# Only $X$ moves.

# %% given="1.1"
X_dot = at.tangent(X)
Y_dot, _ = differential(linear, moves(X, X_dot), W, name="Y")
line = chain(inner(dY, Y_dot), "the differential of ℓ")

# %% answer="1.1"
### BEGIN SOLUTION
line(inner(dY, X_dot @ W), MAP.moves)
line(inner(dY @ W.mT, X_dot), laws.RIGHT)
### END SOLUTION


# %% checker="1.1"
def sign(line):
    """the new side is -1 × the one before"""
    line(inner(dY, -X_dot @ W), MAP.moves)


check_chain(line, X_dot, linear_vjp(dY, saved).X, mistakes=[sign])
display(line)
