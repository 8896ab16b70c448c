# %% [markdown]
# # 15 Feed-forward, broadcasting, embeddings
#
# $$Y = \big( f(X W^G) \circ (X W^U) \big) W^D$$
#
# is the gated feed-forward of Llama, with $f(x) = x \, \sigma(x)$ (SwiGLU: Shazeer 2020, eq. 6), and
#
# $$Y = f(X W^U + b^U) W^D + b^D$$
#
# the plain one (Vaswani et al. 2017, eq. 2). $X$ is $n \times d_{\mathrm{model}}$, $W^G$ and $W^U$ are
# $d_{\mathrm{model}} \times d_{\mathrm{ff}}$, $W^D$ is $d_{\mathrm{ff}} \times d_{\mathrm{model}}$. Most of
# the numbers of a language model stand in these three matrices. Every token goes through them by itself: rows
# do not meet.
#
# This chapter collects the parts of a transformer that are not attention: functions of one number, the gate,
# products of tensors with many axes, and the table from which tokens become vectors. Each is short, and each
# hides one thing that goes wrong. The next chapter puts them together. Both follow a Chinese article on the
# transformer's structure that reads `modeling_llama.py` of transformers line by line, forwards; we read it
# backwards.
#
# ## A function of one number
#
# $Y = f(X)$ entry by entry. Entry $(i, j)$ of $Y$ moves only if entry $(i, j)$ of $X$ does,
# $\dot{Y} = f'(X) \circ \dot{X}$. The Jacobian is diagonal, a diagonal matrix is its own transpose, and so
#
# $$dX = f'(X) \circ dY \qquad n \times d$$
#
# | $f$ | $f(x)$ | $f'(x)$ | source |
# |---|---|---|---|
# | relu | $\max(x, 0)$ | 1 for $x > 0$, else 0 | Nair & Hinton 2010 |
# | silu | $x \, \sigma(x)$ | $\sigma + x \, \sigma (1 - \sigma)$ | Elfwing et al. 2017 |
# | gelu | $x \, \Phi(x)$ | $\Phi + x \, \varphi$ | Hendrycks & Gimpel 2016 |
#
# $\sigma$ is the logistic function $1/(1 + e^{-x})$, $\Phi$ the normal distribution and $\varphi$ its
# density. This is the case in which taking the diagonal is right. Softmax is not such a function: there every
# entry of a row depends on every other (chapter 4).

# %%
import torch

from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, differential, display, fact, inner, moves
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.pictures import heat, picture
from gradderiv.rules.activation import FUNCTIONS, activate, activate_vjp
from gradderiv.rules.embedding import embedding, embedding_vjp
from gradderiv.rules.entrywise import multiply, multiply_vjp
from gradderiv.rules.matmul import matmul, matmul_vjp
from gradderiv.rules.multihead import multihead
from gradderiv.rules.rms_norm import rms_norm
from gradderiv.rules.transformer import transformer_layer, transformer_layer_vjp


def curves(figure):
    """f on the left, f′ on the right."""
    figure.set_size_inches(7.5, 2.8)
    x = torch.linspace(-4, 4, 161)
    for axis, part, title in zip(figure.subplots(1, 2), ("f", "first"), ("$f$", "$f'$"), strict=True):
        for name, style in (("relu", ":"), ("silu", "-"), ("gelu", "--")):
            axis.plot(x, getattr(FUNCTIONS[name], part)(x), style, label=name)
        axis.set_title(title)
        axis.legend(frameon=False)


display(
    picture(
        curves,
        alt="Relu, silu and gelu, and their derivatives. That of relu jumps from 0 to 1; those of silu "
        "and gelu are smooth, slightly below 0 on the left and above 1 on the right.",
    )
)

# %% [markdown]
# ## SiLU, in full
#
# $\sigma$ is a quotient with an exponential in it, so the product rule is all we need. With
# $\sigma = 1 \oslash (1 + \exp(-X))$ for the matrix, $n \times d$, it first gives
# $\dot{\sigma} = \sigma \circ \sigma \circ \exp(-X) \circ \dot{X}$. Then one equation is used,
# $\exp(-X) \circ \sigma = 1 - \sigma$, which is the definition of $\sigma$ multiplied by its denominator.

