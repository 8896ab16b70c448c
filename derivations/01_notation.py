# %% [markdown]
# # 1 Notation
#
# $$\operatorname{Attention}(Q, K, V) = \operatorname{softmax}\left(\frac{Q K^\top}{\sqrt{d_k}}\right) V$$
#
# This is equation 1 of Vaswani et al. (2017). The book derives the gradient of the loss with respect to
# every matrix in it, and in the layer around it, by hand, and has every line of every derivation checked by
# a machine. The machine needs one thing from us: that we write formulas as programs. So we begin by
# agreeing on letters, shapes and names. The equation itself is explained in chapter 5.
#
# You need to know what a matrix product is, and the product rule of calculus for numbers. The rest is built
# here.
#
# ## Matrices and their shapes
#
# A sentence of $n$ tokens is a matrix $X$ with $n$ rows; row $i$ is the vector of token $i$. **Rows are
# tokens, columns are features**, everywhere. A linear map multiplies from the right, $Y = X W$, and $W$ has
# one row for each input feature and one column for each output feature. (`torch.nn.Linear` stores the
# transpose of this $W$.)
#
# | letter | shape | meaning |
# |---|---|---|
# | $X$ | $n_q \times d_{\mathrm{model}}$ | input |
# | $X_{\mathrm{kv}}$ | $n_k \times d_{\mathrm{kv}}$ | source of keys and values, where it is not $X$ |
# | $h$, $d_k$, $d_v$ | numbers | heads; width of a head's queries and keys, of its values |
# | $W^Q$ | $d_{\mathrm{model}} \times h d_k$ | weights of the queries |
# | $W^K$, $W^V$ | $d_{\mathrm{kv}} \times h d_k$, $d_{\mathrm{kv}} \times h d_v$ | weights of the keys, the values |
# | $W^O$ | $h d_v \times d_{\mathrm{out}}$ | output projection |
# | $Q$, $K$, $V$ | $n_q \times d_k$, $n_k \times d_k$, $n_k \times d_v$ | queries, keys, values of a head |
# | $S$, $P$ | $n_q \times n_k$ | scores and probabilities |
# | $O$, $Y$ | $n_q \times d_v$, $n_q \times d_{\mathrm{out}}$ | output of a head, output of the layer |
# | $\tau$ | number | the scale, $1/\sqrt{d_k}$ unless another is given |
# | $M$ | $n_q \times n_k$, true or false | the mask; true means *may attend* |
# | $\ell$ | number | the loss, whatever it is; it is never written out |
#
# In code the same names are `X_kv`, `W_Q`, `scale`, `mask`, `loss`. With one sequence $n_q = n_k = n$.
# Where a row of $M$ allows nothing, that row of $P$ is 0 by definition; so is that row of $O$, and so is all
# that flows back through it.
#
# Products: $A B$ is the matrix product, $A \circ B$ multiplies entry by entry, and $A \oslash B$ divides
# entry by entry; the last two want equal shapes, or a column, which is then repeated for every column of the
# other. $A^\top$ is the transpose, $1$ a column of ones, and $\operatorname{rowsum}(A)$ the column of the
# row sums of $A$.

# %%
import torch

from gradderiv.book import laws
from gradderiv.book.chain import ChainError, Point, chain, display, inner
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.pictures import heat
from gradderiv.errors import InputError

at = Point(n=3, d=4, e=2)  # the sizes; why they are all different is said below
X = at.free("X", "n, d")
W = at.free("W", "d, e")
display(X)
display(X @ W)

# %% [markdown]
# A *named matrix* prints its formula and its shape. It also has a value, but not in floating point: its
# entries are random residues modulo three random primes near $2^{31}$. If two formulas agree there, they
# agree everywhere, up to a probability that is printed; chapter 2 says how large it is and why. Shapes are
# checked as you write:

# %%
try:
    display(W @ X)
except InputError as error:
    display(error)

# %% [markdown]
# ## Two things that are both written dX, and here are not
#
# Books on matrix calculus (Magnus & Neudecker) write $\mathrm{d}X$ for the *differential*: a small change
# of $X$, as in $\mathrm{d}(XW) = (\mathrm{d}X) W + X (\mathrm{d}W)$. Programs write `dX` for the
# *gradient*: the derivative of the loss with respect to $X$. Both are matrices of the shape of $X$, and
# they are as different as a step and a slope. We write
#
# - $\dot{X}$ (`X_dot`) for the step, the **tangent**: $X$ moves to $X + \varepsilon \dot{X}$;
# - $dX$ for the slope, the **gradient**: its entry $(i, j)$ is $\partial \ell / \partial X_{ij}$.
#
# | here | in code | Magnus & Neudecker | has the shape of |
# |---|---|---|---|
# | tangent $\dot{X}$ | `X_dot` | $\mathrm{d}X$ | $X$ |
# | gradient $dX$ | `dX`, `X.grad` | $\partial \ell / \partial X$, or its transpose | $X$ |
#
# A tangent answers "where does it go", and is pushed *forwards* through a program, from inputs to outputs.
# A gradient answers "how much does it matter", and is pulled *backwards*, from outputs to inputs. What
# connects them is one number, the speed at which the loss changes when $X$ moves along $\dot{X}$:
#
# $$\dot{\ell} = \sum_{ij} \frac{\partial \ell}{\partial X_{ij}} \dot{X}_{ij} = \langle dX, \dot{X} \rangle$$
#
# where $\langle A, B \rangle = \sum_{ij} A_{ij} B_{ij}$ is the **inner product** of two matrices of one
# shape.

