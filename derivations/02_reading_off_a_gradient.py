# %% [markdown]
# # 2 Differentials, inner products and reading off a gradient
#
# $$\dot{\ell} = \langle G, \dot{X} \rangle \text{ for every direction } \dot{X}
# \quad\Longrightarrow\quad dX = G$$
#
# A gradient is found in three moves, always the same three:
#
# 1. let one variable move, $X$ to $X + \varepsilon \dot{X}$, and write down how fast the loss moves:
#    $\dot{\ell} = \langle dY, \dot{Y} \rangle$;
# 2. push the step through the formula, until only $\dot{X}$ is left of all that moves;
# 3. take everything else to the other side of the inner product: $\dot{\ell} = \langle G, \dot{X} \rangle$.
#    Then $G$ is the gradient.
#
# This is the method of Magnus & Neudecker (*Matrix Differential Calculus*), with their differential
# $\mathrm{d}X$ written $\dot{X}$; Giles (2008) collects results that were found with it, and chapter 3
# derives one of them. The alternative is to write every entry with its indices and to differentiate
# sums. That works, and it hides the structure: attention needs five indices, and the transposes have to be
# guessed back from them in the end.
#
# ## Why G is the gradient
#
# By definition
# $\dot{\ell} = \sum_{ij} (\partial \ell / \partial X_{ij}) \dot{X}_{ij} = \langle dX, \dot{X} \rangle$ for
# every direction $\dot{X}$. If also $\dot{\ell} = \langle G, \dot{X} \rangle$ for every $\dot{X}$, take the
# direction that is 1 in the entry $(i, j)$ and 0 elsewhere: it reads $(dX)_{ij} = G_{ij}$. So there is
# nothing to choose. *What multiplies $\dot{X}$ is the gradient*, and $G$ has the shape of $X$, because
# $\langle G, \dot{X} \rangle$ is defined only then.
#
# "For every direction" is essential. One direction gives one equation for the $n \cdot d$ entries of $G$,
# and a $G$ with a mistake passes if the mistake is orthogonal to that direction. In our derivations
# $\dot{X}$ stays a letter.
#
# ## The laws
#
# Step 3 needs rules by which a factor goes from one side of $\langle \, , \rangle$ to the other. In this
# book a rule is a **law**: an identity between named matrices that holds whatever they are. It is stated
# once, in `gradderiv.book.laws`, with a shape for each letter, and it is checked once, exactly, before it is
# first used. Here are all of them. You need the first few now; the later ones wait for later chapters. A
# small $c$ or $b$ is a number, a column or a row.

# %%
import torch

from gradderiv.book import laws
from gradderiv.book.chain import ChainError, Point, chain, definition, differential, display, inner, moves
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.laws import Law

display("\n".join(f"{name:16} {law.statement}" for name, law in laws.LAWS.items()))

# %% [markdown]
# The first two are the workhorses. `RIGHT` says that the factor at the right end goes over transposed, and
# `LEFT` says so for the left end. The letters stand for any expression of fitting shape, so `RIGHT` also
# moves two factors at once, if you read $C$ as their product. Dimensions tell the two apart: take $A$ of
# shape $n \times e$, $B$ of $n \times d$ and $C$ of $d \times e$. Then $A C^\top$ is $n \times d$, as $B$
# is; $B^\top A$ is $d \times e$, as $C$ is; no other product of these has a shape that fits.
#
# In words: *the transpose of multiplication by $C$ from the right is multiplication by $C^\top$ from the
# right*. Where the code of a backward pass has a `.mT`, one of these two laws was used.
#
# ## The trace form
#
# Many books write $\operatorname{tr}(A^\top B)$ for $\langle A, B \rangle$, and have two laws in the place
# of our two: the trace is *cyclic*, $\operatorname{tr}(A B) = \operatorname{tr}(B A)$, and a square matrix
# has the trace of its transpose. Nothing is lost in translation. Here is `RIGHT`, derived from the trace:


# %%
def tr(A):
    return A.diagonal().sum()  # a number


