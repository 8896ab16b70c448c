# %% [markdown]
# # 18 Second order: the gradient of a gradient
#
# $$\varphi = \langle U_Q, dQ\rangle + \langle U_K, dK\rangle + \langle U_V, dV\rangle, \qquad
# \frac{\partial\varphi}{\partial\, dO} = \dot{O}(U), \qquad \frac{\partial\varphi}{\partial Q} = d\dot{Q}(U)$$
#
# (Pearlmutter 1994.) $U_Q$ is $n_q \times d_k$, $U_K$ is $n_k \times d_k$, $U_V$ is $n_k \times d_v$:
# directions, one for each gradient. $\dot{O}(U)$ is the tangent of attention along $U$, and $d\dot{Q}(U)$ is
# the tangent of its backward pass along $U$, with $dO$ fixed.
#
# Who needs this? A gradient penalty puts the size of a gradient into the loss. Meta-learning differentiates
# through a training step. Newton's method and conjugate gradients multiply the Hessian by a vector. Each of
# them asks for the gradient of $\varphi$, a number made of gradients. A hand-written backward pass is, for
# all of them, a *forward* pass.
#
# Two facts make second order cheap. The gradient with respect to the cotangent is the tangent, which we have.
# And the gradient with respect to the inputs is the *tangent of the backward pass*, one product rule away. No
# $n^2 \times n^2$ matrix is formed.
#
# ## The tangent of a backward pass
#
# We begin with softmax (chapter 4), $dS = P \circ (dP - \operatorname{rowsum}(P \circ dP))$, all
# $n_q \times n_k$. Let $S$ and $dP$ move. Then $P$ moves, and the product rule has four places to visit.

# %%
from typing import NamedTuple

import torch
from torch import Tensor

from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, differential, display, fact, inner, moves
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.pictures import heat
from gradderiv.rules.attention import attention, attention_jvp, attention_vjp, attention_vjp_jvp
from gradderiv.rules.softmax import SoftmaxSaved, softmax, softmax_vjp, softmax_vjp_jvp
from gradderiv.rules.tile import Outputs, Tile, tile_vjp


def rowsum(A):
    return A.sum(-1, keepdim=True)


def gradient(dP, S):
    """dS as a function of everything that it depends on."""
    return softmax_vjp(dP, softmax(S)[1]).S


at = Point(n_q=3, n_k=4, d_k=2, d_v=5)
S, dP = at.free("S", "n_q, n_k"), at.free("dP", "n_q, n_k")
S_dot, dP_dot = at.tangent(S), at.tangent(dP)
P = at.let("P", softmax(S)[0])
saved = SoftmaxSaved(P)
dS = at.let("dS", softmax_vjp(dP, saved).S)
BACKWARD = definition(dS, P * (dP - rowsum(P * dP)))

P_dot, _ = differential(softmax, moves(S, S_dot), name="P")
dS_dot = differential(gradient, moves(dP, dP_dot), moves(S, S_dot), name="dS")
ours = softmax_vjp_jvp(dP, saved, dP_dot, S_dot).S
SHIPS = definition(
    ours, P_dot * (dP - rowsum(P * dP)) + P * (dP_dot - rowsum(P_dot * dP + P * dP_dot)), "what ships"
)

line = chain(dS_dot, "the true tangent of dS")
line(P_dot * (dP - rowsum(P * dP)) + P * (dP_dot - rowsum(P_dot * dP + P * dP_dot)), BACKWARD.moves)
line(ours, SHIPS)
display(line)

