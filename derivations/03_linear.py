# %% [markdown]
# # 3 The linear map
#
# $$Y = X W + 1 b$$
#
# $$X \; n \times d \qquad W \; d \times e \qquad Y \; n \times e$$
#
# $$dX = dY \, W^\top \qquad dW = X^\top dY \qquad db = dY^\top 1$$
#
# Every projection of an attention layer is this map: $Q = X W^Q + 1 b^Q$, and so on, four times in each
# layer. The bias $b$ is a list of $e$ numbers, added to each row. As a matrix it stands there as $1 b$: a
# column of $n$ ones times $b$ as a row. $dY^\top 1$ is a list of $e$ numbers, too, the sums of the columns of
# $dY$; whether such a list lies or stands has no meaning. Giles (2008, §2.2.2) and Magnus & Neudecker have
# these results.
#
# The loss is a function of $Y$ about which we know one thing: $dY$, its gradient, $n \times e$. It arrives
# from the right, from whatever comes after the map; our task is to send it on to the left, to $X$, and to
# leave $dW$ and $db$ behind on the way. A map that can do this needs to know nothing about the loss, and
# the loss nothing about the map. That is all of backpropagation.

# %%
import torch

from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, differential, display, fact, inner, moves
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.pictures import heat
from gradderiv.rules.linear import linear, linear_vjp

at = Point(n=3, d=4, e=2)
X, W, b = at.free("X", "n, d"), at.free("W", "d, e"), at.free("b", "e")
one = at.given("1", torch.ones(3, 1))  # n × 1
dY = at.free("dY", "n, e")
Y, saved = linear(X, W, b)
Y = at.let("Y", Y)
OUTPUT = definition(Y, X @ W + one @ b.unsqueeze(0))  # checked here: what the program returns is X W + 1 b

# %% [markdown]
# ## The weights
#
# Only $W$ moves, along $\dot{W}$. The tangent of $Y$ is the machine's, from dual numbers through `linear`;
# that it is $X \dot{W}$ is the first line, and its reason is the definition of $Y$ with the product rule.
# $W$ stands at the right end of a product, so what has to go over is $X$, from the left end: the law
# `LEFT`.

# %%
W_dot = at.tangent(W)
Y_dot, _ = differential(linear, X, moves(W, W_dot), b, name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, X @ W_dot), OUTPUT.moves)
line(inner(X.mT @ dY, W_dot), laws.LEFT)
line.reads_off(W_dot, linear_vjp(dY, saved).W)
display(line)

# %% [markdown]
# The line under the chain is one more check: what multiplies $\dot{W}$ was compared with what the function
# `linear_vjp`, which ships, returns.
#
# $dW = X^\top dY$ is $d \times n$ times $n \times e$: the rows, the tokens, are summed over. Token $i$ adds
# its own outer product, a $d \times e$ matrix of rank one, to the gradient of the weights that all tokens
# share:
#
# $$dW = \sum_i x_i^\top \, dy_i$$
#
# where $x_i$ is row $i$ of $X$, $1 \times d$, and $dy_i$ row $i$ of $dY$, $1 \times e$.
#
# ## The input
#
# Now $X$ moves. It stands on the left, and $W$ goes over: `RIGHT`.

# %%
X_dot = at.tangent(X)
Y_dot, _ = differential(linear, moves(X, X_dot), W, b, name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, X_dot @ W), OUTPUT.moves)
line(inner(dY @ W.mT, X_dot), laws.RIGHT)
line.reads_off(X_dot, linear_vjp(dY, saved).X)
display(line)

# %% [markdown]
# $dX = dY \, W^\top$ acts on each row by itself, as the forward map did: token $i$ hears only about token
# $i$. It is attention, in chapter 5, that mixes rows.
#
# ## The bias
#
# In $\langle dY, 1 \dot{b} \rangle$ the left factor is a column of ones. `LEFT` takes it over as
# $1^\top dY$, the sums of the columns of $dY$. As $b$ is a vector in the program, and not a matrix of one
# row, the law has a form of its own, `BIAS`.

# %%
b_dot = at.tangent(b)
Y_dot, _ = differential(linear, X, W, moves(b, b_dot), name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, one @ b_dot.unsqueeze(0)), OUTPUT.moves)
line(inner(dY.sum(0), b_dot), laws.BIAS)
line.reads_off(b_dot, linear_vjp(dY, saved).b)
display(line)