at = Point(n=3, d=4, e=2)
A, B, C = at.free("A", "n, e"), at.free("B", "n, d"), at.free("C", "d, e")

line = chain(inner(A, B @ C), "the left side of RIGHT")
line(tr(A.mT @ B @ C), laws.TRACE)
line(tr(C @ A.mT @ B), laws.CYCLIC)
line(inner(A @ C.mT, B), laws.TRACE)
display(line)

# %% [markdown]
# The last step reads the trace backwards: $C A^\top$ is $(A C^\top)^\top$. That
# $(A C^\top)^\top = C A^\top$ needs no law here; it counts as a way of writing, as do brackets and the
# order of terms in a sum.
#
# `LEFT` needs no cycle, since the factor next to $A^\top$ is already in place. And `TRANSPOSE` is one
# cycle:

# %%
line = chain(inner(A, B @ C), "the left side of LEFT")
line(inner(B.mT @ A, C), laws.TRACE)
display(line)

# %%
D = at.free("D", "n, e")
line = chain(inner(A, D), "the left side of TRANSPOSE")
line(tr(A.mT @ D), laws.TRACE)
line(tr(D @ A.mT), laws.CYCLIC)
line(inner(D.mT, A.mT), laws.TRACE)
line(inner(A.mT, D.mT), laws.SYMMETRY)
display(line)

# %% [markdown]
# The entrywise product has a law of its own, because no matrix product does its work. As an inner product
# it is plain: both sides of `ENTRYWISE` are $\sum_{ij} A_{ij} B_{ij} C_{ij}$, and an entrywise factor goes
# over *as it is*, without a transpose. In trace form the same law is called the **Hadamard–trace
# exchange**, and looks deeper than it is:

# %%
F, G = at.free("F", "n, e"), at.free("G", "n, e")
line = chain(tr(A.mT @ (F * G)), "a trace with an entrywise product in it")
line(inner(A, F * G), laws.TRACE)
line(inner(A * F, G), laws.ENTRYWISE)
line(tr((A * F).mT @ G), laws.TRACE)
display(line)

# %% [markdown]
# | law | in trace form |
# |---|---|
# | `TRACE` | $\langle A, B \rangle = \operatorname{tr}(A^\top B)$ |
# | `RIGHT` | $\operatorname{tr}(A^\top B C) = \operatorname{tr}(C A^\top B)$, which is `CYCLIC` |
# | `LEFT` | $\operatorname{tr}(A^\top B C)$, read with other brackets |
# | `TRANSPOSE` | $\operatorname{tr}(A^\top B) = \operatorname{tr}(B A^\top)$ |
# | `ENTRYWISE` | $\operatorname{tr}(A^\top (B \circ C)) = \operatorname{tr}((A \circ B)^\top C)$ |
#
# We stay with $\langle \, , \rangle$: it shows at every moment which two matrices of one shape are being
# paired.
#
# ## True, and follows
#
# A law must be true, whatever its letters stand for. Of a line two things are asked.
#
# - **It is true**: it equals the line before it. This is decided by evaluating both sides exactly at a
#   random point.
# - **It follows**: the reasons beside it lead from the line before to this one, each is needed, and nothing
#   else is used but the way of writing. This is decided by rewriting: the machine tries every place where a
#   law fits, and gives up after some thousand expressions. A way that is too long is refused, never let
#   through.
#
# Here is a step that is accepted, and then the ways to be refused.

# %%
line = chain(inner(A, B @ C), "the start")
line(inner(A @ C.mT, B), laws.RIGHT)
display(line)

# %% [markdown]
# First, a *law* that does not hold. "Under a trace the order does not matter" is a popular one; the shapes
# allow it when all three are $n \times n$, and no line is looked at before the law is:

# %%
try:
    any_order = Law("any order", "n n, n n, n n", lambda A, B, C: (tr(A @ B @ C), tr(A @ C @ B)))
    line(inner(B, A @ C.mT), any_order)
except ChainError as error:
    display(error)