# %%
X_dot = at.tangent(X)
dX = at.free("dX", "n, d")
display(inner(dX, X_dot))

# %% [markdown]
# ## How a formula of this book is checked
#
# A **chain** is a sequence of equal expressions, each with the reason why it equals the one before. A
# reason is mostly a *law*: an identity that holds whatever the matrices in it are. The laws have names, as
# `laws.SUM`, and chapter 2 goes through them. Here is a first chain, for $A$ and $B$ of shape
# $n \times d$. It shows that the inner product, a sum over entries, is the trace that most books write in its
# place. There are two such traces, $\operatorname{tr}(A^\top B)$ of a $d \times d$ matrix and
# $\operatorname{tr}(A B^\top)$ of an $n \times n$ matrix, and they are the same number.


# %%
def tr(A):
    return A.diagonal().sum()  # a number


A, B = at.free("A", "n, d"), at.free("B", "n, d")

line = chain(inner(A, B), "what we start from")
line((A * B).sum(), laws.SUM)
line(tr(A.mT @ B), laws.SUM, laws.TRACE)
line(tr(B @ A.mT), laws.CYCLIC)
line(tr(A @ B.mT), laws.TRACE_TRANSPOSE)
display(line)

# %% [markdown]
# In words: multiply entry by entry, and add everything up. $\operatorname{tr}(A^\top B)$ adds column by
# column: its diagonal entry $j$ is column $j$ of $A$ times column $j$ of $B$. $\operatorname{tr}(A B^\top)$
# adds row by row.
#
# Two questions are asked of every line: is it *true*, and does it *follow* from the line before it by the
# reason beside it? If one answer is no, the chain stops there and says so. We go on from the last line with a
# wrong sign:

# %%
try:
    line(-inner(A, B), laws.TRACE)
except ChainError as error:
    display(error)

# %% [markdown]
# ## Why the sizes differ
#
# With $n = d$ a forgotten transpose goes unnoticed by the shapes. We prove everything for sizes that are
# pairwise different, products such as $h \cdot d_k$ included, so that in most places a forgotten transpose
# is not even defined, and in the others the values tell.
#
# ```{admonition} Common mistake: a test in which two sizes are equal
# :class: warning
# Features are split into heads by `view(n, h, d)`, and then token and head must change places:
# `.transpose(0, 1)`. Forgotten, the result is $n \times h \times d$ in the place of $h \times n \times d$.
# In a test with as many heads as tokens these are one shape, and no error is raised: the heads of one token
# then attend to each other, and no token sees another. (Seen in: 1bit-MONSTER #2451. Chapter 7 measures
# it.) The cure costs nothing: three tokens, two heads, width five, never two alike.
# ```

# %%
features = torch.arange(8.0).reshape(2, 4)  # n × h·d with n = h = d = 2
split, forgotten = features.view(2, 2, 2).transpose(0, 1), features.view(2, 2, 2)
print("same shape:", split.shape == forgotten.shape, " same values:", torch.equal(split, forgotten))

# %% [markdown]
# ## A small example, kept for the whole book
#
# Three tokens with four features each. All numbers are small integers, so that you can follow every chapter
# with a pencil; the code at the end of each chapter does the same in floats.

# %%
EXAMPLE = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 1], [1, 1, 0, 0]])  # n × d_model = 3 × 4
words = "The example X, 3 tokens by 4 features; the only 2 stands in row 1, column 3"
display(heat({"X": EXAMPLE}, rows="token", columns="feature", alt=words))

# %% [markdown]
# ## With numbers: a step and a slope
#
# Let the loss be half the sum of all squares, $\ell = \frac{1}{2} \langle X, X \rangle$. Then
# $\partial \ell / \partial X_{ij} = X_{ij}$, so the gradient is $dX = X$, whatever we do next. Now choose a
# step: token 1 gains one unit of feature 3, and token 3 loses one of feature 1. The speed is
# $\langle dX, \dot{X} \rangle = 2 \cdot 1 + 1 \cdot (-1) = 1$. Moving by a small $\varepsilon$ and dividing
# gives the same number and an error that shrinks with $\varepsilon$:

# %%
X_step = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 0], [-1, 0, 0, 0]], dtype=torch.float64)
X_here = EXAMPLE.double()


def loss(X):
    return (X * X).sum() / 2


print("speed <dX, X_dot> =", inner(X_here, X_step).item())
for eps in (1.0, 0.1, 0.01, 0.001):
    quotient = (loss(X_here + eps * X_step) - loss(X_here)) / eps
    print(f"eps = {eps:<6} (loss moved - loss) / eps = {quotient.item():.4f}")

