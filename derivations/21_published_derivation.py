# %% [markdown]
# # 21 A published derivation, line by line
#
# $$dA = dP \circ P - \left((dP \circ P \circ Z)\, \mathcal{I}^\top\right) \circ \exp(A), \qquad Z = 1 \oslash (\exp(A)\, \mathcal{I} + \varepsilon)$$
#
# In September 2022 a blog post, "Transformer Attention Layer gradient", with the repository
# Say-Hello2y/Transformer-attention (Longxiang He), derived the gradients of $W^Q$, $W^K$, $W^V$, $W^O$ of
# multi-head attention in closed form. The block-diagonal matrices of chapter 6 are from there. As far as we
# know nobody had written the whole layer down in this way.
#
# The post compares $W^Q$ with autograd for $n = 5$ tokens, $d_{model} = 10$, $h = 2$, and the comparison
# prints zeros. Here we read it as one reads a colleague's calculation: every line again, in our notation,
# from the true differential. The formula above turns out to be right, but for one symbol,
# $\varepsilon = 10^{-15}$. And the comparison turns out to show nothing. Both are worth knowing exactly.
#
# | in the post | here | shape |
# |---|---|---|
# | `A`, scores of all heads side by side | $S$, or $A$ in this chapter | $n \times h n$ |
# | `score` | $P$ | $n \times h n$ |
# | `I`, `vp` | $\mathcal{I}$, $\mathcal{V}$ | $h n \times h n$, $h n \times h d_v$ |
# | `Y=1/(A.exp()@I+1e-15)` | $Z$ ($Y$ is the output of the layer here) | $n \times h n$ |
# | `dev_A` | $dA$ | $n \times h n$ |
# | `torch.ones(5,10)/50` | $dY$, for the mean as the loss | $n \times d_{model}$ |
# | `w_concat.weight`, `w_q.weight.grad` | $W^{O\top}$, $dW^{Q\top}$ | `nn.Linear` keeps transposes |
# | `ph1`, `ph2` | $\Pi_1$, $\Pi_2$ | $n \times h n$ |
#
# ## The layer, and its softmax as two factors
#
# Chapter 4 differentiates the quotient $E \oslash (E \mathcal{I})$. The post writes a product instead,
# $P = E \circ Z$ with $E = \exp A$ and $Z = 1 \oslash (E \mathcal{I})$: both factors move. We begin without
# $\varepsilon$.

# %%
import torch

from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, differential, display, fact, inner, moves
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.pictures import heat
from gradderiv.casebook.published_derivation import another_cotangent, gradients_of, hidden_by_the_mean, level
from gradderiv.checks.published import D_MODEL, EPSILON, WEIGHTS, N, draw, printed_check, printed_W_Q
from gradderiv.rules import blockdiag
from gradderiv.rules.blockdiag import blocks, grad_W_O, grad_W_Q, layer

at = Point(n=3, d_model=5, h=2, d_k=7, d_v=4, d_out=11)
X, tau, dY = at.free("X", "n, d_model"), at.free("scale"), at.free("dY", "n, d_out")
W_Q, W_K = at.free("W_Q", "d_model, h*d_k"), at.free("W_K", "d_model, h*d_k")
W_V, W_O = at.free("W_V", "d_model, h*d_v"), at.free("W_O", "h*d_v, d_out")
weights, options = (W_K, W_V, W_O), {"n_heads": 2, "scale": tau}
B = blocks(X, W_Q, *weights, **options)
Q, P, calK, calV, calI = B.Q, B.P, B.calK, B.calV, B.calI
Y = at.let("Y", layer(X, W_Q, *weights, **options))
A = at.let("A", B.S)
E = at.let("E", torch.exp(A))
Z = at.let("Z", 1 / (E @ calI))

OUTPUT = definition(Y, P @ calV @ W_O)
SOFTMAX = definition(P, E * Z)
EXPONENTIAL, RECIPROCAL = definition(E), definition(Z)
SCORES, QUERIES = definition(A, tau * Q @ calK.mT), definition(Q, X @ W_Q)
SYMMETRIC = fact(calI.mT, calI)
for matrix in (A, P, Z, calI, calV):
    display(matrix)