# %% [markdown]
# $db = dY^\top 1$ is the *sum* of the rows of $dY$. One row $b$ was copied into $n$ rows; copying forwards
# is summing backwards. The same sentence gave the sum over tokens in $dW$, and will give the sum over a
# group of heads in chapter 11.
#
# ## All at once
#
# If everything moves, the product rule has three terms, and each goes its own way. So one may derive a
# gradient with all other variables at rest: nothing is lost.

# %%
Y_dot, _ = differential(linear, moves(X, X_dot), moves(W, W_dot), moves(b, b_dot), name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, X_dot @ W + X @ W_dot + one @ b_dot.unsqueeze(0)), OUTPUT.moves)
line(inner(dY, X_dot @ W) + inner(dY, X @ W_dot) + inner(dY, one @ b_dot.unsqueeze(0)), laws.LINEARITY)
line(inner(dY @ W.mT, X_dot) + inner(dY, X @ W_dot) + inner(dY, one @ b_dot.unsqueeze(0)), laws.RIGHT)
line(inner(dY @ W.mT, X_dot) + inner(X.mT @ dY, W_dot) + inner(dY, one @ b_dot.unsqueeze(0)), laws.LEFT)
line(inner(dY @ W.mT, X_dot) + inner(X.mT @ dY, W_dot) + inner(dY.sum(0), b_dot), laws.BIAS)
display(line)

# %% [markdown]
# ## Batches
#
# If $X$ has more axes, $(batch, n, d)$, nothing new happens. $W$ and $b$ are shared by all rows of all
# sequences, so lay the sequences under one another into one tall matrix with $batch \cdot n$ rows, and use
# the result above. In the formulas $X$ then stands for the tall matrix; the program says `flatten(0, 1)`.

# %%
batch = Point(batch=5, n=3, d=4, e=2)
X_b, W_b, dY_b = batch.free("X", "batch, n, d"), batch.free("W", "d, e"), batch.free("dY", "batch, n, e")
Y_b, saved_b = linear(X_b, W_b)
Y_b = batch.let("Y", Y_b)
OUTPUT_B = definition(Y_b, X_b @ W_b)
W_b_dot = batch.tangent(W_b)
Y_dot, _ = differential(linear, X_b, moves(W_b, W_b_dot), name="Y")

line = chain(inner(dY_b, Y_dot), "the differential of ℓ")
line(inner(dY_b, X_b @ W_b_dot), OUTPUT_B.moves)
line(inner(X_b.flatten(0, 1).mT @ dY_b.flatten(0, 1), W_b_dot), laws.LEFT, note="tall matrices")
line.reads_off(W_b_dot, linear_vjp(dY_b, saved_b).W)
display(line)

# %% [markdown]
# So $dW$ and $db$ are sums over batch *and* tokens, and $dX$ has the batch axis that $X$ has.
#
# ## Tied weights
#
# Language models often use one matrix twice: to embed tokens, and, transposed, to score them at the end. In
# its smallest form that is $Y = X W W^\top$, with $H = X W$ in between, $n \times e$. $W$ occurs twice, and
# the product rule has two terms. Each is the gradient that its use would have alone, and they are
# **added**. For the second use the map is $H V$ with $V = W^\top$, so its gradient $dV = H^\top dY$ enters
# transposed.


# %%
def tied(X, W):
    H, down = linear(X, W)  # n e
    Y, up = linear(H, W.mT)  # n d
    return Y, down, up


dY = at.free("dY", "n, d")
Y, down, up = tied(X, W)
H, Y = at.let("H", X @ W), at.let("Y", Y)
TIED, HIDDEN = definition(Y, X @ W @ W.mT), definition(H)
Y_dot, _, _ = differential(tied, X, moves(W, W_dot), name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, X @ W_dot @ W.mT + X @ W @ W_dot.mT), TIED.moves, note="in both places")
line(inner(dY, X @ W_dot @ W.mT) + inner(dY, X @ W @ W_dot.mT), laws.LINEARITY)
line(inner(dY, X @ W_dot @ W.mT) + inner(dY, H @ W_dot.mT), HIDDEN)
dH = line.let("dH", dY @ W)
line(inner(dH, X @ W_dot) + inner(H.mT @ dY, W_dot.mT), laws.RIGHT, laws.LEFT)
line(inner(X.mT @ dH, W_dot) + inner(dY.mT @ H, W_dot), laws.LEFT, laws.TRANSPOSE)
line(inner(X.mT @ dH + dY.mT @ H, W_dot), laws.LINEARITY)
display(line)

