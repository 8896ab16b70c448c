# %% [markdown]
# # 14 Norms
#
# $$Y = N \circ \gamma \qquad
# N = \frac{x}{\sqrt{\operatorname{mean}(x^2) + \varepsilon}} \quad \text{row by row}$$
#
# RMSNorm (Zhang & Sennrich 2019, eq. 4), the norm of Llama; and
#
# $$Y = N \circ \gamma + \beta \qquad
# N = \frac{x - \operatorname{mean}(x)}{\sqrt{\operatorname{var}(x) + \varepsilon}}$$
#
# LayerNorm (Ba et al. 2016, eq. 4), the norm of the first transformers. $x$ is a row of $X$ ($n \times d$), a
# token, and $\operatorname{mean}$ is the mean over a row. The row is brought to a fixed length; then each
# feature gets its own *gain* $\gamma_k$ and, in LayerNorm, its own *shift* $\beta_k$. The small number
# $\varepsilon$ guards against a division by 0. A transformer layer has two norms.
#
# A norm looks harmless, but every output of a row depends on every input of it, by way of the mean. The
# Jacobian of a row is a full $d \times d$ matrix. We will see that it is, up to a factor, a projection, and
# that a backward pass needs a mean or two in each row and no matrix.
#
# ## RMSNorm in matrices
#
# Four steps, the statistics as columns, one number per token:
#
# $$v = \tfrac{1}{d} \operatorname{rowsum}(X \circ X) + \varepsilon \qquad n \times 1$$
#
# $$r = v^{-1/2} \qquad n \times 1$$
#
# $$N = r \circ X \qquad n \times d$$
#
# $$Y = N \circ (1 \gamma) \qquad n \times d$$
#
# A column times a matrix, $r \circ X$, multiplies each row by its number. $\gamma$ is a row of $d$ numbers;
# $1 \gamma$, with $1$ a column of $n$ ones, repeats it for each token, as $1 b$ did with a bias in chapter 3.
# (In code $\gamma$ is `gain`.)

# %%
import torch

from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, differential, display, fact, inner, moves
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.pictures import picture
from gradderiv.rules.layer_norm import layer_norm, layer_norm_vjp
from gradderiv.rules.rms_norm import rms_norm, rms_norm_vjp

at = Point(n=3, d=4)
X, gain, dY = at.free("X", "n, d"), at.free("gain", "d"), at.free("dY", "n, d")
one, share = at.given("1", torch.ones(3, 1)), at.given("1/d", torch.tensor(0.25))
EPS = 1e-6
eps = at.given("eps", torch.tensor(EPS, dtype=torch.float64))


def rowsum(A):
    return A.sum(-1, keepdim=True)


def mean_square(X, share, eps):
    return share * rowsum(X * X) + eps


Y, saved = rms_norm(X, gain, eps=EPS)
Y, N, r = at.let("Y", Y), at.let("N", saved.N), at.let("r", saved.r)
v = at.let("v", mean_square(X, share, eps))
GAIN = definition(Y, N * (one @ gain.unsqueeze(0)))
NORM = definition(N, r * X)
MEAN = definition(v)
for matrix in (v, r, N, one @ gain.unsqueeze(0), Y):
    display(matrix)

# %% [markdown]
# ## The tangent of a root
#
# $r$ is not made of sums, products and quotients. But $r^2 v = 1$, and the product rule on this equation
# gives $2 r \dot{r} v + r^2 \dot{v} = 0$, so
#
# $$\dot{r} = -\tfrac{1}{2} \, r^3 \dot{v} \qquad n \times 1$$
#
# How can a machine that calculates modulo a prime check this, where half of the numbers have no square root?
# As with exp, it takes $r$ as an *opaque* function of $v$: any number, the same for the same $v$, with this
# derivative (chapter 20). What holds for any $r$ holds for the real one. What it cannot see is the relation
# $r^2 v = 1$ itself, once $v$ is computed a second time. So
# $\operatorname{mean}(N \circ N) = 1 - \varepsilon r^2$ is true and no line of this chapter may use it. None
# needs to. We state the tangent as a fact; it is compared with dual numbers through the rule.