# %% [markdown]
# Second, a *line* that is false. The message names the line and its reason, says where the sides differ,
# and guesses at the slip, by trying small changes until one makes the line true:

# %%
try:
    line(inner(C @ A.mT, -B.mT), laws.TRANSPOSE)
except ChainError as error:
    display(error)

# %% [markdown]
# Third, a line that is true, with a reason that is not why. The two sides of the inner product were
# exchanged, and not transposed:

# %%
try:
    line(inner(B, A @ C.mT), laws.TRANSPOSE)
except ChainError as error:
    display(error)

# %% [markdown]
# Words alone, "as one easily sees", are refused as a reason; they may stand beside one as a note.
#
# One thing the rewriting does not look at: whether the shapes are those that the law was stated for, a
# column in the place of $c$, say. A line that misuses a law so must still be true to pass. False lines do not
# pass.
#
# ## Tangents come from the program
#
# Move 1 needs $\dot{Y}$, and it must not come from us: a mistake there would be proved along with
# everything else. It is computed from the forward program by *dual numbers*. A dual number is
# $p + \varepsilon t$ with $\varepsilon^2 = 0$, and arithmetic on it carries the product rule along:
#
# $$(p + \varepsilon t)(q + \varepsilon s) = p q + \varepsilon (p s + t q)$$
#
# $$\exp(p + \varepsilon t) = \exp p + \varepsilon \, t \exp p$$
#
# Feed $X + \varepsilon \dot{X}$ into any program, and beside its result $Y$ stands the *true* tangent
# $\dot{Y}$. In code that is `differential(program, moves(X, X_dot))`. The derivative of the program enters
# a chain here and nowhere else; the lines below it only rewrite.
#
# ## A first gradient
#
# Take the program $Y = X X^\top$, all inner products between tokens, $n \times n$. $X$ occurs twice, so two
# paths lead back to it. `definition(Y)` recalls what $Y$ is; its `.moves` is the product rule on it, a
# reason like a law.


# %%
def gram(X):
    return X @ X.mT  # n n


X = at.free("X", "n, d")
X_dot = at.tangent(X)
dY = at.free("dY", "n, n")
Y = at.let("Y", gram(X))
GRAM = definition(Y)
Y_dot = differential(gram, moves(X, X_dot), name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, X_dot @ X.mT + X @ X_dot.mT), GRAM.moves, note="and both factors move")
line(inner(dY, X_dot @ X.mT) + inner(dY, X @ X_dot.mT), laws.LINEARITY)
line(inner(dY @ X, X_dot) + inner(X.mT @ dY, X_dot.mT), laws.RIGHT, laws.LEFT)
line(inner(dY @ X, X_dot) + inner(dY.mT @ X, X_dot), laws.TRANSPOSE)
line(inner((dY + dY.mT) @ X, X_dot), laws.LINEARITY, note="collect Ẋ")
display(line)

# %% [markdown]
# So $dX = (dY + dY^\top) X$. Dimensions: $n \times n$ times $n \times d$ is $n \times d$, the shape of $X$.
# The first term comes through the left factor, the second through the right one. In attention the left
# factor will be the queries, and the right one the keys.
#
# The same in trace form, as Magnus & Neudecker would write it. It ends in
# $\operatorname{tr}(G^\top \dot{X})$, and one reads off $G$; books that call $G^\top$ the derivative use
# the other layout and mean the same:

# %%
line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(tr(dY.mT @ (X_dot @ X.mT + X @ X_dot.mT)), laws.TRACE, GRAM.moves)
line(tr(dY.mT @ X_dot @ X.mT) + tr(dY.mT @ X @ X_dot.mT), laws.LINEARITY)
line(tr(X.mT @ dY.mT @ X_dot) + tr(X_dot.mT @ dY.mT @ X), laws.CYCLIC)
line(tr(X.mT @ dY.mT @ X_dot) + tr(X.mT @ dY @ X_dot), laws.TRACE_TRANSPOSE)
line(tr(((dY + dY.mT) @ X).mT @ X_dot), laws.LINEARITY)
display(line)

