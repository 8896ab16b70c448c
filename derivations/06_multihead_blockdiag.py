# %% [markdown]
# # 6 The whole layer: block-diagonal heads
#
#     O_i = softmax(τ Q_i K_iᵀ) V_i      Y = [O_1 … O_h] W^O + b^O           Vaswani et al. 2017, §3.2.2
#
# The layer has h heads. Head i owns d_k columns of Q = X W^Q + b^Q, d_k columns of K = X_kv W^K + b^K and d_v columns
# of V = X_kv W^V + b^V. Written with an index i everything falls into h cases, and the gradients of W^Q, W^K, W^V must be
# collected from h pieces. Following the "Transformer Attention Layer gradient" (Say-Hello2y/Transformer-attention, 2022) we put
# all heads side by side into matrices, and the index disappears.
#
# ## The matrices
#
# K_1 … K_h are the heads' keys, n_k × d_k each. Put them on the diagonal of one big matrix:
#
#         ⎡ K_1         ⎤                       ⎡ V_1         ⎤
#     𝓚 = ⎢     …       ⎥   h·n_k × h·d_k   𝓥 = ⎢     …       ⎥   h·n_k × h·d_v
#         ⎣         K_h ⎦                       ⎣         V_h ⎦
#
# Then Q 𝓚ᵀ = [Q_1 K_1ᵀ … Q_h K_hᵀ]: the zeros keep head i's queries away from the other heads' keys. So
#
#     S = τ Q 𝓚ᵀ             n_q × h·n_k       the scores of all heads, side by side
#     E = exp(S) ∘ M̃         n_q × h·n_k       M̃ = [M … M], the mask once per head
#     P = E ⊘ (E 𝓘)          n_q × h·n_k       𝓘 = blockdiag(1 … 1), h·n_k × h·n_k
#     Y = P 𝓥 W^O + b^O      n_q × d_out       P 𝓥 = [O_1 … O_h]
#
# E 𝓘 is the matrix of row sums of chapter 4, now head by head, because 𝓘 has a block of ones for each head. A
# row that may attend to nothing has E = 0; there P is 0 by definition.
#
# ## The block diagonal as a formula
#
# To differentiate 𝓚 we need it as a formula in K. Write h copies of K under one another, and keep only the blocks
# on the diagonal:
#
#     𝓚 = 𝓓_K ∘ (𝓒ᵀ K)       𝓒 = [I … I] n_k × h·n_k       𝓓_K = blockdiag(1 … 1) h·n_k × h·d_k
#
# Here are all of them, for three queries that attend to four keys from another sequence, with two heads, a mask and a query
# that sees nothing.

# %%
import torch

from gradderiv.book.chain import Point, chain, differential, display, inner, moves
from gradderiv.rules.blockdiag import (
    blocks,
    grad_W_K,
    grad_W_O,
    grad_W_Q,
    grad_W_V,
    layer,
)
from gradderiv.rules.multihead import multihead, multihead_vjp

at = Point(n_q=3, n_k=4, d_model=5, d_kv=6, h=2, d_k=7, d_v=9, d_out=11)
X, X_kv = at.free("X", "n_q, d_model"), at.free("X_kv", "n_k, d_kv")
W_Q, W_K = at.free("W_Q", "d_model, h*d_k"), at.free("W_K", "d_kv, h*d_k")
W_V, W_O = at.free("W_V", "d_kv, h*d_v"), at.free("W_O", "h*d_v, d_out")
tau = at.free("scale")
options = {
    "n_heads": 2,
    "X_kv": X_kv,
    "b_Q": at.free("b_Q", "h*d_k"),
    "b_K": at.free("b_K", "h*d_k"),
    "b_V": at.free("b_V", "h*d_v"),
    "b_O": at.free("b_O", "d_out"),
    "scale": tau,
    "mask": at.given("mask", torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]]).bool()),
}
dY = at.free("dY", "n_q, d_out")

B = blocks(X, W_Q, W_K, W_V, W_O, **options)
Q, S, P, calK, calV, calI, calC, D_K, D_V = B.Q, B.S, B.P, B.calK, B.calV, B.calI, B.calC, B.D_K, B.D_V
for matrix in (Q, calK, calV, S, P, calI, calC, D_K, D_V):
    display(matrix)