# %%
X_dot = at.tangent(X)
Y_dot, dot = differential(rms_norm, moves(X, X_dot), gain, eps=EPS, name="Y")
v_dot = differential(mean_square, moves(X, X_dot), share, eps, name="v")
ROOT = fact(dot.r, -0.5 * r * r * r * v_dot, "ṙ = −r³ v̇ / 2")
display(v_dot)
display(dot.r)

# %% [markdown]
# ## The input
#
# $X$ moves, and with it $r$. Both stand in $N = r \circ X$, and the product rule gives two terms: the row
# moves, and its length moves. From the second, a mean over the row must be brought to the left. A factor that
# is a column comes out of a row sum, and a column that multiplies rows goes over as a row sum.

# %%
line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, dot.N * (one @ gain.unsqueeze(0))), GAIN.moves)
line(inner(dY * (one @ gain.unsqueeze(0)), dot.N), laws.ENTRYWISE)
dN = line.let("dN", dY * (one @ gain.unsqueeze(0)))
line(inner(dN, r * X_dot + dot.r * X), NORM.moves)
line(
    inner(dN, r * X_dot) - share * inner(dN, r * r * r * rowsum(X * X_dot) * X),
    ROOT,
    MEAN.moves,
    laws.LINEARITY,
)
line(inner(dN, r * X_dot) - share * inner(dN, r * r * N * rowsum(X * X_dot)), NORM)
line(inner(dN, r * X_dot) - share * inner(dN, r * N * rowsum(r * X * X_dot)), laws.ROW_FACTOR)
line(inner(dN, r * X_dot) - share * inner(dN, r * N * rowsum(N * X_dot)), NORM)
line(inner(r * dN, X_dot) - share * inner(r * dN, N * rowsum(N * X_dot)), laws.ENTRYWISE)
line(inner(r * dN, X_dot) - share * inner(N * rowsum(r * dN * N), X_dot), laws.ROW_SUM)
line(inner(r * dN, X_dot) - share * inner(r * N * rowsum(N * dN), X_dot), laws.ROW_FACTOR)
line(inner(r * (dN - share * N * rowsum(N * dN)), X_dot), laws.LINEARITY)
line.reads_off(X_dot, rms_norm_vjp(dY, saved).X)
display(line)

# %% [markdown]
# The $\tfrac{1}{2}$ of the root and the 2 of the square have cancelled, and $r^3$ has been used up: two of
# the three $r$ turned $X$ into $N$. Written with means, $\operatorname{mean}(A) = \tfrac1d
# \operatorname{rowsum}(A)$, $n \times 1$,
#
# $$dX = r \circ \big( dN - N \circ \operatorname{mean}(N \circ dN) \big) \qquad n \times d$$
#
# Compare the softmax: $dS = P \circ (dP - \operatorname{rowsum}(P \circ dP))$. Both subtract a part of the
# gradient that cannot matter: no step of the input changes the length of a row of $N$ (for $\varepsilon =
# 0$), or the sum of a row of $P$. The backward pass needs $N$ and $r$, not $X$.
#
# ## What it looks like
#
# For one token $x$, with $\hat{x}$ its row of $N$, both $1 \times d$, the Jacobian of the norm is $r \, (I -
# \hat{x}^\top \hat{x} / d)$, $d \times d$ and symmetric. With $\varepsilon = 0$ the vector $\hat{x}/\sqrt{d}$
# has length 1, and $I - \hat{x}^\top\hat{x}/d$ is the *projection* that takes away the part along $x$. The
# reason can be drawn. RMSNorm sends every $x$ to the sphere of radius $\sqrt{d}$, here with $d = 2$ a circle.
# A step along $x$ does not move its image. So the loss does not change in this direction, and the gradient
# has no part in it.