# %% [markdown]
# ## The line of the post, derived
#
# Only $W^Q$ moves. $\dot{E} = E \circ \dot{A}$, and $\dot{Z} = -Z \circ Z \circ (\dot{E}\, \mathcal{I})$, the
# derivative of a reciprocal.

# %%
W_Q_dot = at.tangent(W_Q)
Y_dot = differential(layer, X, moves(W_Q, W_Q_dot), *weights, **options, name="Y")


def factors(X, W_Q, W_K, W_V, W_O, **options):
    B = blocks(X, W_Q, W_K, W_V, W_O, **options)
    E = torch.exp(B.S)
    return {"A": B.S, "Q": B.Q, "P": B.P, "E": E, "Z": 1 / (E @ B.calI)}


def one(name):
    """The true tangent of one of the factors."""
    return differential(
        lambda *a, **k: factors(*a, **k)[name], X, moves(W_Q, W_Q_dot), *weights, **options, name=name
    )


A_dot, Q_dot, P_dot, E_dot, Z_dot = map(one, "AQPEZ")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, P_dot @ calV @ W_O), OUTPUT.moves)
line(inner(dY @ W_O.mT @ calV.mT, P_dot), laws.RIGHT)
dP = line.let("dP", dY @ W_O.mT @ calV.mT)
line(inner(dP, E_dot * Z + E * Z_dot), SOFTMAX.moves)
line(inner(dP, E_dot * Z - E * (Z * Z * (E_dot @ calI))), RECIPROCAL.moves)
line(inner(dP, E * A_dot * Z - E * (Z * Z * ((E * A_dot) @ calI))), EXPONENTIAL.moves)
line(inner(dP, P * A_dot - P * Z * ((E * A_dot) @ calI)), SOFTMAX)
line(inner(dP, P * A_dot) - inner(dP, P * Z * ((E * A_dot) @ calI)), laws.LINEARITY)
line(inner(dP * P, A_dot) - inner(dP * P * Z, (E * A_dot) @ calI), laws.ENTRYWISE)
line(inner(dP * P, A_dot) - inner((dP * P * Z) @ calI.mT, E * A_dot), laws.RIGHT)
line(inner(dP * P, A_dot) - inner(((dP * P * Z) @ calI.mT) * E, A_dot), laws.ENTRYWISE)
line(inner(dP * P - ((dP * P * Z) @ calI.mT) * E, A_dot), laws.LINEARITY)
dA = line.let("dA", dP * P - ((dP * P * Z) @ calI.mT) * E)
line(inner(dA, tau * Q_dot @ calK.mT), SCORES.moves)
line(inner(dA, tau * X @ W_Q_dot @ calK.mT), QUERIES.moves)
line(inner(tau * dA @ calK, X @ W_Q_dot), laws.RIGHT)
line(inner(tau * X.mT @ dA @ calK, W_Q_dot), laws.LEFT)
line.reads_off(W_Q_dot, grad_W_Q(X, W_Q, *weights, dY, **options))
display(line)
published = line

# %% [markdown]
# The line with $dA$ is the post's `dev_A`, factor by factor. Its formula for $W^Q$ is head by head; $K_i$ is
# $n \times d_k$, $\Pi_i$ picks head $i$ among the keys ($n \times hn$) and $\Pi_i'$ among the columns
# ($d_k \times h d_k$; in chapter 7 both were called $\Pi_i$). With
# $\mathcal{K} = \sum_i \Pi_i^\top K_i \Pi_i'$:

# %%
K_1, K_2 = at.let("K_1", X @ W_K[:, :7]), at.let("K_2", X @ W_K[:, 7:])
keys, columns = torch.eye(6), torch.eye(14)
Pi_1, Pi_2 = at.given("Pi_1", keys[:3]), at.given("Pi_2", keys[3:])
Pk_1, Pk_2 = at.given("Pk_1", columns[:7]), at.given("Pk_2", columns[7:])
BLOCKS = fact(calK, Pi_1.mT @ K_1 @ Pk_1 + Pi_2.mT @ K_2 @ Pk_2, "𝓚 in its blocks")
dA = at.let("dA", dP * P - ((dP * P * Z) @ calI.mT) * E)