# %% [markdown]
# The dual numbers that give $d\dot{S}$ went through the softmax and then through its backward pass, as one
# program. The last line is the function that ships;
# $\dot{\delta} = \operatorname{rowsum}(\dot{P} \circ dP + P \circ d\dot{P})$ is the term that is forgotten
# most easily.
#
# ## The Hessian of a softmax is a third moment
#
# Hold $dP$ fixed and pair $d\dot{S}$ with a second direction $W$, $n_q \times n_k$. The result is the second
# derivative of $\langle dP, P\rangle$ along $\dot{S}$ and $W$, so it must not matter which of the two came
# first. In the formula above that is hard to see. Write everything centred in its row, with the weights $P$
# of that row:
#
# $$A = \dot{S} - \operatorname{rowsum}(P \circ \dot{S}), \qquad C = W - \operatorname{rowsum}(P \circ W), \qquad
# D = dP - \operatorname{rowsum}(P \circ dP)$$
#
# all $n_q \times n_k$. Then $\dot{P} = P \circ A$ (chapter 4) and $dS = P \circ D$. The rows of $P \circ A$
# sum to 0, and so $dP$ may be replaced by $D$ beside it: what is subtracted from $dP$ is constant in its row.

# %%
W = at.free("W", "n_q, n_k")
A = at.let("A", S_dot - rowsum(P * S_dot))
C, D = at.let("C", W - rowsum(P * W)), at.let("D", dP - rowsum(P * dP))
SOFTMAX = fact(P_dot, P * A, "the tangent of softmax, chapter 4")
CENTRED = fact(rowsum(P * A * dP), rowsum(P * A * D), "rowsum(P ∘ A) = 0")
dS_dot = differential(gradient, dP, moves(S, S_dot), name="dS")

line = chain(inner(W, dS_dot), "the second derivative along Ṡ and W")
line(inner(W, P_dot * (dP - rowsum(P * dP)) - P * rowsum(P_dot * dP)), BACKWARD.moves)
line(inner(W, P * A * D - P * rowsum(P * A * dP)), SOFTMAX, definition(D))
line(inner(W, P * A * D - P * rowsum(P * A * D)), CENTRED)
line(inner(W, P * A * D) - inner(W, P * rowsum(P * A * D)), laws.LINEARITY)
line(inner(W, P * A * D) - inner(rowsum(P * W), rowsum(P * A * D)), laws.ROW_SUM)
line(inner(W, P * A * D) - inner(P * rowsum(P * W), A * D), laws.ROW_SUM)
line((W * P * A * D).sum() - (P * rowsum(P * W) * A * D).sum(), laws.SUM)
line((P * A * D * (W - rowsum(P * W))).sum(), laws.LINEARITY)
line((P * A * C * D).sum(), definition(C))
display(line)

# %% [markdown]
# The sum runs over all $n_q \times n_k$ entries. $A$, $C$ and $D$ stand there in the same way: the Hessian is
# symmetric, and we see why. In words: the first derivative of $\langle dP, P \rangle$ along $W$ is the
# *covariance* of $dP$ and $W$ in each row, $\sum P \circ C \circ D$; the second is their third central moment
# with $\dot{S}$. Derivatives of a softmax are the cumulants of what is averaged.
#
# ## Double backward: the cotangent moves
#
# Now attention, one head, with the letters and dimensions of chapter 5. Its backward pass maps $dO$ to
# $(dQ, dK, dV)$, linearly. Let only $dO$ move. First a law: in chapter 4 the tangent and the gradient of
# softmax were one formula. That is, the map $X \mapsto P \circ (X - \operatorname{rowsum}(P \circ X))$ may be
# moved to the other side of an inner product as it stands. It is a law like those of chapter 2, stated for
# any matrices, and checked before it is used:

# %%
display(f"{laws.JACOBIAN.name}:\n  {laws.JACOBIAN.statement}")


class Steps(NamedTuple):
    """The intermediates of a head and of its backward pass."""

    S: Tensor
    P: Tensor
    dP: Tensor
    dS: Tensor


def steps(dO, Q, K, V, scale):
    S = scale * Q @ K.mT
    P = softmax(S)[0]
    dP = dO @ V.mT
    return Steps(S, P, dP, softmax_vjp(dP, SoftmaxSaved(P)).S)