# %% [markdown]
# ## The output projection
#
# W^O is the last factor. Only W^O moves, and what stands to its left, P 𝓥, goes over.

# %%
W_O_dot = at.tangent(W_O)
Y_dot = differential(layer, X, W_Q, W_K, W_V, moves(W_O, W_O_dot), **options, name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, P @ calV @ W_O_dot), "Y = P 𝓥 W^O + b^O, and only W^O moves")
line(inner((P @ calV).mT @ dY, W_O_dot), "⟨A, B C⟩ = ⟨Bᵀ A, C⟩")
line.reads_off(W_O_dot, grad_W_O(X, W_Q, W_K, W_V, W_O, dY, **options))
display(line)

# %% [markdown]
# Dimensions: (h·d_v × n_q)(n_q × d_out). P 𝓥 = [O_1 … O_h], so this is chapter 3 with the concatenated heads as input.
#
# ## The values
#
# Only V moves, so only 𝓥: 𝓥̇ = 𝓓_V ∘ (𝓒ᵀ V̇). The entrywise 𝓓_V goes over as it is (rule 4 of chapter 2) and 𝓒ᵀ goes over
# as 𝓒 (rule 2).

# %%
W_V_dot = at.tangent(W_V)
Y_dot = differential(layer, X, W_Q, W_K, moves(W_V, W_V_dot), W_O, **options, name="Y")
dot = differential(blocks, X, W_Q, W_K, moves(W_V, W_V_dot), W_O, **options)

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, P @ dot.calV @ W_O), "Y = P 𝓥 W^O + b^O, and only 𝓥 moves")
line(inner(dY @ W_O.mT, P @ dot.calV), "⟨A, B C⟩ = ⟨A Cᵀ, B⟩")
line(inner(P.mT @ dY @ W_O.mT, dot.calV), "⟨A, B C⟩ = ⟨Bᵀ A, C⟩")
line(inner(P.mT @ dY @ W_O.mT, D_V * (calC.mT @ X_kv @ W_V_dot)), "𝓥 = 𝓓_V ∘ (𝓒ᵀ V), V = X_kv W^V + b^V")
line(inner(D_V * (P.mT @ dY @ W_O.mT), calC.mT @ X_kv @ W_V_dot), "⟨A, B ∘ C⟩ = ⟨A ∘ B, C⟩")
line(inner(calC @ (D_V * (P.mT @ dY @ W_O.mT)), X_kv @ W_V_dot), "⟨A, B C⟩ = ⟨Bᵀ A, C⟩")
line(inner(X_kv.mT @ calC @ (D_V * (P.mT @ dY @ W_O.mT)), W_V_dot), "and once more")
line.reads_off(W_V_dot, grad_W_V(X, W_Q, W_K, W_V, W_O, dY, **options))
display(line)

# %% [markdown]
# ## What 𝓒 (𝓓 ∘ A) is
#
# A = Pᵀ dY W^Oᵀ is h·n_k × h·d_v: block (i, j) pairs the probabilities of head i with the outputs of head j. Only i = j
# means anything. 𝓓 ∘ A keeps these blocks, and 𝓒 adds up the block rows, so that block i lands in head i's
# columns. As a sum over heads, with Π_i = [0 … I … 0], which picks head i:
#
#     𝓒 (𝓓 ∘ A) = Σ_i Π_i A Π_iᵀ Π_i
#
# (Π_i stands there in three widths: n_k × h·n_k on the left, d_v × h·d_v or d_k × h·d_k on the right.) For two heads:


# %%
def picks(width):
    """Π_1 and Π_2, width × 2·width."""
    one, zero = torch.eye(width), torch.zeros(width, width)
    return at.given("Pi_1", torch.cat([one, zero], 1)), at.given("Pi_2", torch.cat([zero, one], 1))


(N_1, N_2), (V_1, V_2), (K_1, K_2) = picks(4), picks(9), picks(7)
A = P.mT @ dY @ W_O.mT  # h·n_k h·d_v

line = chain(grad_W_V(X, W_Q, W_K, W_V, W_O, dY, **options), "the function that ships")
line(X_kv.mT @ calC @ (D_V * A), "what was derived")
line(X_kv.mT @ (N_1 @ A @ V_1.mT @ V_1 + N_2 @ A @ V_2.mT @ V_2), "head by head")
display(line)