line = chain(tau * X.mT @ dA @ calK, "what was read off")
line(tau * X.mT @ dA @ (Pi_1.mT @ K_1 @ Pk_1 + Pi_2.mT @ K_2 @ Pk_2), BLOCKS)
line(tau * X.mT @ dA @ Pi_1.mT @ K_1 @ Pk_1 + tau * X.mT @ dA @ Pi_2.mT @ K_2 @ Pk_2, laws.LINEARITY)
display(line)

# %% [markdown]
# `w_q1` and `w_q2` are the two terms without the last factor, and `torch.cat` is the last factor. (In print
# $\Pi'$ is Pk.) And it is our $dS$: $Z$ is constant in the row of a head, so it may be taken out of the sum,
# and $E \circ Z = P$.

# %%
CONSTANT = fact(
    ((dP * P * Z) @ calI) * E,
    ((dP * P) @ calI) * P,
    "Z is constant along the row of a head, and Z ∘ E = P",
)

line = chain(dP * P - ((dP * P * Z) @ calI.mT) * E, "dA, as published")
line(dP * P - ((dP * P * Z) @ calI) * E, SYMMETRIC)
line(dP * P - ((dP * P) @ calI) * P, CONSTANT)
line(P * (dP - (P * dP) @ calI), laws.LINEARITY)
display(line)

# %% [markdown]
# Two differences in what one computes. The published form needs $E$ and $Z$, which may be as large as
# $e^{700}$ and as small; ours needs $P$ alone, between 0 and 1. And the published form can be spoilt by
# $\varepsilon$, as we see now.
#
# ## What ε does, exactly
#
# "Add a small positive to prevent divid zero": $Z_\varepsilon = 1 \oslash (R + \varepsilon)$,
# $R = E\mathcal{I}$, $n \times hn$. The program takes `score` from the layer, whose softmax has no
# $\varepsilon$, and $Z_\varepsilon$ in the second term. So what it computes is this:

# %%
eps = at.free("eps")
R = at.let("R", E @ calI)
P_true = at.let("P", E / R)
Z_eps = at.let("Z_eps", 1 / (R + eps))
CONSTANT = fact(
    ((dP * P_true * Z_eps) @ calI) * E,
    Z_eps * R * ((dP * P_true) @ calI) * P_true,
    "Z_eps is constant along the row of a head, and E = R ∘ P",
)

line = chain(dP * P_true - ((dP * P_true * Z_eps) @ calI) * E, "dA as programmed")
line(dP * P_true - Z_eps * R * ((dP * P_true) @ calI) * P_true, CONSTANT)
line(dP * P_true - (1 / (R + eps)) * R * ((dP * P_true) @ calI) * P_true, definition(Z_eps))
line(P_true * (dP - (R / (R + eps)) * ((P_true * dP) @ calI)), laws.LINEARITY)
display(line)

# %% [markdown]
# The row sum $\delta = (P \circ dP)\,\mathcal{I}$ is multiplied by $R/(R + \varepsilon)$, $R$ being the sum
# of the exponentials of its row. Where $R$ is much larger than $\varepsilon$ nothing happens. Where it is
# much smaller, $\delta$ is gone, and what is left is $dP \circ P$: the softmax without its row sum, one of
# the wrong layers of chapter 19. In between it is neither.
#
# Would it be right if the layer had the same $\varepsilon$? Then
# $P_\varepsilon = E \oslash (R + \varepsilon)$, and the tangent is this:


# %%
def padded_softmax(A, calI, eps):
    E = torch.exp(A)
    return E / (E @ calI + eps)


A_dot = at.tangent(A)
P_eps = at.let("P_eps", E / (R + eps))
P_eps_dot = differential(padded_softmax, moves(A, A_dot), calI, eps, name="P_eps")
PADDED = definition(P_eps)
CONSTANT = fact(
    E * ((E * A_dot) @ calI) / ((R + eps) * (R + eps)),
    P_eps * ((P_eps * A_dot) @ calI),
    "R + ε is constant along the row of a head, and E ⊘ (R + ε) = P_eps",
)

line = chain(P_eps_dot, "the true tangent")
line(
    E * A_dot / (R + eps) - E * ((E * A_dot) @ calI) / ((R + eps) * (R + eps)),
    PADDED.moves,
    definition(R).moves,
    definition(E).moves,
)
line(E * A_dot / (R + eps) - P_eps * ((P_eps * A_dot) @ calI), CONSTANT)
line(P_eps * A_dot - P_eps * ((P_eps * A_dot) @ calI), PADDED)
line(P_eps * (A_dot - (P_eps * A_dot) @ calI), laws.LINEARITY)
display(line)

