# %% [markdown]
# # 1 Notation
#
# This book derives the gradients of attention by hand and has every line checked by a machine. The
# machine only needs one thing from us: that we write formulas as programs. So we begin by agreeing on
# letters, shapes and names.
#
# ## Matrices and their shapes
#
# A sentence of n tokens is a matrix X with n rows; row i is the vector of token i. Rows are tokens,
# columns are features, everywhere. A linear map multiplies from the right, Y = X W, and W has one
# row per input feature and one column per output feature. (`torch.nn.Linear` stores the transpose of this W.)
#
# | letter | shape | meaning |
# |---|---|---|
# | X, X_kv | n_q × d_model, n_k × d_kv | input; source of keys and values when it is another sequence |
# | W^Q, W^K, W^V | d_model × h·d_k, d_kv × h·d_k, d_kv × h·d_v | projections; in code `W_Q`, `W_K`, `W_V` |
# | W^O | h·d_v × d_out | output projection |
# | Q, K, V | n_q × d_k, n_k × d_k, n_k × d_v | queries, keys, values of one head |
# | S, P | n_q × n_k | scores and probabilities |
# | O, Y | n_q × d_v, n_q × d_out | output of a head, output of the layer |
# | τ | number | the scale, 1/√d_k unless another is given; in code `scale` |
# | M | n_q × n_k, true or false | the mask; true means *may attend* |
# | ℓ | number | the loss, whatever it is; never written out |
#
# With one sequence n_q = n_k = n. A row that may attend to nothing has P = 0 by definition, so its
# output and all its gradients are 0.
#
# Products: A B is the matrix product, A ∘ B multiplies entry by entry and A ⊘ B divides entry by entry;
# both want equal shapes. Aᵀ is the transpose, 1 is a matrix of ones, rowsum(A) is the column of row sums.

# %%
import torch

from gradderiv.book.chain import ChainError, Point, chain, display, inner

at = Point(n=3, d=4, e=2)  # the sizes; why they are all different comes at the end
X = at.free("X", "n, d")
W = at.free("W", "d, e")
display(X)
display(X @ W)

# %% [markdown]
# A named matrix prints its formula and its shape. It also has values, but not floats: its entries are random
# residues modulo three primes near 2³¹. If two formulas agree there, they agree everywhere, up to a
# probability that is printed; chapter 2 says how large.
#
# ## Two things that are both written dX, and here are not
#
# Books on matrix calculus (Magnus & Neudecker) write dX for the *differential*: a small change of X, as in
# d(XW) = (dX) W + X (dW). Programs write `dX` for the *gradient*: the derivative of the loss with respect
# to X. Both are matrices of the shape of X, and they are as different as a step and a slope. We write
#
# - **Ẋ** (`X_dot`) for the step, the *tangent*: X moves to X + ε Ẋ;
# - **dX** for the slope, the *gradient*: the entry (i, j) of dX is ∂ℓ/∂X_ij.
#
# What connects them is one number, the speed at which the loss changes when X moves along Ẋ:
#
#     ℓ̇ = Σ_ij (∂ℓ/∂X_ij) Ẋ_ij = ⟨dX, Ẋ⟩
#
# where ⟨A, B⟩ = Σ_ij A_ij B_ij is the inner product of two matrices of one shape.

# %%
X_dot = at.tangent(X)
dX = at.free("dX", "n, d")
display(inner(dX, X_dot))

# %% [markdown]
# ## How a formula of this book is checked
#
# A *chain* is a sequence of equal expressions, each with the reason why it equals the one before.
# Here is the first: two ways to add up the entries of A ∘ B, and the trace formula that most books use as
# the definition of the inner product.

# %%
A, B = at.free("A", "n, d"), at.free("B", "n, d")

line = chain(inner(A, B), "the definition: Σ_ij A_ij B_ij")
line((A * B).sum(), "entry by entry")
line((A @ B.mT).diagonal().sum(), "row i of A with row i of B: the trace of A Bᵀ")
line((A.mT @ B).diagonal().sum(), "column by column: the trace of Aᵀ B")
line(inner(B, A), "⟨A, B⟩ is symmetric")
display(line)

# %% [markdown]
# If a line is wrong, the chain stops there and says so. We try to get away with a wrong sign:

# %%
try:
    line(-inner(A, B), "a wish")
except ChainError as error:
    display(error)

# %% [markdown]
# ## A small example, kept for the whole book
#
# Three tokens with four features each. All numbers are small integers, so that you can follow every
# chapter with a pencil; the code below each chapter's theory does the same in floats.

# %%
EXAMPLE = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 1], [1, 1, 0, 0]])  # n × d_model = 3 × 4
print(EXAMPLE.int().tolist())

# %% [markdown]
# ## Why the sizes differ
#
# With n = d a forgotten transpose goes unnoticed: the shapes still fit. We therefore prove everything for
# sizes that are pairwise different, and a product with a forgotten transpose is not even defined. The mistake has a history:
# in public code a test with as many heads as positions hid exactly such a transpose.
#
# **Questions.** 1. What shape has the gradient of the loss with respect to τ? 2. X moves along Ẋ and W stays. Along which
# direction does Y = X W move? 3. Why is ⟨A, B⟩ undefined for A of shape 3 × 4 and B of shape 4 × 3, although the
# trace of A B exists?