# %% [markdown]
# ## Back to the scores
#
# W^Q and W^K act through S, and share the way there. As in chapter 5, with 𝓘 in blocks now, so that each head has its own δ.

# %%
W_Q_dot = at.tangent(W_Q)
Y_dot = differential(layer, X, moves(W_Q, W_Q_dot), W_K, W_V, W_O, **options, name="Y")
dot = differential(blocks, X, moves(W_Q, W_Q_dot), W_K, W_V, W_O, **options)

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, dot.P @ calV @ W_O), "Y = P 𝓥 W^O + b^O, and only P moves")
line(inner(dY @ W_O.mT @ calV.mT, dot.P), "⟨A, B C⟩ = ⟨A Cᵀ, B⟩, twice")
dP = line.let("dP", dY @ W_O.mT @ calV.mT)
line(inner(dP, P * (dot.S - (P * dot.S) @ calI)), "the tangent of softmax, head by head")
line(inner(P * dP, dot.S) - inner(P * dP, (P * dot.S) @ calI), "⟨A, B ∘ C⟩ = ⟨A ∘ B, C⟩, linearity")
line(inner(P * dP, dot.S) - inner((P * dP) @ calI, P * dot.S), "⟨A, B C⟩ = ⟨A Cᵀ, B⟩, and 𝓘ᵀ = 𝓘")
line(inner(P * (dP - (P * dP) @ calI), dot.S), "collect Ṡ")
dS = line.let("dS", P * (dP - (P * dP) @ calI))
line(inner(dS, tau * dot.Q @ calK.mT), "S = τ Q 𝓚ᵀ, and only Q moves")
line(inner(tau * dS @ calK, dot.Q), "⟨A, B C⟩ = ⟨A Cᵀ, B⟩")
line(inner(tau * dS @ calK, X @ W_Q_dot), "Q = X W^Q + b^Q")
line(inner(tau * X.mT @ dS @ calK, W_Q_dot), "⟨A, B C⟩ = ⟨Bᵀ A, C⟩")
line.reads_off(W_Q_dot, grad_W_Q(X, W_Q, W_K, W_V, W_O, dY, **options))
display(line)

# %% [markdown]
# Dimensions: (d_model × n_q)(n_q × h·n_k)(h·n_k × h·d_k). No sum over heads is needed here: Q is not in blocks, and
# dS 𝓚 = [dS_1 K_1 … dS_h K_h] puts every head into its own columns.
#
# ## The keys
#
# Now 𝓚 moves. It stands under a transpose, as K did in chapter 5, and in blocks, as 𝓥 did above.

# %%
W_K_dot = at.tangent(W_K)
Y_dot = differential(layer, X, W_Q, moves(W_K, W_K_dot), W_V, W_O, **options, name="Y")
dot = differential(blocks, X, W_Q, moves(W_K, W_K_dot), W_V, W_O, **options)

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, dot.P @ calV @ W_O), "Y = P 𝓥 W^O + b^O, and only P moves")
line(inner(dY @ W_O.mT @ calV.mT, dot.P), "⟨A, B C⟩ = ⟨A Cᵀ, B⟩, twice")
dP = line.let("dP", dY @ W_O.mT @ calV.mT)
line(inner(dP, P * (dot.S - (P * dot.S) @ calI)), "the tangent of softmax, head by head")
line(inner(P * (dP - (P * dP) @ calI), dot.S), "as for W^Q")
dS = line.let("dS", P * (dP - (P * dP) @ calI))
line(inner(dS, tau * Q @ dot.calK.mT), "S = τ Q 𝓚ᵀ, and only 𝓚 moves")
line(inner(tau * Q.mT @ dS, dot.calK.mT), "⟨A, B C⟩ = ⟨Bᵀ A, C⟩")
line(inner(tau * dS.mT @ Q, dot.calK), "transpose both sides")
line(inner(tau * dS.mT @ Q, D_K * (calC.mT @ X_kv @ W_K_dot)), "𝓚 = 𝓓_K ∘ (𝓒ᵀ K), K = X_kv W^K + b^K")
line(inner(tau * D_K * (dS.mT @ Q), calC.mT @ X_kv @ W_K_dot), "⟨A, B ∘ C⟩ = ⟨A ∘ B, C⟩")
line(inner(tau * calC @ (D_K * (dS.mT @ Q)), X_kv @ W_K_dot), "⟨A, B C⟩ = ⟨Bᵀ A, C⟩")
line(inner(tau * X_kv.mT @ calC @ (D_K * (dS.mT @ Q)), W_K_dot), "and once more")
line.reads_off(W_K_dot, grad_W_K(X, W_Q, W_K, W_V, W_O, dY, **options))
display(line)