# %%
def arrows(figure):
    """The circle of all outputs, and at three inputs the gradient that comes in and the one that leaves."""
    figure.set_size_inches(5.2, 4.2)
    axis = figure.subplots()
    angle = torch.linspace(0, 6.2832, 200)
    axis.plot(2**0.5 * angle.cos(), 2**0.5 * angle.sin(), color="#808488", linewidth=1)
    for x, d in (((2.4, 0.9), (0.3, 0.9)), ((-0.6, 0.7), (-0.9, 0.1)), ((0.4, -2.2), (0.8, 0.6))):
        x, d = torch.tensor(x), torch.tensor(d)
        _, kept = rms_norm(x[None], torch.ones(2), eps=0.0)
        back = rms_norm_vjp(d[None], kept).X[0]
        axis.plot([0, x[0]], [0, x[1]], color="#808488", linestyle=":", linewidth=1)
        axis.plot(*x, "o", color="#808488")
        axis.plot(*kept.N[0], "o", color="#b2182b")
        for start, step, colour in ((kept.N[0], d, "#b2182b"), (x, back, "#2166ac")):
            axis.annotate("", start + step, start, arrowprops={"arrowstyle": "->", "color": colour})
    axis.set(aspect="equal", xlim=(-2.1, 3.1), ylim=(-2.6, 2.0))
    axis.set_title("red: $dN$ at $N$.  blue: $dX$ at $X$")


display(
    picture(
        arrows,
        alt="Three tokens with two features, and the circle of radius root 2 to which RMSNorm sends them. "
        "The incoming gradients point anywhere; the outgoing ones are at a right angle to the token, "
        "longer inside the circle and shorter outside.",
    )
)

# %% [markdown]
# The factor $r$ is the other half: a row that is twice as long gets half the gradient. It follows from
# $Y(\alpha X) = Y(X)$ by differentiation, and it is why a weight matrix before a norm learns more slowly the
# larger it has grown (Zhang & Sennrich 2019, §4).

# %%
generator = torch.Generator().manual_seed(14)


def normal(*shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


x, d, ones = normal(3, 4), normal(3, 4), torch.ones(4, dtype=torch.float64)
for factor in (1, 2, 10):
    dx = rms_norm_vjp(d, rms_norm(factor * x, ones, eps=0.0)[1]).X
    print(
        f"X times {factor:2}: |dX| = {dx.norm():.4f}, largest <dx_i, x_i> = {(dx * x).sum(-1).abs().max():.0e}"
    )

# %% [markdown]
# ## The gain
#
# Only $\gamma$ moves. It is repeated for all rows, so its gradient adds up all rows, like that of a bias.

# %%
gain_dot = at.tangent(gain)
Y_dot, _ = differential(rms_norm, X, moves(gain, gain_dot), eps=EPS, name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, N * (one @ gain_dot.unsqueeze(0))), GAIN.moves)
line(inner(dY * N, one @ gain_dot.unsqueeze(0)), laws.ENTRYWISE)
line(inner((dY * N).sum(0), gain_dot), laws.BIAS)
line.reads_off(gain_dot, rms_norm_vjp(dY, saved).gain)
display(line)

# %% [markdown]
# $d\gamma = (dY \circ N)^\top 1$: the column sums of $dY \circ N$, $d$ numbers.
#
# ## LayerNorm is RMSNorm of centred rows
#
# To subtract the mean of each row is linear: $X - \operatorname{mean}(X) = X C$ with
#
# $$C = I - \tfrac{1}{d} \, 1 1^\top \qquad d \times d$$
#
# $1$ here a column of $d$ ones, so that $1 1^\top$ is a matrix of ones. $C$ is symmetric, and centring twice
# changes nothing, $C C = C$: another projection. With $X C$ in the place of $X$ LayerNorm *is* RMSNorm, plus
# $\beta$. So the chain of RMSNorm holds with $X C$ and $\dot{X} C$ for $X$ and $\dot{X}$, up to $\langle r
# \circ (\dots), \dot{X} C \rangle$; we cite it, and the machine compares its result here. Then $C$ goes over
# as $C^\top = C$. One simplification is left. The rows of $N$ are centred already, $N C = N$, so of the two
# terms only the first is changed.

