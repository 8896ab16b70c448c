# %% [markdown]
# # 5 One head
#
#     S = τ Q Kᵀ + bias      P = softmax(S)      O = P V                        Vaswani et al. 2017, eq. 1
#
#     Q n_q × d_k     K n_k × d_k     V n_k × d_v     S, P, bias n_q × n_k     O n_q × d_v     τ a number
#
# Three lines, and we have derived the gradient of each kind: a product, a softmax, a product. What is left is to put
# them after one another in the reverse order. We keep τ as a letter, allow a mask M and any bias, and let the last
# query see nothing at all.

# %%
import torch

from gradderiv.book.chain import Point, chain, differential, display, inner, moves
from gradderiv.rules.attention import attention, attention_vjp

at = Point(n_q=3, n_k=4, d_k=2, d_v=5)
Q, K, V = at.free("Q", "n_q, d_k"), at.free("K", "n_k, d_k"), at.free("V", "n_k, d_v")
tau = at.free("scale")
bias = at.free("bias", "n_q, n_k")
mask = at.given("mask", torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [0, 0, 0, 0]]).bool())
options = {"scale": tau, "mask": mask}

dO = at.free("dO", "n_q, d_v")
O, saved = attention(Q, K, V, bias=bias, **options)
O, P = at.let("O", O), saved.P
calI = at.given("calI", torch.ones(4, 4))  # n_k × n_k, as in chapter 4

# %% [markdown]
# ## The values
#
# V is nearest to the output. Only V moves, and P stays.

# %%
V_dot = at.tangent(V)
O_dot, _ = differential(attention, Q, K, moves(V, V_dot), bias=bias, **options, name="O")

line = chain(inner(dO, O_dot), "the differential of ℓ")
line(inner(dO, P @ V_dot), "O = P V, and only V moves")
line(inner(P.mT @ dO, V_dot), "⟨A, B C⟩ = ⟨Bᵀ A, C⟩")
line.reads_off(V_dot, attention_vjp(dO, saved).V)
display(line)

# %% [markdown]
# dV = Pᵀ dO: key j collects the gradients of all queries, each weighted by how much that query looked at it.
#
# ## The scores, by way of the bias
#
# Everything else reaches O through S. The bias is added to S, so the gradient of the bias *is* the gradient of the
# scores, and it is the one that all others use.

# %%
bias_dot = at.tangent(bias)
O_dot, dot = differential(attention, Q, K, V, bias=moves(bias, bias_dot), **options, name="O")

line = chain(inner(dO, O_dot), "the differential of ℓ")
line(inner(dO, dot.P @ V), "O = P V, and only P moves")
line(inner(dO @ V.mT, dot.P), "⟨A, B C⟩ = ⟨A Cᵀ, B⟩")
dP = line.let("dP", dO @ V.mT)
line(inner(dP, P * (dot.S - (P * dot.S) @ calI)), "the tangent of softmax, chapter 4")
line(inner(P * (dP - (P * dP) @ calI), dot.S), "the gradient of softmax, chapter 4")
dS = line.let("dS", P * (dP - (P * dP) @ calI))
line(inner(dS, bias_dot), "S = τ Q Kᵀ + bias, and only the bias moves")
line.reads_off(bias_dot, attention_vjp(dO, saved).bias)
display(line)

# %% [markdown]
# ## The queries
#
# From here on dP and dS keep their meaning. The first four lines are the same for every variable that acts through S.

# %%
Q_dot = at.tangent(Q)
O_dot, dot = differential(attention, moves(Q, Q_dot), K, V, bias=bias, **options, name="O")

line = chain(inner(dO, O_dot), "the differential of ℓ")
line(inner(dP, dot.P), "O = P V, and dP = dO Vᵀ")
line(inner(dS, dot.S), "chapter 4")
line(inner(dS, tau * Q_dot @ K.mT), "S = τ Q Kᵀ + bias, and only Q moves")
line(inner(tau * dS @ K, Q_dot), "⟨A, B C⟩ = ⟨A Cᵀ, B⟩; a number goes anywhere")
line.reads_off(Q_dot, attention_vjp(dO, saved).Q)
display(line)

# %% [markdown]
# ## The keys
#
# K stands under a transpose, so there is one step more. This is where dS Q is written for dSᵀ Q. Dimensions would not let it pass:
# dS Q is n_q × n_k times n_q × d_k.

# %%
K_dot = at.tangent(K)
O_dot, dot = differential(attention, Q, moves(K, K_dot), V, bias=bias, **options, name="O")

line = chain(inner(dO, O_dot), "the differential of ℓ")
line(inner(dS, dot.S), "as for Q")
line(inner(dS, tau * Q @ K_dot.mT), "S = τ Q Kᵀ + bias, and only K moves")
line(inner(tau * Q.mT @ dS, K_dot.mT), "⟨A, B C⟩ = ⟨Bᵀ A, C⟩")
line(inner(tau * dS.mT @ Q, K_dot), "transpose both sides")
line.reads_off(K_dot, attention_vjp(dO, saved).K)
display(line)

# %% [markdown]
# τ appears once in dQ and once in dK. Both slips happen in public code: it is left out, or it is applied twice,
# because Q had been scaled already and dK is scaled again.
#
# ## δ without P
#
# δ = rowsum(P ∘ dP) needs the n_q × n_k matrices. It is also a row sum of n_q × d_v matrices, both of which a backward pass
# already has (Dao et al. 2022, app. B.2); this is what makes a backward in tiles possible.

# %%
line = chain((P * (dO @ V.mT)).sum(-1, keepdim=True), "δ_i = Σ_j P_ij Σ_k dO_ik V_jk")
line((dO * (P @ V)).sum(-1, keepdim=True), "exchange the sums: Σ_k dO_ik Σ_j P_ij V_jk")
line((dO * O).sum(-1, keepdim=True), "O = P V")
display(line)

# %% [markdown]
# ## With numbers
#
# Three queries, three keys, the scores of chapter 4 (as Q, with K the identity and τ = 1), and as V the last two
# columns of our example. The loss is the first output of the first query.

# %%
Q = torch.tensor([[1.0, 2, 1], [1, 1, 2], [3, 1, 1]], dtype=torch.float64).log()
K = torch.eye(3, dtype=torch.float64)
V = torch.tensor([[2.0, 0], [0, 1], [0, 0]], dtype=torch.float64)
dO = torch.tensor([[1.0, 0], [0, 0], [0, 0]], dtype=torch.float64)

O, saved = attention(Q, K, V, scale=1.0)
g = attention_vjp(dO, saved)
print("O  first row", O[0].tolist())
print("dQ first row", [round(x, 4) for x in g.Q[0].tolist()])
print("dV", [[round(x, 4) for x in row] for row in g.V.tolist()])

# %% [markdown]
# By hand: P_1 = (¼, ½, ¼), O_11 = 2·¼ = ½. dP = dO Vᵀ = (2, 0, 0) in row 1, twice the dP of chapter 4, so
# dS = (6, −4, −2)/16, and since K is the identity and τ = 1 that is the row of dQ. dV = Pᵀ dO has P_1 as its first
# column.
#
# **Questions.** 1. Add up the rows of dK. Why is the sum 0, whatever K is? 2. Derive dτ, and show that
# τ dτ = ⟨dQ, Q⟩ = ⟨dK, K⟩. 3. A bias that depends only on j − i has one parameter per diagonal. What is its
# gradient?