# %% [markdown]
# ## The gradient of a number
#
# A number can move, too: the scale $\tau$ in $S = \tau A$ is one. Its gradient is a number, and the inner
# product of two numbers is their product. The law is `NUMBER`.


# %%
def scaled(tau, A):
    return tau * A  # n e


tau = at.free("scale")
tau_dot = at.tangent(tau)
dS = at.free("dS", "n, e")
S = at.let("S", scaled(tau, A))
SCALED = definition(S)
S_dot = differential(scaled, moves(tau, tau_dot), A, name="S")

line = chain(inner(dS, S_dot), "the differential of ℓ")
line(inner(dS, tau_dot * A), SCALED.moves)
line(inner(inner(dS, A), tau_dot), laws.NUMBER)
display(line)

# %% [markdown]
# So $d\tau = \langle dS, A \rangle$. A number that is used in every entry collects from every entry; the
# same will hold for weights that are shared by all tokens.
#
# ## With numbers
#
# For $X$ the example of chapter 1 and a loss $\ell = \langle T, Y \rangle$ with a fixed matrix $T$ we have
# $dY = T$. We compare with what the definition says: move one entry of $X$ a little and watch $\ell$.

# %%
EXAMPLE = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 1], [1, 1, 0, 0]], dtype=torch.float64)
T = torch.tensor([[0.0, 1, 0], [2, 0, 0], [0, 0, 1]], dtype=torch.float64)
gradient = (T + T.mT) @ EXAMPLE
moved = EXAMPLE.clone()
moved[0, 1] += 1e-6
quotient = ((T * gram(moved)).sum() - (T * gram(EXAMPLE)).sum()) / 1e-6
print("dX =", gradient.int().tolist())
print(f"entry (1, 2): {gradient[0, 1].item()}, and by moving it: {quotient.item():.4f}")

# %% [markdown]
# By hand: row 1 of $T + T^\top$ is $(0, 3, 0)$, so row 1 of $dX$ is 3 times token 2, $(0, 3, 0, 3)$.
#
# ```{admonition} Common mistake: one path of two
# :class: warning
# A variable that occurs twice has two terms in the product rule. With $dX = dY X$ alone the shapes fit. If
# $dY$ is symmetric, as it is when all of $X X^\top$ is fitted to a symmetric target, this is exactly half
# the gradient: the direction is right, the loss falls, and all that one sees is a learning rate of half its
# size. If the loss looks only at the lower triangle, as under a causal mask, it is another direction, and
# the loss still falls. What tells: $\langle dX, X \rangle = 2 \langle dY, Y \rangle$, since $Y$ grows with
# the square of $X$. In the layer this slip is an input gradient that lacks the path through $Q$, $K$ or
# $V$. (Met in classrooms.)
# ```
#
# ```{admonition} Common mistake: a gradient that is not 0 for $dY = 0$
# :class: warning
# $\langle dY, \dot{Y} \rangle$ is linear in $dY$, so $G$ is, too: $dY = 0$ gives $G = 0$, and $2\,dY$ gives
# $2G$. Seen in: jax-flash-attn2 #1. One way to get there is a backward pass that adds into a buffer which is
# never cleared, and so returns the gradient plus all that came before. On its first call it is right, and a
# test that calls it once passes. Training then behaves like a pendulum without friction: every old gradient
# pushes for ever, and the loss swings. The check costs one more call, with $dY = 0$.
# ```
#
# We measure both: gradient descent from the example towards a target for $X X^\top$, with a fixed learning
# rate.

# %%
target = torch.tensor([[2.0, 1, 0], [1, 2, 1], [0, 1, 2]], dtype=torch.float64)
buffer = torch.zeros_like(EXAMPLE)


def right(X, dY):
    return (dY + dY.mT) @ X


def one_path(X, dY):
    return dY @ X


def never_cleared(X, dY):
    return buffer.add_((dY + dY.mT) @ X)


def descend(gradient, seen, steps=400):
    X, losses = EXAMPLE.clone(), []
    buffer.zero_()
    for _ in range(steps):
        dY = (gram(X) - target) * seen
        losses.append((dY * dY).sum().item() / 2)
        X = X - 0.02 * gradient(X, dY)
    return losses


