# %% [markdown]
# # 4 Softmax
#
#     P = softmax(S):   P_ij = M_ij exp S_ij / Σ_k M_ik exp S_ik          S, P, M n_q × n_k
#
# Each row of scores becomes a row of probabilities (Bridle 1990; Vaswani et al. 2017, §3.2.1). The mask M says which
# entries take part; a row in which none does is 0 by definition.
#
# Entries of a row depend on all scores of that row, so softmax is not an entrywise function. Hand-written backward
# passes have gone wrong here, in published code too: dS = P ∘ (1 − P) ∘ dP is the derivative of a *logistic*. It forgets
# that raising one probability lowers the others.
#
# ## Row sums as a matrix product
#
# Let 𝓘 be the n_k × n_k matrix of ones. Then A 𝓘 is the matrix whose every entry is the sum of its row in A: each
# row sum, repeated n_k times. It is the only tool that this chapter needs, and it is symmetric, 𝓘ᵀ = 𝓘.

# %%
import torch

from gradderiv.book.chain import Point, chain, differential, display, inner, moves
from gradderiv.rules.softmax import SoftmaxSaved, softmax, softmax_jvp, softmax_vjp

at = Point(n_q=3, n_k=4)
S = at.free("S", "n_q, n_k")
calI = at.given("calI", torch.ones(4, 4))  # n_k n_k


def row_sums(S, calI):
    return torch.exp(S) @ calI  # n_q n_k


E = at.let("E", torch.exp(S))
R = at.let("R", row_sums(S, calI))
P = at.let("P", softmax(S)[0])

line = chain(softmax(S)[0], "the function that ships")
line(E / R, "the definition, without a mask: E = exp S, and R = E 𝓘 are its row sums")
display(line)

# %% [markdown]
# ## The tangent
#
# S moves along Ṡ, and with it E, R and P. All tangents below are true ones, from dual numbers through the program.

# %%
S_dot = at.tangent(S)
E_dot = differential(torch.exp, moves(S, S_dot), name="E")
R_dot = differential(row_sums, moves(S, S_dot), calI, name="R")
P_dot, _ = differential(softmax, moves(S, S_dot), name="P")

line = chain(P_dot, "the true tangent")
line(E_dot / R - E * R_dot / (R * R), "quotient rule for P = E ⊘ R")
line(E_dot / R - P * (R_dot / R), "P = E ⊘ R")
line((E * S_dot) / R - P * (((E * S_dot) @ calI) / R), "Ė = E ∘ Ṡ, and Ṙ = Ė 𝓘")
line(P * S_dot - P * ((P * S_dot) @ calI), "R is constant in a row: it may go under the sum")
line(P * (S_dot - (P * S_dot) @ calI), "collect P")
display(line)

# %% [markdown]
# In words: Ṡ minus its mean in the row, weighted by P, times P. If all scores of a row rise together the mean rises
# with them and P stays: softmax does not see a shift of its row.
#
# ## The mask
#
# A hidden entry has P_ij = 0, whatever its score. Both sides of Ṗ = P ∘ (Ṡ − (P ∘ Ṡ) 𝓘) are 0 there, and in the
# other entries the sums run over what is allowed, since P is 0 elsewhere. So the formula holds as it stands, and never
# asks for the mask: it is in P. That includes a row without any allowed key, the last row below.

# %%
mask = at.given("mask", torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [0, 0, 0, 0]]).bool())
P = at.let("P", softmax(S, mask=mask)[0])
saved = SoftmaxSaved(P)
P_dot, _ = differential(softmax, moves(S, S_dot), mask=mask, name="P")

line = chain(P_dot, "the true tangent, masked")
line(P * (S_dot - (P * S_dot) @ calI), "as before, 0 = 0 where M hides")
line(P * (S_dot - (P * S_dot).sum(-1, keepdim=True)), "the mean once per row; the subtraction repeats it")
line(softmax_jvp(saved, S_dot), "the function that ships")
display(line)

# %% [markdown]
# ## The gradient
#
# dP arrives. We push ⟨dP, Ṗ⟩ back to S.

# %%
dP = at.free("dP", "n_q, n_k")

line = chain(inner(dP, P_dot), "the differential of ℓ")
line(inner(dP, P * (S_dot - (P * S_dot) @ calI)), "the tangent of softmax")
line(inner(P * dP, S_dot - (P * S_dot) @ calI), "⟨A, B ∘ C⟩ = ⟨A ∘ B, C⟩")
line(inner(P * dP, S_dot) - inner(P * dP, (P * S_dot) @ calI), "linearity")
line(inner(P * dP, S_dot) - inner((P * dP) @ calI, P * S_dot), "⟨A, B C⟩ = ⟨A Cᵀ, B⟩, and 𝓘ᵀ = 𝓘")
line(inner(P * dP, S_dot) - inner(P * ((P * dP) @ calI), S_dot), "⟨A, B ∘ C⟩ = ⟨A ∘ B, C⟩")
line(inner(P * (dP - (P * dP) @ calI), S_dot), "collect Ṡ, then P")
line.reads_off(S_dot, softmax_vjp(dP, saved).S)
display(line)

# %% [markdown]
# The same formula as the tangent, with dP in the place of Ṡ: for one row p, the Jacobian diag(p) − p pᵀ is symmetric.
# The row sum of P ∘ dP has a name, δ, one number per row, and the gradient is written
#
#     dS = P ∘ (dP − δ),   δ = rowsum(P ∘ dP)                                   Dao et al. 2022, app. B.2
#
# The rows of dS sum to 0 (sum the formula and use that P sums to 1, or is 0). That is the same fact as
# "softmax does not see a shift", read backwards, and a check that costs nothing.

# %%
line = chain((P * dP) @ calI, "δ, repeated in its row")
line((P * ((P * dP) @ calI)) @ calI, "δ is constant in its row, and P 𝓘 = 1 where P is not 0")
display(line)

# %% [markdown]
# ## With numbers
#
# Scores whose exponentials are 1, 2, 1 in the first row give P = (¼, ½, ¼). Let the loss be the first probability,
# dP = (1, 0, 0). Then δ = ¼, dP − δ = (¾, −¼, −¼) and dS = (3/16, −2/16, −1/16): the first score should rise, the others
# should fall, in proportion to their probabilities. The derivative of a logistic would say (3/16, 0, 0).

# %%
S = torch.tensor([[1.0, 2, 1], [1, 1, 2], [3, 1, 1]], dtype=torch.float64).log()
dP = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
P, saved = softmax(S)
dS = softmax_vjp(dP, saved).S
print("16 dS", (16 * dS[0]).round().int().tolist(), " sums to", round(dS[0].sum().item(), 12))

# %% [markdown]
# **Questions.** 1. For which dP is P ∘ (1 − P) ∘ dP right in the entry (i, j)? 2. The
# temperature: P = softmax(τ S). Derive dS and dτ. 3. Where in the chain would a softmax over *columns* change, and what
# becomes of 𝓘?