# %%
shift = at.free("shift", "d")
C = at.given("C", torch.eye(4, dtype=torch.float64) - torch.full((4, 4), 0.25, dtype=torch.float64))
Y, saved = layer_norm(X, gain, shift, eps=EPS)
Y, N, r = at.let("Y", Y), at.let("N", saved.N), at.let("r", saved.r)
GAIN = definition(Y, N * (one @ gain.unsqueeze(0)) + one @ shift.unsqueeze(0))
NORM = definition(N, r * (X @ C))
SYMMETRIC = fact(C.mT, C)
CENTRED = fact(N @ C, N)

Y_dot, dot = differential(layer_norm, moves(X, X_dot), gain, shift, eps=EPS, name="Y")
dN = at.let("dN", dY * (one @ gain.unsqueeze(0)))
RMS = fact(
    inner(dN, dot.N),
    inner(r * (dN - share * N * rowsum(N * dN)), X_dot @ C),
    "the chain of RMSNorm, with X C for X",
)

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, dot.N * (one @ gain.unsqueeze(0))), GAIN.moves)
line(inner(dN, dot.N), laws.ENTRYWISE, definition(dN))
line(inner(r * (dN - share * N * rowsum(N * dN)), X_dot @ C), RMS)
line(inner((r * (dN - share * N * rowsum(N * dN))) @ C, X_dot), laws.RIGHT, SYMMETRIC)
line(inner(r * ((dN - share * N * rowsum(N * dN)) @ C), X_dot), laws.ROW_SCALE)
line(inner(r * (dN @ C - share * (N * rowsum(N * dN)) @ C), X_dot), laws.LINEARITY)
line(inner(r * (dN @ C - share * rowsum(N * dN) * (N @ C)), X_dot), laws.ROW_SCALE)
line(inner(r * (dN @ C - share * N * rowsum(N * dN)), X_dot), CENTRED)
line.reads_off(X_dot, layer_norm_vjp(dY, saved).X)
display(line)

# %% [markdown]
# With means, $dX = r \circ (dN - \operatorname{mean}(dN) - N \circ \operatorname{mean}(N \circ dN))$. Two
# directions are taken away from each row: that of $1$, as a constant added to all features does not change
# $Y$, and that of $\hat{x}$. So the rows of $dX$ add up to 0, which is a check that costs nothing.
#
# The shift:

# %%
shift_dot = at.tangent(shift)
Y_dot, _ = differential(layer_norm, X, gain, moves(shift, shift_dot), eps=EPS, name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, one @ shift_dot.unsqueeze(0)), GAIN.moves)
line(inner(dY.sum(0), shift_dot), laws.BIAS)
line.reads_off(shift_dot, layer_norm_vjp(dY, saved).shift)
display(line)

# %% [markdown]
# ## With numbers
#
# The second token of our example is $(0, 1, 0, 1)$. Its mean is 1/2, its variance 1/4, so $r = 2$ and
# $N = (-1, 1, -1, 1)$. Let the loss be the first output of this token, $\gamma = 1$, $\varepsilon = 0$. Then
# $dN = (1, 0, 0, 0)$, $\operatorname{mean}(dN) = 1/4$ and $\operatorname{mean}(N \circ dN) = -1/4$, and
#
# $$dx = 2 \, \big( (1, 0, 0, 0) - \tfrac14 (1, 1, 1, 1) + \tfrac14 (-1, 1, -1, 1) \big) = (1, 0, -1, 0) .$$
#
# The first output grows with $x_1$ and falls with $x_3$, which pushes the mean up; the other two do both at
# once, and the effects cancel.