# %%
at = Point(n=3, d=4)
X, dY = at.free("X", "n, d"), at.free("dY", "n, d")


def logistic(X):
    return 1 / (1 + torch.exp(-X))


Y, saved = activate(X, function="silu")
Y, sigma = at.let("Y", Y), at.let("sigma", logistic(X))
SILU, SIGMA = definition(Y, X * sigma), definition(sigma)
COMPLEMENT = fact(1 - sigma, torch.exp(-X) * sigma)

X_dot = at.tangent(X)
Y_dot, _ = differential(activate, moves(X, X_dot), function="silu", name="Y")
sigma_dot = differential(logistic, moves(X, X_dot), name="sigma")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, X_dot * sigma + X * sigma_dot), SILU.moves)
line(inner(dY, X_dot * sigma + X * (sigma * sigma * torch.exp(-X) * X_dot)), SIGMA.moves)
line(inner(dY, X_dot * sigma + X * sigma * (1 - sigma) * X_dot), COMPLEMENT)
line(inner(dY, (sigma + X * sigma * (1 - sigma)) * X_dot), laws.LINEARITY)
line(inner((sigma + X * sigma * (1 - sigma)) * dY, X_dot), laws.ENTRYWISE)
line.reads_off(X_dot, activate_vjp(dY, saved).X)
display(line)

# %% [markdown]
# ## The gate
#
# $F = A \circ B$, $n \times d$: two factors of one shape, both from the same token. The product rule gives
# one term for each, and each goes back through the *value of the other*.

# %%
A, B, dF = at.free("A", "n, d"), at.free("B", "n, d"), at.free("dF", "n, d")
F, saved = multiply(A, B)
GATE = definition(at.let("F", F), A * B)
A_dot = at.tangent(A)
F_dot, _ = differential(multiply, moves(A, A_dot), B, name="F")

line = chain(inner(dF, F_dot), "the differential of ℓ")
line(inner(dF, A_dot * B), GATE.moves)
line(inner(dF * B, A_dot), laws.ENTRYWISE, note="A ∘ B = B ∘ A")
line.reads_off(A_dot, multiply_vjp(dF, saved).A)
display(line)

# %% [markdown]
# Where the gate $f(G)$ is near 0, the other factor learns nothing from this token, and the reverse. That is
# what makes it a gate, in both directions.
#
# ## The feed-forward, whole
#
# Now the gate matrix $W^G$ in its place, in Llama's layer. What comes before the feed-forward (chapter 16)
# gives $H$, the residual stream, and $N$, its RMSNorm, both $n \times d_{\mathrm{model}}$. Neither depends on
# $W^G$. With
#
# $$G = N W^G \qquad U = N W^U \qquad A = f(G) = G \circ \sigma \qquad
# F = A \circ U \qquad n \times d_{\mathrm{ff}}$$
#
# the output is $Y = H + F W^D$. The chain walks back through $W^D$, the gate, the activation and $W^G$, one
# law for each. The tangent of $f$ is what we just derived.

# %%
at = Point(n=3, d_model=4, h=2, d_k=5, d_ff=7)
X, dY = at.free("X", "n, d_model"), at.free("dY", "n, d_model")
W_Q, W_K, W_V = (at.free(name, "d_model, h*d_k") for name in ("W_Q", "W_K", "W_V"))
W_O, W_D = at.free("W_O", "h*d_k, d_model"), at.free("W_D", "d_ff, d_model")
W_G, W_U = at.free("W_G", "d_model, d_ff"), at.free("W_U", "d_model, d_ff")
gain_1, gain_2 = at.free("gain_1", "d_model"), at.free("gain_2", "d_model")
tau = at.free("scale")
options = {"style": "llama", "n_heads": 2, "scale": tau}
before = (X, W_Q, W_K, W_V, W_O)

Y, saved = transformer_layer(*before, W_U, W_D, gain_1, gain_2, W_G=W_G, **options)
attended, _ = multihead(rms_norm(X, gain_1, eps=1e-5)[0], *before[1:], n_heads=2, scale=tau)
H = at.let("H", X + attended)
N = at.let("N", rms_norm(H, gain_2, eps=1e-5)[0])
G, U = at.let("G", N @ W_G), at.let("U", N @ W_U)
A, sigma = at.let("A", activate(G, function="silu")[0]), at.let("sigma", logistic(G))
F = at.let("F", A * U)
OUTPUT = definition(at.let("Y", Y), H + F @ W_D)
GATE, GATE_IN = definition(F), definition(G)

