# %% [markdown]
# # 3 The linear map
#
#     Y = X W + b          X n × d,  W d × e,  b e,  Y n × e
#
# Every projection of an attention layer is this map: Q = X W^Q, and so on. b is added to each row, so as a matrix
# it stands there as 1 b, a column of n ones times the row b. The results of this chapter are in Giles (2008,
# §2.2.2) and Magnus & Neudecker (ch. 5).
#
# The loss is a function of Y about which we know one thing: dY, its gradient. dY arrives from the right, from whatever
# comes after the map; our job is to send it further left.

# %%
import torch

from gradderiv.book.chain import Point, chain, differential, display, inner, moves
from gradderiv.rules.linear import linear, linear_vjp

at = Point(n=3, d=4, e=2)
X, W, b = at.free("X", "n, d"), at.free("W", "d, e"), at.free("b", "e")
dY = at.free("dY", "n, e")
Y, saved = linear(X, W, b)

# %% [markdown]
# ## The weights
#
# Only W moves, along Ẇ. W stands on the right of a product, so X is what has to go over: rule 2.

# %%
W_dot = at.tangent(W)
Y_dot, _ = differential(linear, X, moves(W, W_dot), b, name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, X @ W_dot), "Y = X W + b, and only W moves")
line(inner(X.mT @ dY, W_dot), "⟨A, B C⟩ = ⟨Bᵀ A, C⟩")
line.reads_off(W_dot, linear_vjp(dY, saved).W)
display(line)

# %% [markdown]
# dW = Xᵀ dY is d × n times n × e: the rows, the tokens, are summed over. Every token adds its own outer product
# x_i dy_iᵀ to the gradient of the shared weights.
#
# ## The input
#
# Now X moves. It stands on the left, and W goes over: rule 1.

# %%
X_dot = at.tangent(X)
Y_dot, _ = differential(linear, moves(X, X_dot), W, b, name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, X_dot @ W), "Y = X W + b, and only X moves")
line(inner(dY @ W.mT, X_dot), "⟨A, B C⟩ = ⟨A Cᵀ, B⟩")
line.reads_off(X_dot, linear_vjp(dY, saved).X)
display(line)

# %% [markdown]
# dX = dY Wᵀ acts on each row by itself, as the forward map did: token i hears only about token i. It is attention, in
# chapter 5, that mixes rows.
#
# ## The bias

# %%
b_dot = at.tangent(b)
one = at.given("1", torch.ones(3, 1))  # n × 1
Y_dot, _ = differential(linear, X, W, moves(b, b_dot), name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, one @ b_dot.unsqueeze(0)), "each row of Y contains b")
line(inner(one.mT @ dY, b_dot.unsqueeze(0)), "⟨A, B C⟩ = ⟨Bᵀ A, C⟩")
line(inner(dY.sum(0), b_dot), "1ᵀ dY as a vector: dYᵀ 1")
line.reads_off(b_dot, linear_vjp(dY, saved).b)
display(line)

# %% [markdown]
# db = dYᵀ 1 is the *sum* of the rows of dY, not their mean. (The mean is a mistake one meets in exercises: it comes from
# a loss that was averaged over the batch. If the loss is a mean, the 1/n is already in dY.)
#
# ## Batches
#
# If X has more axes, (batch, n, d), nothing changes: lay all sequences under one another into one tall matrix. W
# and b are shared by all its rows, so dW and db are sums over batch and tokens.

# %%
batch = Point(batch=5, n=3, d=4, e=2)
X, W, b = batch.free("X", "batch, n, d"), batch.free("W", "d, e"), batch.free("b", "e")
dY = batch.free("dY", "batch, n, e")
W_dot = batch.tangent(W)
Y, saved = linear(X, W, b)
Y_dot, _ = differential(linear, X, moves(W, W_dot), b, name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, X @ W_dot), "one product for each sequence")
line(inner(dY.flatten(0, 1), X.flatten(0, 1) @ W_dot), "sequences under one another: tall matrices")
line(inner(X.flatten(0, 1).mT @ dY.flatten(0, 1), W_dot), "⟨A, B C⟩ = ⟨Bᵀ A, C⟩")
line.reads_off(W_dot, linear_vjp(dY, saved).W)
display(line)

# %% [markdown]
# ## With numbers
#
# The three tokens of chapter 1 and a map to two features.

# %%
X = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 1], [1, 1, 0, 0]])
W = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, -1]])
b = torch.zeros(2)
dY = torch.tensor([[1.0, 0], [0, 2], [1, 1]])

Y, saved = linear(X, W, b)
g = linear_vjp(dY, saved)
print("Y ", Y.int().tolist())
print("dW", g.W.int().tolist())
print("dX", g.X.int().tolist())
print("db", g.b.int().tolist())

# %% [markdown]
# By hand: the first row of dW is feature 1 of every token times dY, 1·(1, 0) + 0·(0, 2) + 1·(1, 1) = (2, 1).
#
# **Questions.** 1. `torch.nn.Linear` computes Y = X Vᵀ + b. Derive dV, and check that it is the transpose of dW. 2. What is
# dX if one token occurs twice in the batch? 3. Two maps after one another, Y = X W_1 W_2: derive dW_1 without new
# rules.