# %% [markdown]
# dSᵀ Q is h·n_k × h·d_k and holds all pairs of heads; 𝓓_K keeps the h that belong together. As a sum over heads:

# %%
A = dS.mT @ Q  # h·n_k h·d_k

line = chain(grad_W_K(X, W_Q, W_K, W_V, W_O, dY, **options), "the function that ships")
line(tau * X_kv.mT @ calC @ (D_K * A), "what was derived")
line(tau * X_kv.mT @ (N_1 @ A @ K_1.mT @ K_1 + N_2 @ A @ K_2.mT @ K_2), "head by head")
display(line)

# %% [markdown]
# ## The shift under exp
#
# The program computes exp(S − m) with m the greatest score of its row and head, so that nothing overflows. P does not
# depend on m: it cancels in E ⊘ (E 𝓘). The machine does not take our word for it. Maxima have no meaning modulo a prime,
# so m is drawn at random there, twice; every line above was checked for both.
#
# The program of the article keeps exp(S) as it is and adds 10⁻¹⁵ to the denominator. That is harmless while the scores are near 0. Where
# all are near −34, e⁻³⁴ ≈ 1.7·10⁻¹⁵ is no larger than what was added, and the probabilities of a row no longer add up to 1. Its
# comparison with autograd could not show it: differences are cast to 16-bit integers, and anything below 1 prints
# as 0.

# %%
row = torch.full((5,), -34.0, dtype=torch.float64).exp()
print("five equal scores of -34:", round((row / (row.sum() + 1e-15)).sum().item(), 2), "instead of 1")

# %% [markdown]
# ## The form one ships
#
# The block-diagonal matrices are mostly zeros: 𝓚 has h² blocks, of which h matter. Programs cut Q, K, V into heads
# instead, and run chapter 5 on each. Both forms give the same gradients:

# %%
Y, saved = multihead(X, W_Q, W_K, W_V, W_O, **options)
g = multihead_vjp(dY, saved)
arguments = (X, W_Q, W_K, W_V, W_O, dY)

for blockwise, headwise in (
    (grad_W_Q(*arguments, **options), g.W_Q),
    (grad_W_K(*arguments, **options), g.W_K),
    (grad_W_V(*arguments, **options), g.W_V),
    (grad_W_O(*arguments, **options), g.W_O),
):
    line = chain(blockwise, "blocks")
    line(headwise, "head by head")
print("four gradients, two forms, the same matrices")

# %% [markdown]
# ## With numbers
#
# The three tokens of chapter 1 with two heads of width 2, X_kv = X, all projections simple enough to do by hand, and the
# loss ℓ = ΣY, the sum of all outputs, so that dY is a matrix of ones. We compare with PyTorch's autograd.

# %%
X = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 1], [1, 1, 0, 0]], dtype=torch.float64)
I = torch.eye(4, dtype=torch.float64)
swap = I[[1, 0, 3, 2]]
dY = torch.ones(3, 4, dtype=torch.float64)
weights = [W.clone().requires_grad_() for W in (I, swap, I, I + swap)]

layer(X, *weights, n_heads=2).sum().backward()
for name, W, formula in zip(
    ("W_Q", "W_K", "W_V", "W_O"), weights, (grad_W_Q, grad_W_K, grad_W_V, grad_W_O), strict=True
):
    G = formula(X, *(W.detach() for W in weights), dY, n_heads=2)
    print(
        f"d{name}: largest entry {G.abs().max():.4f}, off by less than 1e-12: {bool((G - W.grad).abs().max() < 1e-12)}"
    )

# %% [markdown]
# **Questions.** 1. Which of the four gradients change if b^K does? 2. Write
# dW^Q as a sum over heads with Π_i, and explain why it is shorter than that of W^K. 3. Two heads share their keys and values
# (h_kv = 1). Where does a sum over the group enter?