# %% [markdown]
# And the two terms are what the function that ships returns for the two uses, checked here:

# %%
FIRST = fact(linear_vjp(dH, down).W, X.mT @ dH, "first use: linear_vjp(dH, …).W = Xᵀ dH")
SECOND = fact(linear_vjp(dY, up).W.mT, dY.mT @ H, "second use: linear_vjp(dY, …).Wᵀ = dYᵀ H")
display(FIRST.statement)
display(SECOND.statement)

# %% [markdown]
# ```{admonition} Common mistake: gradients of a tied weight kept apart
# :class: warning
# A program that gives each *use* of a parameter its own gradient, as those do that clip gradients one by
# one for differential privacy, must add the uses of one parameter before anything else is done with them. A
# list with two entries in the place of their sum has the right shapes in it, and clips each half alone. If
# only the last entry is used, one of the two terms is lost. Seen in: opacus #413. What tells:
# $\langle dW, W \rangle$ must be $2 \langle dY, Y \rangle$, since $Y$ is quadratic in $W$. With one term
# alone it is $\langle dY, Y \rangle$, half of that. The direction need not tell: in the example below it is
# nearly right.
# ```
#
# ## With numbers
#
# The three tokens of chapter 1 and a map to two features. The last line is for the box above: the tied map
# with the same weights, and a loss whose gradient with respect to $Y$ is $Y$ itself.

# %%
EXAMPLE = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 1], [1, 1, 0, 0]])
weights = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, -1]])
arriving = torch.tensor([[1.0, 0], [0, 2], [1, 1]])

result, kept = linear(EXAMPLE, weights, torch.zeros(2))
g = linear_vjp(arriving, kept)
print("Y ", result.int().tolist())
print("dW", g.W.int().tolist())
print("dX", g.X.int().tolist())
print("db", g.b.int().tolist())

tied_output, first, second = tied(EXAMPLE, weights)
one_use, other_use = (
    linear_vjp(linear_vjp(tied_output, second).X, first).W,
    linear_vjp(tied_output, second).W.mT,
)
alike = (one_use * (one_use + other_use)).sum() / (one_use.norm() * (one_use + other_use).norm())
print(f"one of the two uses of a tied W: cosine with the right dW {alike.item():.3f}")

# %% [markdown]
# By hand: the first row of $dW$ is feature 1 of every token times $dY$,
# $1 \cdot (1, 0) + 0 \cdot (0, 2) + 1 \cdot (1, 1) = (2, 1)$. In pictures: $dW$ is the sum of three
# matrices of rank one, a token each.

# %%
outer = {f"x_{i + 1}^\\top dy_{i + 1}": EXAMPLE[i : i + 1].mT @ arriving[i : i + 1] for i in range(3)}
words = "Three outer products of 4 by 2, one for each token, and their sum dW: (2 1), (1 3), (2 0), (0 2)"
display(heat({**outer, "dW": g.W}, alt=words, rows="feature of X", columns="feature of Y"))

# %% [markdown]
# ```{admonition} Common mistake: the gradient of the bias as a mean
# :class: warning
# $db$ is the sum of the rows of $dY$. Their mean is met where a loss was averaged over tokens: but then the
# $1/n$ is in $dY$ already, and taking the mean divides by $n$ twice. The shape is right, the direction is
# right, and the loss falls: the bias alone learns $n$ times more slowly than everything else. (Met in
# classrooms.) An identity that flags it is
# $\langle dW, W \rangle + \langle db, b \rangle = \langle dY, Y \rangle$.
# ```
#
# ```{admonition} Common mistake: a transpose that square weights hide
# :class: warning
# $dX = dY \, W$ has the right shape when $W$ is square, as the projections of attention mostly are, and
# $dX = dY \, W^\top$ is meant. In `torch.nn.Linear` the weight is stored transposed, so there
# `grad @ weight` *is* right, and code is copied from one convention to the other. Below, two square layers
# are trained with the slip: the loss goes to zero all the same. A loss that falls is no evidence for a
# gradient.
# ```
#
# We measure both. First a bias among 96 tokens; then two square layers, eight times with other weights.

# %%
draw = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def first_below(losses, bound=1e-3):
    return next((step for step, value in enumerate(losses) if value < bound), None)