for what, seen in {"all of X X^T": torch.ones(3, 3), "lower triangle": torch.ones(3, 3).tril()}.items():
    for G in (right, one_path, never_cleared):
        losses = descend(G, seen.double())
        small = [step for step, value in enumerate(losses) if value < 1e-4]
        reached = f"below 1e-4 after {small[0]} steps" if small else "never below 1e-4"
        print(f"{what:15} {G.__name__:14} {reached}, in the end {losses[-1]:.4f}")

# %% [markdown]
# ## What "checked" means, and how sure it is
#
# Both sides of every line are rational functions (and, from chapter 4 on, exponentials) of all entries. The
# machine draws a prime $p$ near $2^{31}$ and random residues for all entries, and evaluates both sides
# exactly, without rounding. If the two sides are different functions of degree $D$, they agree at a random
# point with probability at most $D/p$ (Schwartz 1980, Zippel 1979). Three primes at once make that about
# $(D/p)^3$, and the figure under each chain is the sum over its lines. An exponential is replaced by a
# random function of its argument; an identity that holds for *every* function in its place holds for exp.
# Each line keeps the evidence of its own check. (The *shifts* in it matter where a maximum is taken; chapter
# 6 says how.)

# %%
evidence = line.lines[-1].evidence
print(evidence.how)
print(f"a false line passes with probability below 2^{evidence.log2_failure:.0f}")

# %% [markdown]
# A check with floats could not do this. It compares up to a tolerance, and the tolerance of a gradient that
# is small to begin with hides mistakes in it. Chapter 19 measures how many.
#
# ## Exercises

# %% [markdown] exercise="2.1" kind="chain" points=4 title="The other Gram matrix"
# Let $Y = X^\top X$, all inner products between *features*, $d \times d$. Derive the gradient of $X$;
# `FEATURES` is the definition of $Y$. Finish with $\dot{X}$ alone at the right, collected in one inner
# product. Mind which side $X$ ends up on: dimensions decide it.


# %% given="2.1"
def features(X):
    return X.mT @ X  # d d


dY = at.free("dY", "d, d")
Y = at.let("Y", features(X))
FEATURES = definition(Y)
Y_dot = differential(features, moves(X, X_dot), name="Y")
line = chain(inner(dY, Y_dot), "the differential of ℓ")

# %% answer="2.1"
### BEGIN SOLUTION
line(inner(dY, X_dot.mT @ X + X.mT @ X_dot), FEATURES.moves)
line(inner(dY, X_dot.mT @ X) + inner(dY, X.mT @ X_dot), laws.LINEARITY)
line(inner(dY @ X.mT, X_dot.mT) + inner(X @ dY, X_dot), laws.RIGHT, laws.LEFT)
line(inner(X @ dY.mT, X_dot) + inner(X @ dY, X_dot), laws.TRANSPOSE)
line(inner(X @ (dY + dY.mT), X_dot), laws.LINEARITY)
### END SOLUTION


# %% checker="2.1"
def one_term(line):
    """must equal the line before it"""
    line(inner(dY, X.mT @ X_dot), FEATURES.moves)


def transpose_forgotten(line):
    """transposed"""
    line(inner(dY, X_dot.mT @ X + X.mT @ X_dot), FEATURES.moves)
    line(inner(dY, X_dot.mT @ X) + inner(dY, X.mT @ X_dot), laws.LINEARITY)
    line(inner(X @ dY, X_dot) + inner(X @ dY, X_dot), laws.RIGHT, laws.LEFT, laws.TRANSPOSE)


def too_fast(line):
    """must follow by"""
    line(inner(X @ (dY + dY.mT), X_dot), FEATURES.moves, laws.LINEARITY)


end = inner(X @ (dY + dY.mT), X_dot)
check_chain(line, ends=end, mistakes=[one_term, transpose_forgotten, too_fast])