Q, K, V = at.free("Q", "n_q, d_k"), at.free("K", "n_k, d_k"), at.free("V", "n_k, d_v")
U_Q, U_K, U_V = at.free("U_Q", "n_q, d_k"), at.free("U_K", "n_k, d_k"), at.free("U_V", "n_k, d_v")
tau, dO = at.free("scale"), at.free("dO", "n_q, d_v")
O, saved = attention(Q, K, V, scale=tau)
S, P = saved.S, saved.P
g = attention_vjp(dO, saved)
dP = at.let("dP", dO @ V.mT)
dS = at.let("dS", P * (dP - rowsum(P * dP)))
dQ, dK, dV = at.let("dQ", g.Q), at.let("dK", g.K), at.let("dV", g.V)
QUERIES, KEYS, VALUES = (
    definition(dQ, tau * dS @ K),
    definition(dK, tau * dS.mT @ Q),
    definition(dV, P.mT @ dO),
)

# %% [markdown]
# The chain starts at the true differential of $\varphi$: three cotangents, three tangents, each from dual
# numbers through `attention_vjp`.

# %%
dO_dot = at.tangent(dO)
d = differential(attention_vjp, moves(dO, dO_dot), saved)
dot = differential(steps, moves(dO, dO_dot), Q, K, V, tau)

line = chain(inner(U_Q, d.Q) + inner(U_K, d.K) + inner(U_V, d.V), "the differential; dO moves")
line(
    inner(U_Q, tau * dot.dS @ K) + inner(U_K, tau * dot.dS.mT @ Q) + inner(U_V, P.mT @ dO_dot),
    QUERIES.moves,
    KEYS.moves,
    VALUES.moves,
)
line(
    inner(tau * U_Q @ K.mT, dot.dS) + inner(tau * U_K @ Q.mT, dot.dS.mT) + inner(U_V, P.mT @ dO_dot),
    laws.RIGHT,
)
line(
    inner(tau * U_Q @ K.mT, dot.dS) + inner(tau * Q @ U_K.mT, dot.dS) + inner(U_V, P.mT @ dO_dot),
    laws.TRANSPOSE,
)
line(inner(tau * U_Q @ K.mT, dot.dS) + inner(tau * Q @ U_K.mT, dot.dS) + inner(P @ U_V, dO_dot), laws.LEFT)
line(inner(tau * U_Q @ K.mT + tau * Q @ U_K.mT, dot.dS) + inner(P @ U_V, dO_dot), laws.LINEARITY)
S_U = line.let("S_U", tau * U_Q @ K.mT + tau * Q @ U_K.mT)
line(inner(S_U, P * (dot.dP - rowsum(P * dot.dP))) + inner(P @ U_V, dO_dot), definition(dS).moves)
line(inner(P * (S_U - rowsum(P * S_U)), dot.dP) + inner(P @ U_V, dO_dot), laws.JACOBIAN)
P_U = line.let("P_U", P * (S_U - rowsum(P * S_U)))
line(inner(P_U, dO_dot @ V.mT) + inner(P @ U_V, dO_dot), definition(dP).moves)
line(inner(P_U @ V, dO_dot) + inner(P @ U_V, dO_dot), laws.RIGHT)
line(inner(P_U @ V + P @ U_V, dO_dot), laws.LINEARITY)
line.reads_off(dO_dot, attention_jvp(saved, U_Q, U_K, U_V))
display(line)

# %% [markdown]
# ($d\,dO$, in the last line, is $\partial\varphi/\partial\, dO$, $n_q \times d_v$.) $S_U$ is what $\dot{S}$
# becomes when $Q$, $K$ move along $U_Q$, $U_K$; $P_U$ is what $\dot{P}$ becomes; and $P_U V + P U_V$ is
# $\dot{O}$. This had to be so. The backward pass is the transpose $J^\top$ of the Jacobian,
# $\varphi = \langle U, J^\top dO\rangle = \langle J U, dO \rangle$, and what stands beside $dO$ is $J U$, the
# tangent.
#
# ## Double backward: an input moves
#
# Now $Q$ moves, and $dO$ stays. `attention_vjp` takes what the forward pass has saved; for a differential we
# need the gradients as a function of $Q$ itself. `tile_vjp` is one: it recomputes $P$ (chapter 17).