# %% [markdown]
# The error is $\varepsilon \langle \dot{X}, \dot{X} \rangle / 2 = \varepsilon$: halve the step, halve the
# error. The tangent is what remains when $\varepsilon$ goes to 0, and nothing in this book depends on a
# choice of $\varepsilon$.
#
# ## Exercises
#
# An exercise is part of the chapter: the machine that checks the book checks your answer, and says what
# went wrong.

# %% [markdown] exercise="1.1" kind="chain" points=2 title="The square of a sum"
# For numbers $(a + b)^2 = a^2 + 2ab + b^2$. Derive the same for matrices and the inner product, ending in
#
# $$\langle A, A \rangle + \langle A, B \rangle + \langle A, B \rangle + \langle B, B \rangle .$$
#
# Two laws are needed: `laws.LINEARITY`, which multiplies out, and `laws.SYMMETRY`,
# $\langle A, B \rangle = \langle B, A \rangle$.

# %% given="1.1"
line = chain(inner(A + B, A + B), "the square of the sum")

# %% answer="1.1"
### BEGIN SOLUTION
line(inner(A, A) + inner(A, B) + inner(B, A) + inner(B, B), laws.LINEARITY)
line(inner(A, A) + inner(A, B) + inner(A, B) + inner(B, B), laws.SYMMETRY)
### END SOLUTION


# %% checker="1.1"
def no_mixed_terms(line):
    """must equal the line before it"""
    line(inner(A, A) + inner(B, B), laws.LINEARITY)


def both_at_once(line):
    """SYMMETRY is used as well"""
    line(inner(A, A) + inner(A, B) + inner(A, B) + inner(B, B), laws.LINEARITY)


end = inner(A, A) + inner(A, B) + inner(A, B) + inner(B, B)
check_chain(line, ends=end, mistakes=[no_mixed_terms, both_at_once])

# %% [markdown] exercise="1.2" kind="function" points=2 title="The step of a product"
# $X$ moves along $\dot{X}$, and at the same time $W$ moves along $\dot{W}$. Along which direction $\dot{Y}$
# does $Y = X W$ move? Write it as a function of $X$ and $\dot{X}$, both $n \times d$, and of $W$ and
# $\dot{W}$, both $d \times e$.


# %% answer="1.2"
def product_tangent(X, X_dot, W, W_dot):
    """Y_dot, n × e."""
    ### BEGIN SOLUTION
    return X_dot @ W + X @ W_dot
    ### END SOLUTION


# %% checker="1.2"
def product(X, W):
    return {"Y": X @ W}


def steps_multiplied(X, X_dot, W, W_dot):
    """the product of the two steps: that is the part with ε², which is not in the tangent"""
    return X_dot @ W_dot


def only_X_moves(X, X_dot, W, W_dot):
    """only X moves; the term in which W moves is missing"""
    return X_dot @ W


def only_W_moves(X, X_dot, W, W_dot):
    """only W moves; the term in which X moves is missing"""
    return X @ W_dot


check_functions(
    {"Y_dot": product_tangent},
    product,
    inputs={"X": "n, d", "W": "d, e"},
    sizes=[{"n": 3, "d": 4, "e": 2}, {"n": 2, "d": 3, "e": 5}],
    mistakes=[steps_multiplied, only_X_moves, only_W_moves],
)

# %% [markdown] exercise="1.3" kind="mistake" points=2 title="A trace of square matrices"
# $C$, $D$ and $E$ are $n \times n$, so every product and every transpose fits, and shapes cannot help. One
# line is false. Which, and what should stand there? (Lines are numbered from the start, which is 1.)

# %% given="1.3"
C, D, E = (at.free(name, "n, n") for name in ("C", "D", "E"))
wrong = claim(inner(C, D @ E), "the start")
wrong(tr(C.mT @ D @ E), laws.TRACE)
wrong(tr(C.mT @ E @ D), laws.CYCLIC)
display(wrong)

# %% answer="1.3"
### BEGIN SOLUTION
answer = correct(3, tr(E @ C.mT @ D), laws.CYCLIC)
### END SOLUTION


# %% checker="1.3"
def second_line():
    """line 2 follows from line 1"""
    return correct(2, tr(D @ E @ C.mT), laws.TRACE)


def another_order():
    """must equal the line before it"""
    return correct(3, tr(D @ C.mT @ E), laws.CYCLIC)


check_mistake(wrong, answer, ends=tr(E @ C.mT @ D), mistakes=[second_line, another_order])

# %% [markdown]
# **Questions.** 1. What shape has the gradient of the loss with respect to $\tau$? 2. $X$ moves along
# $\dot{X}$, and $W$ stays. Which rows of $Y = X W$ move when only row 2 of $\dot{X}$ is not 0? 3. Why is
# $\langle A, B \rangle$ undefined for $A$ of shape $3 \times 4$ and $B$ of shape $4 \times 3$, although the
# trace of $A B$ exists? 4. Which step $\dot{X}$ with $\langle \dot{X}, \dot{X} \rangle = 1$ makes the loss
# rise fastest?