# %% [markdown] exercise="2.2" kind="function" points=4 title="Scores with one matrix"
# The scores of one head are $S = X W^Q (X W^K)^\top$. They depend on the weights only through
# $A = W^Q W^{K\top}$, so take $S = X A X^\top$ with $A$ of shape $d \times d$. Write the gradients of $A$
# and of $X$ from $dS$, $n \times n$. Do not assume that $A$ or $dS$ is symmetric.


# %% answer="2.2"
def weight_gradient(dS, X):
    """dA, d × d."""
    ### BEGIN SOLUTION
    return X.mT @ dS @ X
    ### END SOLUTION


def input_gradient(dS, X, A):
    """dX, n × d."""
    ### BEGIN SOLUTION
    return dS @ X @ A.mT + dS.mT @ X @ A
    ### END SOLUTION


# %% checker="2.2"
def scores(X, A):
    return {"S": X @ A @ X.mT}


def transposed_weights(dS, X):
    """the transpose of the gradient: query and key are exchanged"""
    return X.mT @ dS.mT @ X


def as_query_only(dS, X, A):
    """only the path through the left factor, in which a token is a query"""
    return dS @ X @ A.mT


def as_key_only(dS, X, A):
    """only the path through the right factor, in which a token is a key"""
    return dS.mT @ X @ A


def as_if_symmetric(dS, X, A):
    """right only when A and dS are symmetric"""
    return 2 * dS @ X @ A


check_functions(
    {"dA": weight_gradient, "dX": input_gradient},
    scores,
    inputs={"X": "n, d", "A": "d, d"},
    sizes=[{"n": 3, "d": 4}, {"n": 5, "d": 2}],
    mistakes={
        "weight_gradient": [transposed_weights],
        "input_gradient": [as_query_only, as_key_only, as_if_symmetric],
    },
)

# %% [markdown] exercise="2.3" kind="mistake" points=4 title="Twice the same?"
# "$X$ occurs twice in $X X^\top$, so both paths give the same, and $dX = 2\,dY X$." Find the line that is
# false, and correct it. (For a symmetric $dY$ the result is right, which is why it is believed.)

# %% given="2.3"
dY = at.free("dY", "n, n")
Y_dot = differential(gram, moves(X, X_dot), name="Y")
wrong = claim(inner(dY, Y_dot), "the differential of ℓ")
wrong(inner(dY, X_dot @ X.mT + X @ X_dot.mT), GRAM.moves)
wrong(inner(dY, X_dot @ X.mT) + inner(dY, X @ X_dot.mT), laws.LINEARITY)
wrong(inner(dY, X_dot @ X.mT) + inner(dY, X_dot @ X.mT), laws.TRANSPOSE)
wrong(inner(dY @ X, X_dot) + inner(dY @ X, X_dot), laws.RIGHT)
display(wrong)

# %% answer="2.3"
### BEGIN SOLUTION
answer = correct(4, inner(dY, X_dot @ X.mT) + inner(dY.mT, X_dot @ X.mT), laws.TRANSPOSE)
### END SOLUTION


# %% checker="2.3"
def rest(line):
    line(inner(dY @ X, X_dot) + inner(dY.mT @ X, X_dot), laws.RIGHT)


def product_rule():
    """line 2 follows from line 1"""
    return correct(2, inner(dY, 2 * X_dot @ X.mT), GRAM.moves)


def last_line():
    """a line before line 5 is false already"""
    return correct(5, inner(dY @ X, X_dot), laws.RIGHT)


end = inner(dY @ X, X_dot) + inner(dY.mT @ X, X_dot)
check_mistake(wrong, answer, ends=end, rest=rest, mistakes=[product_rule, last_line])

# %% [markdown]
# **Questions.** 1. For which $T$ does $dX = 2\,T X$ hold in "With numbers"? 2. `RIGHT` and `LEFT` are
# special cases of one sentence about a linear map and its adjoint; which? 3. Write `NUMBER` as a statement
# about traces. 4. A friend checks a gradient with one random direction and three digits. Give a wrong
# gradient of $X X^\top$ that passes.