# %%
EXAMPLE = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 1], [1, 1, 0, 0]], dtype=torch.float64)
first = torch.zeros(3, 4, dtype=torch.float64)
first[1, 0] = 1
for name, norm, backward in (
    ("RMSNorm", rms_norm, rms_norm_vjp),
    ("LayerNorm", layer_norm, layer_norm_vjp),
):
    _, kept = norm(EXAMPLE, ones, eps=0.0)
    dx = backward(first, kept).X[1]
    print(f"{name:9} N", [round(a, 4) for a in kept.N[1].tolist()], " dx", [round(a, 4) for a in dx.tolist()])

# %% [markdown]
# In RMSNorm the first feature of this token is 0, so its output does not depend on the other features yet,
# and $dx$ has one entry.
#
# ## In a layer
#
# A transformer puts the norm *inside* a residual block: $H = X + f(\operatorname{norm}(X))$. $X$ is read
# twice, and the two paths add up:
#
# $$dX = dH + \operatorname{norm\_vjp}(f\_\mathrm{vjp}(dH)) \qquad n \times d$$
#
# Only the second term has seen the projection. Chapter 16 derives it for the layer as a whole.

# %%


def block(X, W):
    """H = X + norm(X) W, and what the way back needs."""
    N, kept = rms_norm(X, ones)
    return X + N @ W, kept


def train(through_norm, X, target, weights, steps=150, rate=0.05):
    """The loss before and after gradient descent; through_norm says what of dH is sent through the norm."""
    losses = []
    for _ in range(steps):
        H, kept = X, []
        for W in weights:
            H, k = block(H, W)
            kept.append(k)
        losses.append(float(((H - target) ** 2).mean()))
        dH, new = 2 * (H - target) / H.numel(), []
        for W, k in zip(reversed(weights), reversed(kept), strict=True):
            new.append(W - rate * 4 * k.N.mT @ dH)
            dH = through_norm(dH, dH @ W.mT, k)
        weights = new[::-1]
    return losses


ways = {
    "dH + norm_vjp(dN)": lambda dH, dN, k: dH + rms_norm_vjp(dN, k).X,
    "norm_vjp(dH + dN)": lambda dH, dN, k: rms_norm_vjp(dH + dN, k).X,
}
X8, target, weights = normal(8, 4), normal(8, 4), [0.3 * normal(4, 4) for _ in range(6)]
for name, way in ways.items():
    losses = train(way, X8, target, weights)
    print(f"{name}: loss {losses[0]:.3f}, after 150 steps {losses[-1]:.3f}")

# %% [markdown]
# ```{admonition} Common mistake: the residual gradient through the norm
# :class: warning
# $dX = \operatorname{norm\_vjp}(dH + dN)$: the gradient of the residual path is added before the norm's
# backward instead of after. All shapes fit. The loss falls, but stays more than seven times as high (above:
# six blocks, the same start, the same rate), since every block again takes away the part along $x$ and scales
# by $r$: the residual stream no longer carries the gradient to the first layers unchanged. What flags it: the
# pairing $\langle dY, \dot{Y} \rangle = \langle dX, \dot{X} \rangle$ with an $\dot{X}$ along $X$, for which
# the norm does not move at all. Seen in: quack #53, where a fused norm adds the residual.
# ```
#
# ```{admonition} Common mistake: $\gamma$ for $1 + \gamma$
# :class: warning
# Gemma stores the gain as $1 + \gamma$, with $\gamma = 0$ at the start. A backward that multiplies by
# $\gamma$ sends *nothing* back through the norm of a fresh model ($dN = dY \circ (1 \gamma) = 0$, first line
# below), and later a gradient with wrong proportions. $d\gamma$ is right all the same, so the gains learn,
# and hide it. At $\gamma = 1$ the whole gradient is half of what it should be, which looks like a learning
# rate (last line). A test of the plain gain, without the 1, passes with either. What flags it: a test with
# the option on, $\gamma$ of different sizes, and 0 among them. Seen in: Liger #74.
# ```

