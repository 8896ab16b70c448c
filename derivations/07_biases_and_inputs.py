# %% [markdown]
# # 7 What is left of the layer: biases and inputs
#
# Chapter 6 derived the gradients of the four weight matrices. The layer has more arguments: the biases of its projections, and its
# inputs X and X_kv. Their gradients are the same chains with another last step, so we take dP and dS from chapter 6:
#
#     dP = dY W^Oᵀ 𝓥ᵀ      dS = P ∘ (dP − (P ∘ dP) 𝓘)      both n_q × h·n_k
#
# and start, as always, from the true differential.

# %%
import torch

from gradderiv.book.chain import Point, chain, differential, display, inner, moves
from gradderiv.rules.blockdiag import (
    blocks,
    grad_b_K,
    grad_b_O,
    grad_b_Q,
    grad_b_V,
    grad_W_K,
    grad_W_Q,
    grad_W_V,
    grad_X,
    grad_X_kv,
    layer,
)

at = Point(n_q=3, n_k=4, d_model=5, d_kv=6, h=2, d_k=7, d_v=9, d_out=11)
X, X_kv = at.free("X", "n_q, d_model"), at.free("X_kv", "n_k, d_kv")
W_Q, W_K = at.free("W_Q", "d_model, h*d_k"), at.free("W_K", "d_kv, h*d_k")
W_V, W_O = at.free("W_V", "d_kv, h*d_v"), at.free("W_O", "h*d_v, d_out")
b_Q, b_K = at.free("b_Q", "h*d_k"), at.free("b_K", "h*d_k")
b_V, b_O = at.free("b_V", "h*d_v"), at.free("b_O", "d_out")
tau = at.free("scale")
mask = at.given("mask", torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]]).bool())
weights = (X, W_Q, W_K, W_V, W_O)
options = {
    "n_heads": 2,
    "X_kv": X_kv,
    "b_Q": b_Q,
    "b_K": b_K,
    "b_V": b_V,
    "b_O": b_O,
    "scale": tau,
    "mask": mask,
}

dY = at.free("dY", "n_q, d_out")
B = blocks(*weights, **options)
Q, P, calK, calV, calI, calC, D_K, D_V = B.Q, B.P, B.calK, B.calV, B.calI, B.calC, B.D_K, B.D_V
dP = at.let("dP", dY @ W_O.mT @ calV.mT)
dS = at.let("dS", P * (dP - (P * dP) @ calI))

# %% [markdown]
# ## The biases
#
# With 1 for the column of n_q (or n_k) ones, Q = X W^Q + 1 b^Q. So a bias is chapter 3 again: sum over the rows.

# %%
one = at.given("1", torch.ones(3, 1))  # n_q × 1
b_O_dot = at.tangent(b_O)
Y_dot = differential(layer, *weights, **{**options, "b_O": moves(b_O, b_O_dot)}, name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, one @ b_O_dot.unsqueeze(0)), "Y = P 𝓥 W^O + 1 b^O")
line(inner(dY.sum(0), b_O_dot), "⟨A, 1 b⟩ = ⟨Aᵀ 1, b⟩")
line.reads_off(b_O_dot, grad_b_O(*weights, dY, **options))
display(line)

# %%
b_Q_dot = at.tangent(b_Q)
moving = {**options, "b_Q": moves(b_Q, b_Q_dot)}
Y_dot, dot = differential(layer, *weights, **moving, name="Y"), differential(blocks, *weights, **moving)

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(tau * dS @ calK, dot.Q), "as for W^Q")
line(inner(tau * dS @ calK, one @ b_Q_dot.unsqueeze(0)), "Q = X W^Q + 1 b^Q")
line(inner(tau * (dS @ calK).sum(0), b_Q_dot), "⟨A, 1 b⟩ = ⟨Aᵀ 1, b⟩")
line.reads_off(b_Q_dot, grad_b_Q(*weights, dY, **options))
display(line)