# %%
Q_dot = at.tangent(Q)
d = differential(
    tile_vjp, Outputs(O=dO), Tile(moves(Q, Q_dot), K, V, None, None, None, None, tau, None), None
)
dot = differential(steps, dO, moves(Q, Q_dot), K, V, tau)
SCORES = definition(S, tau * Q @ K.mT)
SOFTMAX = fact(dot.P, P * (dot.S - rowsum(P * dot.S)), "the tangent of softmax, chapter 4")

line = chain(inner(U_Q, d.Q) + inner(U_K, d.K) + inner(U_V, d.V), "the differential; Q moves")
line(
    inner(U_Q, tau * dot.dS @ K)
    + inner(U_K, tau * dot.dS.mT @ Q + tau * dS.mT @ Q_dot)
    + inner(U_V, dot.P.mT @ dO),
    QUERIES.moves,
    KEYS.moves,
    VALUES.moves,
)
line(
    inner(U_Q, tau * dot.dS @ K) + inner(U_K, tau * dot.dS.mT @ Q) + inner(U_K, tau * dS.mT @ Q_dot)
    + inner(U_V, dot.P.mT @ dO),
    laws.LINEARITY,
)  # fmt: skip
line(
    inner(tau * U_Q @ K.mT, dot.dS) + inner(tau * U_K @ Q.mT, dot.dS.mT) + inner(U_K, tau * dS.mT @ Q_dot)
    + inner(U_V @ dO.mT, dot.P.mT),
    laws.RIGHT,
)  # fmt: skip
line(
    inner(tau * U_Q @ K.mT, dot.dS) + inner(tau * Q @ U_K.mT, dot.dS) + inner(U_K, tau * dS.mT @ Q_dot)
    + inner(dO @ U_V.mT, dot.P),
    laws.TRANSPOSE,
)  # fmt: skip
line(
    inner(tau * U_Q @ K.mT, dot.dS) + inner(tau * Q @ U_K.mT, dot.dS) + inner(tau * dS @ U_K, Q_dot)
    + inner(dO @ U_V.mT, dot.P),
    laws.LEFT,
)  # fmt: skip
S_U = line.let("S_U", tau * U_Q @ K.mT + tau * Q @ U_K.mT)
rest = inner(tau * dS @ U_K, Q_dot) + inner(dO @ U_V.mT, dot.P)
line(inner(S_U, dot.dS) + rest, laws.LINEARITY)
line(inner(S_U, dot.P * (dP - rowsum(P * dP)) - P * rowsum(dot.P * dP)) + rest, definition(dS).moves)
D = line.let("D", dP - rowsum(P * dP))
line(inner(S_U, dot.P * D) - inner(S_U, P * rowsum(dot.P * dP)) + rest, laws.LINEARITY)
line(inner(S_U, dot.P * D) - inner(rowsum(P * S_U), rowsum(dot.P * dP)) + rest, laws.ROW_SUM)
line(inner(S_U, dot.P * D) - inner(dP * rowsum(P * S_U), dot.P) + rest, laws.ROW_SUM)
line(inner(S_U * D, dot.P) - inner(dP * rowsum(P * S_U), dot.P) + rest, laws.ENTRYWISE)
line(
    inner(S_U * D - dP * rowsum(P * S_U) + dO @ U_V.mT, dot.P) + inner(tau * dS @ U_K, Q_dot), laws.LINEARITY
)
F = line.let("F", S_U * D - dP * rowsum(P * S_U) + dO @ U_V.mT)
line(inner(F, P * (dot.S - rowsum(P * dot.S))) + inner(tau * dS @ U_K, Q_dot), SOFTMAX)
line(inner(P * (F - rowsum(P * F)), dot.S) + inner(tau * dS @ U_K, Q_dot), laws.JACOBIAN)
dS_U = line.let("dS_U", P * (F - rowsum(P * F)))
line(inner(dS_U, tau * Q_dot @ K.mT) + inner(tau * dS @ U_K, Q_dot), SCORES.moves)
line(inner(tau * dS_U @ K, Q_dot) + inner(tau * dS @ U_K, Q_dot), laws.RIGHT)
line(inner(tau * dS_U @ K + tau * dS @ U_K, Q_dot), laws.LINEARITY)
line.reads_off(Q_dot, attention_vjp_jvp(dO, saved, torch.zeros_like(dO), U_Q, U_K, U_V).Q)
display(line)