# %% [markdown]
# The formula of chapter 4 once more, with $P_\varepsilon$ for $P$; nothing in it asks that rows sum to 1. So
# a layer with an $\varepsilon$ is differentiated by the usual formula with *its own* probabilities. The
# mistake is not the $\varepsilon$; it is to have it in one place out of two.
#
# ```{admonition} Common mistake: an ε in the denominator
# :class: warning
# $\varepsilon$ guards against $0/0$, which cannot occur if the greatest score of the row is subtracted first:
# then $R \geq 1$. Without that subtraction $\varepsilon$ is no small number beside $R$ when scores are low,
# and no help when they are high, where $\exp$ is infinite. Rows then do not sum to 1, and softmax sees a
# shift of its row: $db^K \neq 0$. By how much is measured below. Seen in: the published derivation; it is
# also the usual patch for fully masked rows, where 0 by definition is the clean answer (chapter 4).
# ```
#
# Measured, for rows of 5 scores that are spread by 1 around a level: how much $P_\varepsilon$ is off, what a
# row of it sums to, and how much $dA$ as programmed is off, relative to its largest entry.

# %%
print("scores near      P off by    least row   dA off by")
for near in (0, -20, -30, -34, -40):
    found = level(near)
    print(f"{near:11}{found.P:14.1e}{found.row:13.3f}{found.dS:12.1e}")
shifted = level(-34, shift=True)
print(f"-34, shifted{shifted.P:13.1e}{shifted.row:13.3f}{shifted.dS:12.1e}")

# %% [markdown]
# At the scores of the post, near 0, the effect is $10^{-15}$, which nobody would see. Near $-34$, where
# $e^{-34} \approx 1.7 \cdot 10^{-15}$, the probabilities are off by up to 0.14, and rows sum to as little as
# 0.71. A softmax should not know the level of its scores: a bias on the keys moves it at will.
#
# ## The comparison
#
# The post draws $X$ uniformly, takes the mean of the output as its loss, and prints
# `(w_q - w_q_true).short()`: the error, cast to a 16-bit integer. A cast to an integer drops the fraction.
# Every error below 1 prints as 0; and the gradient itself?

# %%
case = draw()
right = case.autograd["W_Q"]
print(f"largest entry of dW_Q: {right.abs().max():.1e}")
candidates = {
    "as printed": printed_W_Q(**case.args, dY=case.dY),
    "without the row sum": printed_W_Q(**case.args, dY=case.dY, row_sum=False),
    "without the scale": 5**0.5 * printed_W_Q(**case.args, dY=case.dY),
    "zero": torch.zeros_like(right),
}
for name, value in candidates.items():
    off = ((value - right).abs().max() / right.abs().max()).item()
    print(
        f"{name:20} relative error {off:7.0e}   .short(): {'all 0' if printed_check(value, right) else 'not all 0'}"
    )

# %% [markdown]
# The check passes a gradient of zeros. A comparison has to be made in the scale of what is compared (chapter
# 19): the relative error of the printed formula is at rounding, and of the others it is near 1 or above.
#
# What the check was blind to, one sees at once in a picture of $d_{model} \times d_{model}$ errors. (Those
# below $10^{-12}$ are left blank.)

# %%
display(
    heat(
        {
            r"dW^Q": right,
            r"\mathrm{no\ row\ sum}": candidates["without the row sum"] - right,
            r"\mathrm{as\ printed}": torch.where(
                (x := candidates["as printed"] - right).abs() < 1e-12, 0.0, x
            ),
        },
        cuts=D_MODEL // 2,
        values=False,
        alt="dW^Q of the post's case, the error of a formula without the row sum, which has a pattern and is several times as large, and "
        "the error of the printed formula, which is blank where it is below 1e-12: everywhere",
    )
)

# %% [markdown]
# ## The loss
#
# For the mean of $Y$ ($n \times d$), $dY$ is $\frac{1}{nd}$ in every entry, in the post
# `torch.ones(5,10)/50`. With $dY = c\, u v^\top$, $u$ and $v$ the columns of $n$ and of $d$ ones, the
# gradient of $W^O$ is an outer product:

# %%
u, v, c = at.given("u", torch.ones(3, 1)), at.given("v", torch.ones(11, 1)), at.free("c")
mean = at.let("dY", c * u @ v.mT)
dW_O = at.let("dW_O", grad_W_O(X, W_Q, *weights, mean, **options))

line = chain(dW_O, "the function that ships, for the mean")
line((P @ calV).mT @ mean, definition(dW_O, (P @ calV).mT @ mean))
line(c * ((P @ calV).mT @ u) @ v.mT, definition(mean))
display(line)

# %% [markdown]
# Dimensions: $(h d_v \times n)(n \times 1)(1 \times d)$: rank 1. All columns of $dW^O$ are equal, whatever
# the layer does, and whoever exchanges tokens or features of $dY$ gets away with it. Measured on the post's
# case, relative errors of the four weights:

# %%
ranks = [
    int(torch.linalg.matrix_rank(gradients_of(case, dY)["W_O"])) for dY in (case.dY, another_cotangent())
]
print(f"rank of dW_O: {ranks[0]} for the mean, {ranks[1]} for a random dY")
mistakes = {
    "1/(n d) written for dY": lambda dY: torch.full_like(dY, 1 / (N * D_MODEL)),
    "tokens of dY reversed": lambda dY: dY.flip(0),
    "features of dY reversed": lambda dY: dY.flip(1),
}
for name, mistake in mistakes.items():
    hidden, seen = hidden_by_the_mean(case, mistake)
    print(f"{name:26} mean: {hidden:7.0e}   random dY: {seen:7.0e}")

# %% [markdown]
# ## Corrected
#
# Three changes, then, and the derivation stands: no $\varepsilon$, with the maximum of the row subtracted; a
# random $dY$ in the place of the mean; errors relative to the gradient. In this form all four weights of the
# post, as our functions for them, against autograd:

# %%
dY = another_cotangent()
expected = gradients_of(case, dY)
for name in WEIGHTS:
    found = getattr(blockdiag, f"grad_{name}")(**case.args, dY=dY, n_heads=2)
    off = (found - expected[name]).abs().max() / expected[name].abs().max()
    print(f"d{name}: off by less than 1e-13 of its largest entry: {bool(off < 1e-13)}")
off = (printed_W_Q(**case.args, dY=dY) - expected["W_Q"]).abs().max() / expected["W_Q"].abs().max()
print(f"dW_Q as printed, with eps = {EPSILON:g}, at scores near 0: off by {off:.0e}")

# %% [markdown]
# What remains of the post is what matters in it: the layer as a few matrices, and its gradients as products
# of them. `gradderiv casebook published-derivation` tells this story with more figures.
#
# ## Exercises

# %% [markdown] exercise="21.1" kind="chain" points=2 title="What a row sums to"
# With one head, $P_\varepsilon = E \oslash (R + \varepsilon)$, $n_q \times n_k$, with
# $R = \operatorname{rowsum}(E)$, $n_q \times 1$. What do its rows sum to?

# %% given="21.1"
at = Point(n_q=3, n_k=4)
E, eps = at.free("E", "n_q, n_k"), at.free("eps")
R = at.let("R", E.sum(-1, keepdim=True))
line = chain((E / (R + eps)).sum(-1, keepdim=True), "the sum of each row")

# %% answer="21.1"
### BEGIN SOLUTION
line(E.sum(-1, keepdim=True) / (R + eps), laws.ROW_FACTOR)
line(R / (R + eps), definition(R))
### END SOLUTION


# %% checker="21.1"
def no_epsilon(line):
    """differ"""
    line(E.sum(-1, keepdim=True) / R, laws.ROW_FACTOR)


def law(line):
    """it follows by ROW_FACTOR"""
    line(E.sum(-1, keepdim=True) / (R + eps), laws.ROW_SCALE)


def at_once(line):
    """ROW_FACTOR is used as well"""
    line(R / (R + eps), definition(R))


check_chain(line, ends=R / (R + eps), mistakes=[no_epsilon, law, at_once])