def fit_a_bias(gradient_of_bias, steps=1000):
    weight, offset = torch.zeros(4, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for _ in range(steps):
        error = tokens @ weight + offset - wanted
        yield (error * error).sum().item() / 2
        weight, offset = weight - 0.01 * tokens.mT @ error, offset - 0.01 * gradient_of_bias(error)


tokens = normal(96, 4)
wanted = tokens @ normal(4, 2) + torch.tensor([3.0, -2.0])
print("db as a sum: ", first_below(fit_a_bias(lambda error: error.sum(0))), "steps")
print("db as a mean:", first_below(fit_a_bias(lambda error: error.mean(0))), "steps")


# %%
def two_layers(back, tokens, wanted, W_1, W_2, steps=400):
    for _ in range(steps):
        hidden = tokens @ W_1
        error = (hidden @ W_2 - wanted) / 24
        yield 12 * (error * error).sum().item()
        step_1, step_2 = tokens.mT @ back(error, W_2), hidden.mT @ error
        W_1, W_2 = W_1 - 0.1 * step_1, W_2 - 0.1 * step_2


steps_needed = {"dY W^T": [], "dY W  ": []}
for _ in range(8):
    tokens = normal(24, 4)
    problem = (tokens, tokens @ normal(4, 4), normal(4, 4) / 2, normal(4, 4) / 2)
    steps_needed["dY W^T"].append(first_below(two_layers(lambda dY, W: dY @ W.mT, *problem)))
    steps_needed["dY W  "].append(first_below(two_layers(lambda dY, W: dY @ W, *problem)))
for formula, steps in steps_needed.items():
    print(f"dX = {formula}: loss below 0.001 after {steps} steps")

# %% [markdown]
# ```{admonition} Common mistake: rows that never arrive, and a gradient that is overwritten
# :class: warning
# $dW = X^\top dY$ is a sum over rows, and fast code sums in blocks of rows. If the last, partial block is
# skipped, the last few tokens never reach $dW$; every test whose $n$ is a multiple of the block passes.
# Seen in: attorch #18. Its opposite is a backward pass that writes its result *into* $dY$ to save memory:
# its own three results are right, and whoever reads $dY$ afterwards, as the other branch of a residual
# does, reads something else. Seen in: Liger #1305. Test with an $n$ that no block divides, and compare $dY$
# before and after. The loss will not tell: with 98 tokens in blocks of 16, two are lost, and the direction
# is nearly right.
# ```

# %%
tokens, late = normal(98, 4), normal(98, 2)
whole, blocks = tokens.mT @ late, tokens[:96].mT @ late[:96]
similar = (whole * blocks).sum() / (whole.norm() * blocks.norm())
print(f"two of 98 tokens lost: cosine with the right dW {similar.item():.3f}")

# %% [markdown]
# ## Exercises

# %% [markdown] exercise="3.1" kind="chain" points=3 title="The convention of torch.nn.Linear"
# `torch.nn.Linear` stores $V = W^\top$, $e \times d$, and computes $Y = X V^\top$, the definition `STORED`.
# Derive $dV$ from the tangent in which only $V$ moves. Dimensions say that it must be the transpose of
# $dW$; the chain says why.


# %% given="3.1"
def stored_transposed(X, V):
    return X @ V.mT  # n e


V, dY = at.free("V", "e, d"), at.free("dY", "n, e")
V_dot = at.tangent(V)
Y = at.let("Y", stored_transposed(X, V))
STORED = definition(Y)
Y_dot = differential(stored_transposed, X, moves(V, V_dot), name="Y")
line = chain(inner(dY, Y_dot), "the differential of ℓ")

# %% answer="3.1"
### BEGIN SOLUTION
line(inner(dY, X @ V_dot.mT), STORED.moves)
line(inner(X.mT @ dY, V_dot.mT), laws.LEFT)
line(inner(dY.mT @ X, V_dot), laws.TRANSPOSE)
### END SOLUTION


# %% checker="3.1"
def not_transposed(line):
    """shape"""
    line(inner(dY, X @ V_dot.mT), STORED.moves)
    line(inner(X.mT @ dY, V_dot), laws.LEFT)


def wrong_law(line):
    """LEFT"""
    line(inner(dY, X @ V_dot.mT), STORED.moves)
    line(inner(X.mT @ dY, V_dot.mT), laws.RIGHT)


check_chain(line, ends=inner(dY.mT @ X, V_dot), mistakes=[not_transposed, wrong_law])

# %% [markdown] exercise="3.2" kind="function" points=6 title="A low-rank adapter"
# A large frozen $W$, $d \times e$, is corrected by a thin product: $Y = X W + X A B$ with $A$ of shape
# $d \times r$ and $B$ of $r \times e$ (Hu et al. 2022, "LoRA"). Write the gradients of $A$ and $B$, which
# are trained, and of $X$, which must reach the layers below. Do not form the $d \times e$ product $A B$ if
# you can help it.


# %% answer="3.2"
def gradient_of_B(dY, X, A):
    """dB, r × e."""
    ### BEGIN SOLUTION
    return (X @ A).mT @ dY
    ### END SOLUTION


def gradient_of_A(dY, X, B):
    """dA, d × r."""
    ### BEGIN SOLUTION
    return X.mT @ (dY @ B.mT)
    ### END SOLUTION


def gradient_of_X(dY, W, A, B):
    """dX, n × d."""
    ### BEGIN SOLUTION
    return dY @ W.mT + dY @ B.mT @ A.mT
    ### END SOLUTION


# %% checker="3.2"
def adapted(X, W, A, B):
    return {"Y": X @ W + X @ A @ B}


def averaged_B(dY, X, A):
    """a mean over the tokens, where a sum belongs"""
    return (X @ A).mT @ dY / X.shape[0]


def averaged_A(dY, X, B):
    """a mean over the tokens, where a sum belongs"""
    return X.mT @ (dY @ B.mT) / X.shape[0]


def frozen_is_forgotten(dY, W, A, B):
    """the path through W is missing: frozen weights are not trained, and still pass the gradient on"""
    return dY @ B.mT @ A.mT


def adapter_is_forgotten(dY, W, A, B):
    """the path through the adapter is missing"""
    return dY @ W.mT


check_functions(
    {"dB": gradient_of_B, "dA": gradient_of_A, "dX": gradient_of_X},
    adapted,
    inputs={"X": "n, d", "W": "d, e", "A": "d, r", "B": "r, e"},
    sizes=[{"n": 3, "d": 5, "e": 4, "r": 2}, {"n": 7, "d": 3, "e": 6, "r": 1}],
    mistakes={
        "gradient_of_B": [averaged_B],
        "gradient_of_A": [averaged_A],
        "gradient_of_X": [frozen_is_forgotten, adapter_is_forgotten],
    },
)

# %% [markdown] exercise="3.3" kind="mistake" points=4 title="A residual with square weights"
# $Y = X + X U$, with $U$ of shape $d \times d$: a residual connection around a linear map, as in every
# transformer layer. One line of this derivation of $dX$ is false. Which, and what should stand there?


# %% given="3.3"
def residual(X, U):
    return X + X @ U  # n d


U, dY = at.free("U", "d, d"), at.free("dY", "n, d")
Y = at.let("Y", residual(X, U))
RESIDUAL = definition(Y)
Y_dot = differential(residual, moves(X, X_dot), U, name="Y")
wrong = claim(inner(dY, Y_dot), "the differential of ℓ")
wrong(inner(dY, X_dot + X_dot @ U), RESIDUAL.moves)
wrong(inner(dY, X_dot) + inner(dY, X_dot @ U), laws.LINEARITY)
wrong(inner(dY, X_dot) + inner(dY @ U, X_dot), laws.RIGHT)
wrong(inner(dY + dY @ U, X_dot), laws.LINEARITY)
display(wrong)

# %% answer="3.3"
### BEGIN SOLUTION
answer = correct(4, inner(dY, X_dot) + inner(dY @ U.mT, X_dot), laws.RIGHT)
### END SOLUTION


# %% checker="3.3"
def rest(line):
    line(inner(dY + dY @ U.mT, X_dot), laws.LINEARITY)


def second_line():
    """line 2 follows from line 1"""
    return correct(2, inner(dY, X_dot @ U), RESIDUAL.moves)


def residual_lost():
    """must equal the line before it"""
    return correct(4, inner(dY @ U.mT, X_dot), laws.RIGHT)


end = inner(dY + dY @ U.mT, X_dot)
check_mistake(wrong, answer, ends=end, rest=rest, mistakes=[second_line, residual_lost])

# %% [markdown]
# **Questions.** 1. What is $dX$ if one token occurs twice in the batch, and what is the gradient of its
# embedding? 2. $Y$ is computed for all tokens, and the loss looks at the last one only. What is the rank of
# $dW$, at most? 3. Two maps after one another, $Y = X W_1 W_2$: derive $dW_1$ without new laws. 4. Why does
# the gradient of $b$ not depend on $b$, $W$ or $X$, given $dY$? 5. In the second of the eight runs the wrong
# transpose is much *faster*. How can that be?