W_G_dot = at.tangent(W_G)
Y_dot, _ = differential(
    transformer_layer, *before, W_U, W_D, gain_1, gain_2, W_G=moves(W_G, W_G_dot), **options, name="Y"
)
G_dot = at.let("G_dot", N @ W_G_dot)
A_dot, _ = differential(activate, moves(G, G_dot), function="silu", name="A")
SILU = fact(A_dot, (sigma + G * sigma * (1 - sigma)) * G_dot, "the tangent of SiLU, above")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, (A_dot * U) @ W_D), OUTPUT.moves, GATE.moves)
line(inner(dY @ W_D.mT, A_dot * U), laws.RIGHT)
dF = line.let("dF", dY @ W_D.mT)
line(inner(dF * U, A_dot), laws.ENTRYWISE)
line(inner(dF * U, (sigma + G * sigma * (1 - sigma)) * G_dot), SILU)
line(inner(dF * U * (sigma + G * sigma * (1 - sigma)), G_dot), laws.ENTRYWISE)
dG = line.let("dG", dF * U * (sigma + G * sigma * (1 - sigma)))
line(inner(dG, N @ W_G_dot), GATE_IN.moves)
line(inner(N.mT @ dG, W_G_dot), laws.LEFT)
line.reads_off(W_G_dot, transformer_layer_vjp(dY, saved).W_G)
display(line)

# %% [markdown]
# Dimensions: $N^\top dG$ is $(d_{\mathrm{model}} \times n)(n \times d_{\mathrm{ff}})$. $W^U$ is an exercise.
# $W^D$ takes one line, $F^\top dY$; and $N$, read by both, collects
# $dN = dG \, (W^G)^\top + dU \, (W^U)^\top$.
#
# ```{admonition} Common mistake: half of the product rule
# :class: warning
# $f(x) = x\, \sigma(x)$ has $x$ in it twice. A backward pass that takes $\sigma$ for $f'$ forgets the term
# $G \circ \sigma \circ (1 - \sigma)$. All shapes fit, and all signs are right where $G > 0$. At $G = 0$ both
# give $1/2$, so that a test at small initialisation hardly sees it: the table shows how far off the slope is
# elsewhere. Nor does the loss: below, a feed-forward learns what another one does, with both. (Met in
# classrooms.)
# ```

# %%
print("   x   f'(x) of silu   sigma(x) alone")
for value in (-4.0, -1.0, 0.0, 0.1, 1.0, 4.0):
    x = torch.tensor(value, dtype=torch.float64)
    print(f"{value:5.1f}  {FUNCTIONS['silu'].first(x):12.4f}  {torch.sigmoid(x):14.4f}")


def learn(slope, steps=(0, 20, 100, 400), rate=0.3):
    """The loss after so many steps of gradient descent, with this for f′(G)."""
    draw = torch.Generator().manual_seed(3)
    rows = torch.randn(64, 4, generator=draw, dtype=torch.float64)
    teacher, student = (
        [torch.randn(*k, generator=draw, dtype=torch.float64) / k[0] ** 0.5 for k in ((4, 7), (4, 7), (7, 4))]
        for _ in range(2)
    )

    def forward(gate, up, down):
        G, U = rows @ gate, rows @ up
        return G, U, (FUNCTIONS["silu"].f(G) * U) @ down

    target, losses = forward(*teacher)[-1], []
    for _ in range(steps[-1] + 1):
        G, U, output = forward(*student)
        losses.append((output - target).square().mean().item())
        dY = (output - target) / len(rows)
        dF, f = dY @ student[2].mT, FUNCTIONS["silu"].f(G)
        found = rows.mT @ (dF * U * slope(G)), rows.mT @ (dF * f), (f * U).mT @ dY
        student = [W - rate * dW for W, dW in zip(student, found, strict=True)]
    return [losses[i] for i in steps]