# %% [markdown]
# ($dQ$, in the last line, is $\partial\varphi/\partial Q$.) Dimensions: $F$ and $dS_U$ are $n_q \times n_k$,
# the result is $n_q \times d_k$. What came out is the product rule on $dQ = \tau\, dS\, K$, with $dS_U$ in
# the place of $d\dot{S}$ and $U_K$ in that of $\dot{K}$: we differentiated *backwards* and got the tangent of
# the backward pass along $U$. The reason is the symmetry of second derivatives. With
# $f = \langle dO, O\rangle$ and $H$ its Hessian in $(Q, K, V)$, the tangent of the gradient along $U$ is
# $H U$, and the gradient of $\varphi = \langle U, \nabla f\rangle$ is $H^\top U$. So one function,
# `attention_vjp_jvp`, serves Hessian-vector products and double backward.
#
# The symmetry itself, exactly, with two sets of free directions:

# %%
T_Q, T_K, T_V = at.free("T_Q", "n_q, d_k"), at.free("T_K", "n_k, d_k"), at.free("T_V", "n_k, d_v")
zero = torch.zeros_like(dO)
HU = attention_vjp_jvp(dO, saved, zero, U_Q, U_K, U_V)
HT = attention_vjp_jvp(dO, saved, zero, T_Q, T_K, T_V)
fact(
    inner(T_Q, HU.Q) + inner(T_K, HU.K) + inner(T_V, HU.V),
    inner(U_Q, HT.Q) + inner(U_K, HT.K) + inner(U_V, HT.V),
    "⟨T, H U⟩ = ⟨U, H T⟩",
)
print("<T, H U> = <U, H T> for free T, U")

# %% [markdown]
# ```{admonition} Common mistake: a backward pass that is not differentiable
# :class: warning
# Who writes a backward pass by hand has to say what its own derivative is. If it computes with a $P$ that was
# saved outside the graph (or under `detach`), the second derivative takes $P$ for a constant, and comes out
# wrong without a word, in the example below by 29 % of its norm: only the paths through $dO$ and through the
# factors that are still in the graph are left. The first derivative is right, so training is right, until
# somebody adds a gradient penalty. Fused kernels refuse instead: `scaled_dot_product_attention` raises that
# the derivative of its backward is not implemented (pytorch #116350, #117974), which is the better failure.
# ```
#
# ## With numbers
#
# The three tokens with scores whose exponentials are small integers (chapter 4). $Q$ and $K$ are chosen so
# that $QK^\top$ is the matrix of their logarithms: $K = I$, $Q = S$, $3 \times 3$, $\tau = 1$; $V$ is the
# first two features of $X$, $3 \times 2$. We compare a Hessian-vector product in closed form with the
# difference of two gradients, and with what is left of it if $P$ is a constant of the backward pass.

# %%
S = torch.tensor([[1.0, 2, 1], [1, 1, 2], [3, 1, 1]], dtype=torch.float64).log()
Q, K, V = S, torch.eye(3, dtype=torch.float64), torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64)
dO = torch.tensor([[4.0, 0], [4, 4], [0, 5]], dtype=torch.float64)
generator = torch.Generator().manual_seed(18)
U = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (Q, K, V)]


def gradients(Q, K, V):
    return attention_vjp(dO, attention(Q, K, V, scale=1.0)[1])[:3]


def flat(tensors):
    return torch.cat([x.flatten() for x in tensors])