# %%
one = at.given("1", torch.ones(4, 1))  # n_k × 1
b_V_dot = at.tangent(b_V)
Y_dot = differential(layer, *weights, **{**options, "b_V": moves(b_V, b_V_dot)}, name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
dV = line.let("dV", calC @ (D_V * (P.mT @ dY @ W_O.mT)))
line(inner(dV, one @ b_V_dot.unsqueeze(0)), "as for W^V, with V = X_kv W^V + 1 b^V")
line(inner((calC @ (D_V * (P.mT @ dY @ W_O.mT))).sum(0), b_V_dot), "⟨A, 1 b⟩ = ⟨Aᵀ 1, b⟩")
line.reads_off(b_V_dot, grad_b_V(*weights, dY, **options))
display(line)

# %% [markdown]
# The bias of the keys is the odd one. It adds the same vector to every key, so it adds the same number to every score
# of a row, and softmax does not see a shift of its row: P ∘ Ṡ is its own mean, Ṗ = 0, and db^K = 0 whatever the loss. (A
# numerical check of this gradient divides noise by noise, and raises false alarms.)

# %%
b_K_dot = at.tangent(b_K)
dot = differential(blocks, *weights, **{**options, "b_K": moves(b_K, b_K_dot)})

line = chain(P * dot.S, "the first term of Ṗ = P ∘ Ṡ − P ∘ ((P ∘ Ṡ) 𝓘)")
line(P * (tau * Q @ (D_K * (calC.mT @ one @ b_K_dot.unsqueeze(0))).mT), "S = τ Q 𝓚ᵀ, K = X_kv W^K + 1 b^K")
line(P * ((P * dot.S) @ calI), "the second: Ṡ is constant in a row of a head")
line.vanishes("b_K", grad_b_K(*weights, dY, **options))
display(line)

# %% [markdown]
# ## The inputs
#
# X_kv feeds the keys and the values, so two paths lead to it, and its gradient has two terms. Each is the gradient of K or
# V, sent through chapter 3.

# %%
X_kv_dot = at.tangent(X_kv)
moving = {**options, "X_kv": moves(X_kv, X_kv_dot)}
Y_dot, dot = differential(layer, *weights, **moving, name="Y"), differential(blocks, *weights, **moving)

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, dot.P @ calV @ W_O + P @ dot.calV @ W_O), "Y = P 𝓥 W^O + b^O, and P and 𝓥 move")
line(inner(dS, dot.S) + inner(P.mT @ dY @ W_O.mT, dot.calV), "as for W^K; as for W^V")
line(inner(tau * dS.mT @ Q, dot.calK) + inner(P.mT @ dY @ W_O.mT, dot.calV), "S = τ Q 𝓚ᵀ, and only 𝓚 moves")
dK = line.let("dK", tau * calC @ (D_K * (dS.mT @ Q)))
dV = line.let("dV", calC @ (D_V * (P.mT @ dY @ W_O.mT)))
line(
    inner(dK, X_kv_dot @ W_K) + inner(dV, X_kv_dot @ W_V),
    "as for W^K and W^V, with K̇ = Ẋ_kv W^K, V̇ = Ẋ_kv W^V",
)
line(inner(dK @ W_K.mT + dV @ W_V.mT, X_kv_dot), "⟨A, B C⟩ = ⟨A Cᵀ, B⟩; collect Ẋ_kv")
line.reads_off(X_kv_dot, grad_X_kv(*weights, dY, **options))
display(line)

# %% [markdown]
# In self-attention X_kv is X, and a third path leads back through the queries. Its gradient has three
# terms, and one of them is easily forgotten.

# %%
at = Point(n=3, d_model=5, h=2, d_k=7, d_v=9, d_out=11)
X, dY, tau = at.free("X", "n, d_model"), at.free("dY", "n, d_out"), at.free("scale")
W_Q, W_K = at.free("W_Q", "d_model, h*d_k"), at.free("W_K", "d_model, h*d_k")
W_V, W_O = at.free("W_V", "d_model, h*d_v"), at.free("W_O", "h*d_v, d_out")
options = {"n_heads": 2, "scale": tau, "mask": at.given("mask", torch.ones(3, 3).tril().bool())}
X_dot = at.tangent(X)
weights, moving = (W_Q, W_K, W_V, W_O), moves(X, X_dot)
B = blocks(X, *weights, **options)
Q, P, calK, calV, calI, calC, D_K, D_V = B.Q, B.P, B.calK, B.calV, B.calI, B.calC, B.D_K, B.D_V
Y_dot = differential(layer, moving, *weights, **options, name="Y")
dot = differential(blocks, moving, *weights, **options)

line = chain(inner(dY, Y_dot), "the differential of ℓ")
dP = line.let("dP", dY @ W_O.mT @ calV.mT)
dS = line.let("dS", P * (dP - (P * dP) @ calI))
line(inner(dS, dot.S) + inner(P.mT @ dY @ W_O.mT, dot.calV), "P and 𝓥 move")
line(
    inner(tau * dS @ calK, dot.Q) + inner(tau * dS.mT @ Q, dot.calK) + inner(P.mT @ dY @ W_O.mT, dot.calV),
    "S = τ Q 𝓚ᵀ, and both move",
)
dQ = line.let("dQ", tau * dS @ calK)
dK = line.let("dK", tau * calC @ (D_K * (dS.mT @ Q)))
dV = line.let("dV", calC @ (D_V * (P.mT @ dY @ W_O.mT)))
line(
    inner(dQ, X_dot @ W_Q) + inner(dK, X_dot @ W_K) + inner(dV, X_dot @ W_V),
    "Q = X W^Q, K = X W^K, V = X W^V",
)
line(inner(dQ @ W_Q.mT + dK @ W_K.mT + dV @ W_V.mT, X_dot), "⟨A, B C⟩ = ⟨A Cᵀ, B⟩; collect Ẋ")
line.reads_off(X_dot, grad_X(X, *weights, dY, **options))
display(line)

# %% [markdown]
# ## With numbers
#
# Without biases dX has a check that needs no autograd. Scaling X by 1 + ε is the same as scaling W^Q, W^K and W^V by
# 1 + ε. So
#
#     ⟨dX, X⟩ = ⟨dW^Q, W^Q⟩ + ⟨dW^K, W^K⟩ + ⟨dW^V, W^V⟩
#
# and whoever forgets one of the three paths fails it.

# %%
X = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 1], [1, 1, 0, 0]], dtype=torch.float64)
I = torch.eye(4, dtype=torch.float64)
arguments = (X, I, I[[1, 0, 3, 2]], I, I, torch.eye(3, 4, dtype=torch.float64))
left = (grad_X(*arguments, n_heads=2) * X).sum().item()
right = sum(
    (G(*arguments, n_heads=2) * W).sum().item()
    for G, W in zip((grad_W_Q, grad_W_K, grad_W_V), arguments[1:4], strict=True)
)
display(f"⟨dX, X⟩ = {left:.6f}, and the sum of the three {right:.6f}")

# %% [markdown]
# **Questions.** 1. Prove the identity with one chain, letting X move along X itself. 2. Which bias gradients change when the mask
# does? 3. Derive dτ, and read ⟨dW^Q, W^Q⟩ + ⟨db^Q, b^Q⟩ = τ dτ off your result.