print("step               0       20      100      400")
for name, slope in (("f'(G)", FUNCTIONS["silu"].first), ("sigma(G)", torch.sigmoid)):
    print(f"{name:10s}", *(f"{loss:8.4f}" for loss in learn(slope)))

# %% [markdown]
# ## Products of tensors with many axes
#
# `torch.matmul` multiplies the last two axes and treats all others as a batch; batch axes that are missing,
# or 1, are *broadcast*. The article's example: $(1000, 500, 99, 11)$ times $(500, 11, 99)$ is
# $(1000, 500, 99, 99)$, as the second operand is repeated along the first axis. And $(j, 1, n, n)$ times
# $(k, n, n)$ is $(j, k, n, n)$: there both are repeated.
#
# What is repeated forwards is summed backwards, as for the bias in chapter 3, the shared keys in chapter 11
# and $\gamma$ in chapter 14. Here it is for a product with two matrices in a batch, $A_1$ and $A_2$, $n
# \times d$, and *one* $B$, $d \times e$:
#
# $$C_1 = A_1 B \qquad C_2 = A_2 B \qquad n \times e$$
#
# The inner product of two batches is the sum over the matrices in them, by definition: it adds up all
# entries. We state that as a fact.

# %%
pair = Point(k=2, n=3, d=4, e=5)
A_1, A_2, B = pair.free("A_1", "n, d"), pair.free("A_2", "n, d"), pair.free("B", "d, e")
dC_1, dC_2 = pair.free("dC_1", "n, e"), pair.free("dC_2", "n, e")
A_all, dC_all = pair.let("A", torch.stack([A_1, A_2])), pair.let("dC", torch.stack([dC_1, dC_2]))

C, saved_C = matmul(A_all, B)
C_1, C_2 = pair.let("C_1", C[0]), pair.let("C_2", C[1])
FIRST, SECOND = definition(C_1, A_1 @ B), definition(C_2, A_2 @ B)

B_dot = pair.tangent(B)
C_dot, _ = differential(matmul, A_all, moves(B, B_dot), name="C")
C_1_dot, C_2_dot = pair.let("C_1_dot", C_dot[0]), pair.let("C_2_dot", C_dot[1])
BATCH = fact(inner(dC_all, C_dot), inner(dC_1, C_1_dot) + inner(dC_2, C_2_dot), "matrix by matrix")

line = chain(inner(dC_all, C_dot), "the differential of ℓ")
line(inner(dC_1, A_1 @ B_dot) + inner(dC_2, A_2 @ B_dot), BATCH, FIRST.moves, SECOND.moves)
line(inner(A_1.mT @ dC_1, B_dot) + inner(A_2.mT @ dC_2, B_dot), laws.LEFT)
line(inner(A_1.mT @ dC_1 + A_2.mT @ dC_2, B_dot), laws.LINEARITY)
line.reads_off(B_dot, matmul_vjp(dC_all, saved_C).B)
display(line)

# %% [markdown]
# The sum over the batch needs no loop. Put $A_1$ on top of $A_2$, and $dC_1$ on top of $dC_2$: the product of
# these tall matrices, $d \times 2n$ times $2n \times e$, adds up the batch by itself. That is how the rule
# computes it, and why a linear layer may see all tokens of all texts as one long matrix.

# %%
tall = torch.cat([A_1, A_2]).mT @ torch.cat([dC_1, dC_2])
display(fact(tall, A_1.mT @ dC_1 + A_2.mT @ dC_2, "the tall product adds up the batch").statement)

generator = torch.Generator().manual_seed(15)
A5, B5 = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((4, 1, 3, 3), (2, 3, 3)))
C5, kept = matmul(A5, B5)
dA5, dB5 = matmul_vjp(torch.ones_like(C5), kept)
print("A", tuple(A5.shape), " B", tuple(B5.shape), " C", tuple(C5.shape))
print("dA", tuple(dA5.shape), "a sum over k = 2;  dB", tuple(dB5.shape), "a sum over j = 4")