saved = attention(Q, K, V, scale=1.0)[1]
product = flat(attention_vjp_jvp(dO, saved, torch.zeros_like(dO), *U)[:3])
for h in (1e-2, 1e-4, 1e-6):
    after, before = (
        flat(gradients(*(x + s * h * u for x, u in zip((Q, K, V), U, strict=True)))) for s in (1, -1)
    )
    error = ((after - before) / (2 * h) - product).norm() / product.norm()
    print(f"difference of gradients, h = {h:.0e}: off by {error.item():.0e}")

leaves = [x.clone().requires_grad_() for x in (Q, K, V)]
P = saved.P  # a constant of the backward pass
dP = dO @ leaves[2].mT
dS = P * (dP - rowsum(P * dP))
phi = sum((u * x).sum() for u, x in zip(U, (dS @ leaves[1], dS.mT @ leaves[0], P.mT @ dO), strict=True))
constant = flat(torch.autograd.grad(phi, leaves))
print(f"P held constant: off by {((constant - product).norm() / product.norm()).item():.2f}")

# %% [markdown]
# The whole Hessian of this example is $24 \times 24$: 9 rows for $Q$, 9 for $K$ and 6 for $V$. Its columns
# are `attention_vjp_jvp` along the unit directions, one after another. One would not do this for a real
# layer, where the product with one direction is all that is needed.

# %%
units = torch.eye(24, dtype=torch.float64)
columns = []
for unit in units:
    direction = (unit[:9].reshape(3, 3), unit[9:18].reshape(3, 3), unit[18:].reshape(3, 2))
    columns.append(flat(attention_vjp_jvp(dO, saved, torch.zeros_like(dO), *direction)[:3]))
H = torch.stack(columns, 1)
print("H is symmetric:", bool((H - H.mT).abs().max() < 1e-12), " its VV block is 0:", not H[18:, 18:].any())
signs = torch.linalg.eigvalsh(H).round(decimals=9).sign()
print("eigenvalues below, at and above 0:", *(int((signs == s).sum()) for s in (-1, 0, 1)))
display(
    heat(
        {r"H": H},
        cuts=9,
        values=False,
        alt="the Hessian of one head in Q, K, V, 24 by 24, symmetric about its diagonal; the block of Q with Q falls "
        "apart into one block for each query, the block of V with V, bottom right, is 0",
    )
)

# %% [markdown]
# Three things to see. The block of $Q$ with $Q$ consists of one $3 \times 3$ block for each query: queries do
# not know of one another. The block of $V$ with $V$ is 0, since $O$ is linear in $V$. And the Hessian has
# eigenvalues of both signs: in $(Q, K, V)$ the loss is not convex even where it is linear in $O$.
#
# ## Exercises

# %% [markdown] exercise="18.1" kind="chain" points=5 title="The values move"
# $V$ moves, and with it $dP = dO\, V^\top$, and with that $dS$; $P$ and $dV$ do not, so the term with $U_V$
# is left out. The chain is taken as far as $S_U$. Continue it to the gradient of $\varphi$ with respect to
# $V$, $n_k \times d_v$.

# %% given="18.1"
at = Point(n_q=3, n_k=4, d_k=2, d_v=5)
Q, K, V = at.free("Q", "n_q, d_k"), at.free("K", "n_k, d_k"), at.free("V", "n_k, d_v")
U_Q, U_K = at.free("U_Q", "n_q, d_k"), at.free("U_K", "n_k, d_k")
tau, dO = at.free("scale"), at.free("dO", "n_q, d_v")
O, saved = attention(Q, K, V, scale=tau)
P, V_dot = saved.P, at.tangent(V)
dP = at.let("dP", dO @ V.mT)
dS = at.let("dS", P * (dP - rowsum(P * dP)))
dQ, dK = at.let("dQ", attention_vjp(dO, saved).Q), at.let("dK", attention_vjp(dO, saved).K)
d = differential(
    tile_vjp, Outputs(O=dO), Tile(Q, K, moves(V, V_dot), None, None, None, None, tau, None), None
)
dot = differential(steps, dO, Q, K, moves(V, V_dot), tau)
shipped = attention_vjp_jvp(dO, saved, torch.zeros_like(dO), U_Q, U_K, torch.zeros_like(V)).V