# %% [markdown] exercise="21.2" kind="function" points=3 title="A softmax with an ε"
# $P_\varepsilon = E \oslash (\operatorname{rowsum}(E) + \varepsilon)$ with $E = \exp S$, all $n_q \times n_k$
# but for the number $\varepsilon$. Write $dS$ from $dP$ and $P = P_\varepsilon$. Is $\varepsilon$ needed?


# %% answer="21.2"
def score_gradient(dP, P):
    """dS, n_q × n_k."""
    ### BEGIN SOLUTION
    return P * (dP - (P * dP).sum(-1, keepdim=True))
    ### END SOLUTION


# %% checker="21.2"
def padded(S, eps):
    E = torch.exp(S)
    return {"P": E / (E.sum(-1, keepdim=True) + eps)}


check_functions(
    {"dS": score_gradient},
    padded,
    inputs={"S": "n_q, n_k", "eps": ""},
    sizes=[{"n_q": 3, "n_k": 4}, {"n_q": 2, "n_k": 5}],
    mistakes=["softmax-diagonal", "softmax-no-rowsum"],
)

# %% [markdown] exercise="21.3" kind="mistake" points=4 title="A softmax over the queries"
# Some models let the queries compete for the keys: softmax runs down each *column* of the scores,
# $P = E \circ Z$ with $Z = 1 \oslash (\mathcal{I} E)$ and $\mathcal{I}$ the $n_q \times n_q$ matrix of ones,
# in the manner of the post. One line is false. Which, and what should stand there?

# %% given="21.3"
at = Point(n_q=3, n_k=4)
A, dP = at.free("A", "n_q, n_k"), at.free("dP", "n_q, n_k")
A_dot, calI = at.tangent(A), at.given("calI", torch.ones(3, 3))
E = at.let("E", torch.exp(A))
Z = at.let("Z", 1 / (calI @ E))
P = at.let("P", E * Z)
P_dot = differential(lambda A: torch.softmax(A, 0), moves(A, A_dot), name="P")

wrong = claim(inner(dP, P_dot), "the differential of ℓ")
wrong(
    inner(dP, E * A_dot * Z - E * Z * Z * (calI @ (E * A_dot))),
    definition(P).moves,
    definition(E).moves,
    definition(Z).moves,
)
wrong(inner(dP, E * A_dot * Z) - inner(dP, E * Z * Z * (calI @ (E * A_dot))), laws.LINEARITY)
wrong(inner(dP * E * Z, A_dot) - inner(dP * E * Z, calI @ (E * A_dot)), laws.ENTRYWISE)
wrong(inner(dP * P, A_dot) - inner(dP * P, calI @ (E * A_dot)), definition(P))
display(wrong)

# %% answer="21.3"
### BEGIN SOLUTION
answer = correct(4, inner(dP * E * Z, A_dot) - inner(dP * E * Z * Z, calI @ (E * A_dot)), laws.ENTRYWISE)
### END SOLUTION


# %% checker="21.3"
def rest(line):
    line(inner(dP * P, A_dot) - inner(dP * P * Z, calI @ (E * A_dot)), definition(P))


def sign_of_Z():
    """line 2 follows from line 1"""
    return correct(2, inner(dP, E * A_dot * Z + E * Z * Z * (calI @ (E * A_dot))), definition(P).moves)


def last():
    """a line before line 5 is false already"""
    return correct(5, inner(dP * P, A_dot) - inner(dP * P * Z, calI @ (E * A_dot)), definition(P))


def squared():
    """differ"""
    return correct(4, inner(dP * E * Z, A_dot) - inner(dP * E * E * Z, calI @ (E * A_dot)), laws.ENTRYWISE)


ends = inner(dP * P, A_dot) - inner(dP * P * Z, calI @ (E * A_dot))
check_mistake(wrong, answer, ends=ends, rest=rest, mistakes=[sign_of_Z, last, squared])

# %% [markdown]
# **Questions.** 1. Which entries of $dA$ as published overflow first if scores are near 700, and does $dS$?
# 2. Suppose that $W^V$ is checked with five equal tokens. What is $P$ then, and which mistake in
# $dV = P^\top dO$ goes unseen? 3. Name a loss with a $dY$ of rank $\min(n, d_{model})$. 4. With $\varepsilon$
# in both places, which of the identities of chapter 19 fail?