# %% [markdown]
# ## Embeddings
#
# $$X = T E + \Pi R$$
#
# $X$ is $n \times d$. $E$ is a table with one row for each of $n_{\mathrm{vocab}}$ tokens,
# $n_{\mathrm{vocab}} \times d$, and $R$ one with a row for each of $n_{\mathrm{pos}}$ positions (Vaswani et
# al. 2017, §3.4 and §3.5; Radford et al. 2019). Row $i$ of $T$, $n \times n_{\mathrm{vocab}}$, has a 1 in the
# column of token $t_i$: the gather of chapter 13 again. A program indexes, `E[tokens]`, and never builds $T$;
# the formula is the same. $\Pi$, $n \times n_{\mathrm{pos}}$, picks the positions in use.

# %%
tokens = torch.tensor([1, 0, 1, 1, 2])
text = Point(n=5, n_vocab=4, d=3, n_pos=7)
E, R, dX = text.free("E", "n_vocab, d"), text.free("R", "n_pos, d"), text.free("dX", "n, d")
T = text.given("T", (tokens[:, None] == torch.arange(4)).double())
Pi = text.given("Pi", torch.eye(7)[:5].double())
X_0, saved_E = embedding(E, R, tokens=tokens)
LOOKUP = definition(text.let("X", X_0), T @ E + Pi @ R)

E_dot = text.tangent(E)
X_0_dot, _ = differential(embedding, moves(E, E_dot), R, tokens=tokens, name="X")

line = chain(inner(dX, X_0_dot), "the differential of ℓ")
line(inner(dX, T @ E_dot), LOOKUP.moves)
line(inner(T.mT @ dX, E_dot), laws.LEFT)
line.reads_off(E_dot, embedding_vjp(dX, saved_E).table)
display(line)

# %% [markdown]
# $dE = T^\top dX$, $n_{\mathrm{vocab}} \times d$: a scatter. Each row of $dE$ is the *sum* of the rows of
# $dX$ in the places of its token. A token that does not occur gets a row of zeros, so most of $dE$ is 0 in
# every step. The gradient of $R$ is $\Pi^\top dX$ for one text, and over a batch of texts the sum of these.

# %%
ones = torch.ones(5, 3, dtype=torch.float64)
hot = (tokens[:, None] == torch.arange(4)).double()
display(
    heat(
        {"T": hot, r"T^\top dX": hot.mT @ ones},
        alt="T has one 1 in each of five rows, three of them in the column of token 1. T transposed times "
        "a matrix of ones: the row of token 1 is 3, those of tokens 0 and 2 are 1, that of token 3, "
        "which does not occur, is 0.",
    )
)

# %% [markdown]
# ```{admonition} Common mistake: tied tables
# :class: warning
# Many models use the table twice: $X = T E$ at the bottom, and scores of the next token $Z = Y E^\top$, $n
# \times n_{\mathrm{vocab}}$, at the top. $E$ is read twice, so $dE$ is a sum of two terms, $T^\top dX +
# dZ^\top Y$. It is the tied weight of chapter 3, with the same slip: the two gradients are kept in a list,
# and one of them is taken, or each is clipped alone. Below, for random numbers, what each contributes: either
# one points nearly along $dE$, so descent by one term still goes downhill. What flags it: $\langle dE, E
# \rangle$ against a finite difference in the direction $E$, one number. Seen in: opacus #413.
# ```

# %%
table = torch.randn(4, 3, generator=generator, dtype=torch.float64)
Y1 = torch.tanh(hot @ table)
dZ = torch.softmax(Y1 @ table.mT, -1) - hot.roll(-1, 0)  # the next token is asked for
below, above = hot.mT @ ((dZ @ table) * (1 - Y1**2)), dZ.mT @ Y1
total = below + above
for name, part in (("T^T dX", below), ("dZ^T Y", above), ("their sum", total)):
    cosine = (part * total).sum() / part.norm() / total.norm()
    print(f"{name:10} norm {part.norm():.3f}, cosine with dE {cosine:.2f}")

# %% [markdown]
# ## With numbers
#
# The first token of our example is $(1, 0, 2, 0)$. Let $W^G$ be the identity, $W^U$ a matrix that adds up all
# features into each column, and $W^D$ the identity, all $4 \times 4$. Then $U = 3$ in every column and
# $G = x$. At $G = 0$ we have $f = 0$ and $f' = 1/2$. With $dY = (0, 1, 0, 0)$: $dG_2 = U_2 f'(0) = 3/2$,
# although the output there is 0; $dU_2 = f(0) = 0$. And so $dx = (0, 3/2, 0, 0)$: an entry that is switched
# off is still told which way to go. (With relu it would hear nothing: $f'(0) = 0$.)