# %%
for value in (0.0, 0.1, 1.0):
    _, kept = rms_norm(x, value * ones, offset=1.0)
    right = rms_norm_vjp(d, kept).X
    wrong = rms_norm_vjp(d, kept._replace(gain=value * ones)).X
    print(f"gain stored as {value}: |dX| = {right.norm():.3f}, with the slip {wrong.norm():.3f}")

# %% [markdown]
# ## Exercises

# %% [markdown] exercise="14.1" kind="chain" points=3 title="An identity for gain and shift"
# LayerNorm has $d\gamma = (dY \circ N)^\top 1$ and $d\beta = dY^\top 1$, $d$ numbers each. Show
# $\langle d\gamma, \gamma \rangle + \langle d\beta, \beta \rangle = \langle dY, Y \rangle$, a check that a
# program can make without any derivative. Nothing moves; the last reason is `GAIN`, the definition $Y = N
# \circ (1 \gamma) + 1 \beta$. (`gain` is $\gamma$, `shift` is $\beta$, and `one @ gain.unsqueeze(0)` is $1
# \gamma$.)

# %% given="14.1"
line = chain(inner((dY * N).sum(0), gain) + inner(dY.sum(0), shift), "the gradients of gain and shift")

# %% answer="14.1"
### BEGIN SOLUTION
line(inner(dY * N, one @ gain.unsqueeze(0)) + inner(dY, one @ shift.unsqueeze(0)), laws.BIAS)
line(inner(dY, N * (one @ gain.unsqueeze(0))) + inner(dY, one @ shift.unsqueeze(0)), laws.ENTRYWISE)
line(inner(dY, N * (one @ gain.unsqueeze(0)) + one @ shift.unsqueeze(0)), laws.LINEARITY)
line(inner(dY, Y), GAIN)
### END SOLUTION


# %% checker="14.1"
def gain_twice(line):
    """must equal the line before it"""
    line(inner(dY * N, one @ gain.unsqueeze(0)) + inner(dY, one @ gain.unsqueeze(0)), laws.BIAS)


def other_law(line):
    """must follow by"""
    line(inner(dY * N, one @ gain.unsqueeze(0)) + inner(dY, one @ shift.unsqueeze(0)), laws.RIGHT)


def minus(line):
    """sign"""
    line(inner(dY * N, one @ gain.unsqueeze(0)) + inner(dY, one @ shift.unsqueeze(0)), laws.BIAS)
    line(inner(dY, N * (one @ gain.unsqueeze(0)) - one @ shift.unsqueeze(0)), laws.ENTRYWISE, laws.LINEARITY)


check_chain(line, ends=inner(dY, Y), mistakes=[gain_twice, other_law, minus])

# %% [markdown] exercise="14.2" kind="function" points=4 title="The gradient of LayerNorm"
# Write $dX$, $n \times d$, of LayerNorm from $dY$ ($n \times d$), $N$ ($n \times d$), the inverse deviation
# $r$ ($n \times 1$) and $\gamma$ ($d$ numbers).


# %% answer="14.2"
def norm_backward(dY, N, r, gain):
    """dX, n × d."""
    ### BEGIN SOLUTION
    dN = dY * gain
    return r * (dN - dN.mean(-1, keepdim=True) - N * (N * dN).mean(-1, keepdim=True))
    ### END SOLUTION


# %% checker="14.2"
def forward_norm(X, gain):
    centred = X - X.mean(-1, keepdim=True)
    r = torch.rsqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)
    return {"N": centred * r, "r": r, "Y": centred * r * gain}


def constant_statistics(dY, N, r, gain):
    """mean and variance taken for constants"""
    return r * dY * gain


def constant_variance(dY, N, r, gain):
    """the variance taken for a constant"""
    dN = dY * gain
    return r * (dN - dN.mean(-1, keepdim=True))


def not_centred(dY, N, r, gain):
    """the gradient of RMSNorm: the mean's path is missing"""
    dN = dY * gain
    return r * (dN - N * (N * dN).mean(-1, keepdim=True))