line = chain(inner(U_Q, d.Q) + inner(U_K, d.K), "the differential with U_V = 0; V moves")
line(
    inner(U_Q, tau * dot.dS @ K) + inner(U_K, tau * dot.dS.mT @ Q),
    definition(dQ, tau * dS @ K).moves,
    definition(dK, tau * dS.mT @ Q).moves,
)
line(inner(tau * U_Q @ K.mT, dot.dS) + inner(tau * U_K @ Q.mT, dot.dS.mT), laws.RIGHT)
line(inner(tau * U_Q @ K.mT, dot.dS) + inner(tau * Q @ U_K.mT, dot.dS), laws.TRANSPOSE)
line(inner(tau * U_Q @ K.mT + tau * Q @ U_K.mT, dot.dS), laws.LINEARITY)
S_U = line.let("S_U", tau * U_Q @ K.mT + tau * Q @ U_K.mT)

# %% answer="18.1"
### BEGIN SOLUTION
line(inner(S_U, P * (dot.dP - rowsum(P * dot.dP))), definition(dS).moves)
line(inner(P * (S_U - rowsum(P * S_U)), dot.dP), laws.JACOBIAN)
line(inner(P * (S_U - rowsum(P * S_U)), dO @ V_dot.mT), definition(dP).moves)
line(inner(dO.mT @ (P * (S_U - rowsum(P * S_U))), V_dot.mT), laws.LEFT)
line(inner((P * (S_U - rowsum(P * S_U))).mT @ dO, V_dot), laws.TRANSPOSE)
### END SOLUTION


# %% checker="18.1"
def no_delta(line):
    """differ"""
    line(inner(S_U, P * dot.dP), definition(dS).moves)


def sign_of_delta(line):
    """differ"""
    line(inner(S_U, P * (dot.dP - rowsum(P * dot.dP))), definition(dS).moves)
    line(inner(P * (S_U + rowsum(P * S_U)), dot.dP), laws.JACOBIAN)


def untransposed(line):
    """differ"""
    line(inner(S_U, P * (dot.dP - rowsum(P * dot.dP))), definition(dS).moves)
    line(inner(P * (S_U - rowsum(P * S_U)), dot.dP), laws.JACOBIAN)
    line(inner(P * (S_U - rowsum(P * S_U)), dO @ V_dot.mT), definition(dP).moves)
    line(inner((P * (S_U - rowsum(P * S_U))).mT @ dO, 2 * V_dot), laws.LEFT)


check_chain(line, V_dot, shipped, mistakes=[no_delta, sign_of_delta, untransposed])

# %% [markdown] exercise="18.2" kind="function" points=4 title="The tangent of a backward pass"
# The backward pass of a softmax, for a cotangent $C$, is
# $G = P \circ (C - \operatorname{rowsum}(P \circ C))$, all $n_q \times n_k$. Write $\dot{P}$ from $P$ and
# $\dot{S}$, and $\dot{G}$ from $P$, $C$, $\dot{P}$ and $\dot{C}$.


# %% answer="18.2"
def probabilities_dot(P, S_dot):
    """The tangent of P, n_q × n_k."""
    ### BEGIN SOLUTION
    return P * (S_dot - (P * S_dot).sum(-1, keepdim=True))
    ### END SOLUTION


def backward_dot(P, C, P_dot, C_dot):
    """The tangent of G, n_q × n_k."""
    ### BEGIN SOLUTION
    moved = (P_dot * C + P * C_dot).sum(-1, keepdim=True)
    return P_dot * (C - (P * C).sum(-1, keepdim=True)) + P * (C_dot - moved)
    ### END SOLUTION


# %% checker="18.2"
def backward_pass(S, C):
    P = torch.softmax(S, -1)
    return {"P": P, "G": P * (C - (P * C).sum(-1, keepdim=True))}