# %%
x = torch.tensor([[1.0, 0, 2, 0]], dtype=torch.float64)
d = torch.tensor([[0.0, 1, 0, 0]], dtype=torch.float64)
G4, W_all = x, torch.ones(4, 4, dtype=torch.float64)
for name in ("silu", "relu"):
    value, kept = activate(G4, function=name)
    (dG4,) = activate_vjp(d * (x @ W_all), kept)
    dx = dG4 + (d * value) @ W_all.mT
    print(f"{name}: output {[round(v, 4) for v in (value * (x @ W_all))[0].tolist()]}, dx {dx[0].tolist()}")

# %% [markdown]
# ## Exercises

# %% [markdown] exercise="15.1" kind="chain" points=4 title="The other factor"
# In Llama's feed-forward only $W^U$ moves, $d_{\mathrm{model}} \times d_{\mathrm{ff}}$. $Y = H + F W^D$ is
# `OUTPUT`, $F = A \circ U$ with $A = f(G)$ is `GATE`, $U = N W^U$ is `UP`. Continue to the gradient of $W^U$.
# Which of $A$ and $f'(G)$ stands in it?

# %% given="15.1"
W_U_dot = at.tangent(W_U)
Y_dot, _ = differential(
    transformer_layer, *before, moves(W_U, W_U_dot), W_D, gain_1, gain_2, W_G=W_G, **options, name="Y"
)
UP = definition(U)
line = chain(inner(dY, Y_dot), "the differential of ℓ")

# %% answer="15.1"
### BEGIN SOLUTION
line(inner(dY, (A * (N @ W_U_dot)) @ W_D), OUTPUT.moves, GATE.moves, UP.moves)
line(inner(dY @ W_D.mT, A * (N @ W_U_dot)), laws.RIGHT)
line(inner((dY @ W_D.mT) * A, N @ W_U_dot), laws.ENTRYWISE)
line(inner(N.mT @ ((dY @ W_D.mT) * A), W_U_dot), laws.LEFT)
### END SOLUTION


# %% checker="15.1"
def other_factor(line):
    """differ"""
    line(inner(dY, (U * (N @ W_U_dot)) @ W_D), OUTPUT.moves, GATE.moves, UP.moves)


def without_down(line):
    """one shape"""
    line(inner(dY, (A * (N @ W_U_dot)) @ W_D), OUTPUT.moves, GATE.moves, UP.moves)
    line(inner(dY, A * (N @ W_U_dot)), laws.RIGHT)


def derivative_for_value(line):
    """differ"""
    line(inner(dY, (A * (N @ W_U_dot)) @ W_D), OUTPUT.moves, GATE.moves, UP.moves)
    line(inner(dY @ W_D.mT, A * (N @ W_U_dot)), laws.RIGHT)
    slope = sigma + G * sigma * (1 - sigma)
    line(inner((dY @ W_D.mT) * slope, N @ W_U_dot), laws.ENTRYWISE)


check_chain(
    line,
    W_U_dot,
    transformer_layer_vjp(dY, saved).W_U,
    mistakes=[other_factor, without_down, derivative_for_value],
)

# %% [markdown] exercise="15.2" kind="function" points=4 title="Backwards through SwiGLU"
# $F = f(G) \circ U$ with $f(x) = x \, \sigma(x)$. Write $dU$ and $dG$, both $n \times d_{\mathrm{ff}}$, from
# $dF$, $G$ and $U$, each in a function of its own. `torch.sigmoid` is there.


# %% answer="15.2"
def up_gradient(dF, G, U):
    """dU, n × d_ff."""
    ### BEGIN SOLUTION
    return dF * G * torch.sigmoid(G)
    ### END SOLUTION


def gate_gradient(dF, G, U):
    """dG, n × d_ff."""
    ### BEGIN SOLUTION
    s = torch.sigmoid(G)
    return dF * U * (s + G * s * (1 - s))
    ### END SOLUTION


# %% checker="15.2"
def forward_gate(G, U):
    return {"F": G * torch.sigmoid(G) * U}