def gain_late(dY, N, r, gain):
    """the gain comes after the projection, it belongs before"""
    return r * (dY - dY.mean(-1, keepdim=True) - N * (N * dY).mean(-1, keepdim=True)) * gain


check_functions(
    {"dX": norm_backward},
    forward_norm,
    inputs={"X": "n, d", "gain": "d"},
    sizes=[{"n": 2, "d": 5}, {"n": 4, "d": 3}],
    mistakes=[constant_statistics, constant_variance, not_centred, gain_late],
)

# %% [markdown] exercise="14.3" kind="mistake" points=4 title="RMSNorm, in fewer lines"
# Somebody derives $dX$ of RMSNorm, with a shorter way to write $\dot{r}$. Which line is false, and what
# should stand there?

# %% given="14.3"
Y, saved = rms_norm(X, gain, eps=EPS)
N, r = at.let("N", saved.N), at.let("r", saved.r)
dN = at.let("dN", dY * (one @ gain.unsqueeze(0)))
NORM, COTANGENT = definition(N, r * X), definition(dN)
Y_dot, dot = differential(rms_norm, moves(X, X_dot), gain, eps=EPS, name="Y")
GAIN = definition(at.let("Y", Y), N * (one @ gain.unsqueeze(0)))
r_dot = dot.r
MEAN = fact(r_dot, -share * r * r * rowsum(N * X_dot), "ṙ = −r² mean(N ∘ Ẋ)")

wrong = claim(inner(dY, Y_dot), "the differential of ℓ")
wrong(inner(dN, dot.N), GAIN.moves, laws.ENTRYWISE, COTANGENT)
wrong(inner(dN, r * X_dot + r_dot * X), NORM.moves)
wrong(inner(dN, r * X_dot - share * r * r * rowsum(N * X_dot) * X), MEAN)
wrong(inner(dN, r * X_dot - share * r * rowsum(N * X_dot) * N), NORM)
wrong(inner(r * dN, X_dot) - share * inner(r * dN, N * rowsum(N * X_dot)), laws.ENTRYWISE, laws.LINEARITY)
wrong(inner(r * dN, X_dot) - share * inner(r * dN * N * N, X_dot), laws.ROW_SUM)
wrong(inner(r * (dN - share * dN * N * N), X_dot), laws.LINEARITY)
display(wrong)

# %% answer="14.3"
### BEGIN SOLUTION
answer = correct(7, inner(r * dN, X_dot) - share * inner(N * rowsum(r * dN * N), X_dot), laws.ROW_SUM)
### END SOLUTION


# %% checker="14.3"
def rest(line):
    line(inner(r * dN, X_dot) - share * inner(r * N * rowsum(N * dN), X_dot), laws.ROW_FACTOR)
    line(inner(r * (dN - share * N * rowsum(N * dN)), X_dot), laws.LINEARITY)


def line_four():
    """line 4 follows from line 3"""
    return correct(4, inner(dN, r * X_dot - share * r * r * rowsum(N * X_dot) * X), MEAN)


def root_of_the_sum():
    """differ"""
    return correct(7, inner(r * dN, X_dot) - share * inner(N * rowsum(dN * N), X_dot), laws.ROW_SUM)


check_mistake(
    wrong, answer, X_dot, rms_norm_vjp(dY, saved).X, rest=rest, mistakes=[line_four, root_of_the_sum]
)

# %% [markdown]
# **Questions.** 1. Show that the rows of $dX$ of LayerNorm add up to 0, from $C 1 = 0$. 2. What are $dX$ and
# $N$ where all entries of a row are equal, in LayerNorm with $\varepsilon > 0$? 3. QK-norm puts RMSNorm on
# every query and key. What does it do to the identity
# $\langle dW^Q, W^Q \rangle = \langle dW^K, W^K \rangle$? 4. Post-norm, $Y = \operatorname{norm}(X + f(X))$,
# was the layer of 2017. How often does the gradient of a stack of 12 layers pass a projection, on its
# shortest way to the input?