def one_factor(P, S_dot):
    """the mean of the row is not subtracted"""
    return P * S_dot


def delta_stays(P, C, P_dot, C_dot):
    """δ does not move here, but it depends on P and on C"""
    return P_dot * (C - (P * C).sum(-1, keepdim=True)) + P * C_dot


def half_of_delta(P, C, P_dot, C_dot):
    """δ moves with C only; it depends on P as well"""
    return P_dot * (C - (P * C).sum(-1, keepdim=True)) + P * (C_dot - (P * C_dot).sum(-1, keepdim=True))


check_functions(
    {"P_dot": probabilities_dot, "G_dot": backward_dot},
    backward_pass,
    inputs={"S": "n_q, n_k", "C": "n_q, n_k"},
    sizes=[{"n_q": 3, "n_k": 4}, {"n_q": 2, "n_k": 5}],
    mistakes={"probabilities_dot": [one_factor], "backward_dot": [delta_stays, half_of_delta]},
)

# %% [markdown] exercise="18.3" kind="mistake" points=4 title="The Hessian of log-sum-exp"
# $f = \mathrm{lse}(S)$, summed over the rows, has the gradient $P$ (chapter 17). Its second derivative along
# $\dot{S}$ and $W$, $n_q \times n_k$ both, should be the covariance of the two. One line is false. Which, and
# what should stand there?

# %% given="18.3"
at = Point(n_q=3, n_k=4)
S, W = at.free("S", "n_q, n_k"), at.free("W", "n_q, n_k")
S_dot = at.tangent(S)
P = at.let("P", softmax(S)[0])
P_dot, _ = differential(softmax, moves(S, S_dot), name="P")
SOFTMAX = fact(P_dot, P * (S_dot - rowsum(P * S_dot)), "the tangent of softmax, chapter 4")

wrong = claim(inner(W, P_dot), "the second derivative along Ṡ and W")
wrong(inner(W, P * (S_dot - rowsum(P * S_dot))), SOFTMAX)
wrong(inner(W, P * S_dot) - inner(W, P * rowsum(P * S_dot)), laws.LINEARITY)
wrong(inner(W, P * S_dot) - inner(rowsum(W), rowsum(P * S_dot)), laws.ROW_SUM)
wrong(inner(P * W, S_dot) - inner(rowsum(W), rowsum(P * S_dot)), laws.ENTRYWISE)
display(wrong)

# %% answer="18.3"
### BEGIN SOLUTION
answer = correct(4, inner(W, P * S_dot) - inner(rowsum(P * W), rowsum(P * S_dot)), laws.ROW_SUM)
### END SOLUTION


# %% checker="18.3"
def rest(line):
    line(inner(P * W, S_dot) - inner(rowsum(P * W), rowsum(P * S_dot)), laws.ENTRYWISE)


def softmax_line():
    """line 2 follows from line 1"""
    return correct(2, inner(W, P * S_dot), SOFTMAX)


def later():
    """a line before line 5 is false already"""
    return correct(5, inner(P * W, S_dot), laws.ENTRYWISE)


def sign():
    """differ"""
    return correct(4, inner(W, P * S_dot) + inner(rowsum(P * W), rowsum(P * S_dot)), laws.ROW_SUM)


ends = inner(P * W, S_dot) - inner(rowsum(P * W), rowsum(P * S_dot))
check_mistake(wrong, answer, ends=ends, rest=rest, mistakes=[softmax_line, later, sign])

# %% [markdown]
# **Questions.** 1. $\varphi$ is linear in $dO$ and in $U$. In which of $Q$, $K$, $V$ is it linear up to a
# constant? 2. Which third derivative of $\langle dP, P\rangle$ follows $\sum P \circ A \circ C \circ D$, and
# why is it not the fourth central moment? 3. A gradient penalty is $\frac{1}{2}\|dQ\|^2$. What is $U$, and
# which function gives its gradient? 4. Where would a mask change the chain for $Q$?