def exchanged(dF, G, U):
    """U goes back through f(G), not through U"""
    return dF * U


def sigma_alone(dF, G, U):
    """the slope of sigma itself is missing"""
    return dF * U * torch.sigmoid(G)


def logistic_slope(dF, G, U):
    """the derivative of sigma for that of x sigma(x)"""
    s = torch.sigmoid(G)
    return dF * U * s * (1 - s)


check_functions(
    {"dU": up_gradient, "dG": gate_gradient},
    forward_gate,
    inputs={"G": "n, d_ff", "U": "n, d_ff"},
    sizes=[{"n": 2, "d_ff": 5}, {"n": 3, "d_ff": 4}],
    shares={"dU": 1, "dG": 3},
    mistakes={"up_gradient": [exchanged], "gate_gradient": [sigma_alone, logistic_slope]},
)

# %% [markdown] exercise="15.3" kind="mistake" points=4 title="The repeated operand, once more"
# This time $A$, $n \times d$, is one matrix, and $B_1$ and $B_2$, $d \times e$, stand in a batch. So $A$ is
# repeated. Which line is false, and what should stand there?

# %% given="15.3"
A_one, B_1, B_2 = pair.free("A", "n, d"), pair.free("B_1", "d, e"), pair.free("B_2", "d, e")
C, saved_A = matmul(A_one, torch.stack([B_1, B_2]))
FIRST = definition(pair.let("C_1", C[0]), A_one @ B_1)
SECOND = definition(pair.let("C_2", C[1]), A_one @ B_2)
A_one_dot = pair.tangent(A_one)
C_dot, _ = differential(matmul, moves(A_one, A_one_dot), torch.stack([B_1, B_2]), name="C")
C_1_dot, C_2_dot = pair.let("C_1_dot", C_dot[0]), pair.let("C_2_dot", C_dot[1])
BATCH = fact(inner(dC_all, C_dot), inner(dC_1, C_1_dot) + inner(dC_2, C_2_dot), "matrix by matrix")

wrong = claim(inner(dC_all, C_dot), "the differential of ℓ")
wrong(inner(dC_1, C_1_dot) + inner(dC_2, C_2_dot), BATCH)
wrong(inner(dC_1, A_one_dot @ B_1) + inner(dC_2, A_one_dot @ B_2), FIRST.moves, SECOND.moves)
wrong(inner(dC_1 + dC_2, A_one_dot @ (B_1 + B_2)), laws.LINEARITY)
wrong(inner((dC_1 + dC_2) @ (B_1 + B_2).mT, A_one_dot), laws.RIGHT)
display(wrong)

# %% answer="15.3"
### BEGIN SOLUTION
answer = correct(4, inner(dC_1 @ B_1.mT, A_one_dot) + inner(dC_2 @ B_2.mT, A_one_dot), laws.RIGHT)
### END SOLUTION


# %% checker="15.3"
def rest(line):
    line(inner(dC_1 @ B_1.mT + dC_2 @ B_2.mT, A_one_dot), laws.LINEARITY)


def line_three():
    """line 3 follows from line 2"""
    again = inner(dC_1, A_one_dot @ B_1) + inner(dC_2, A_one_dot @ B_2)
    return correct(3, again, FIRST.moves, SECOND.moves)


def crossed():
    """differ"""
    both = inner(dC_1 @ B_2.mT, A_one_dot) + inner(dC_2 @ B_1.mT, A_one_dot)
    return correct(4, both, laws.RIGHT)


check_mistake(
    wrong, answer, A_one_dot, matmul_vjp(dC_all, saved_A).A, rest=rest, mistakes=[line_three, crossed]
)

# %% [markdown]
# **Questions.** 1. Show that $f' = f + \sigma (1 - f)$ for SiLU, so that a program may keep $f$ and $\sigma$
# instead of $x$. 2. The feed-forward has $d_{\mathrm{ff}}$ hidden features. What happens to $Y$ and to
# $dW^U$, $dW^D$ if they are permuted? 3. How large would $T$ be for a text of $10^4$ tokens and a table of
# $10^5$? 4. $A$ is $(2, 1, 4, 5)$ and $B$ is $(3, 5, 6)$. Over which axes is each gradient summed?
