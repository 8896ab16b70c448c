# %% [markdown]
# # 2 Reading off a gradient
#
# A gradient is found in three moves, always the same three:
#
# 1. let one variable move, X to X + ε Ẋ, and write down how fast the loss moves: ℓ̇ = ⟨dY, Ẏ⟩;
# 2. push Ẏ back through the formula, step by step, until only Ẋ is left;
# 3. move everything else to the other side of the inner product: ℓ̇ = ⟨G, Ẋ⟩. Then G is the gradient.
#
# This is the method of Magnus & Neudecker (*Matrix Differential Calculus*) with their differential dX written
# Ẋ; Giles (2008) uses it to collect the results of which chapter 3 proves the first.
#
# ## Why G is the gradient
#
# By definition ℓ̇ = Σ_ij (∂ℓ/∂X_ij) Ẋ_ij = ⟨dX, Ẋ⟩, for every direction Ẋ. If also ℓ̇ = ⟨G, Ẋ⟩ for every Ẋ, take
# the direction that is 1 in the entry (i, j) and 0 elsewhere: it reads (dX)_ij = G_ij. So there is nothing to
# choose: *what multiplies Ẋ is the gradient*, and G has the shape of X because ⟨G, Ẋ⟩ is only defined then.
#
# ## The four rules for moving things
#
# Only four rules are needed in this book. Each is an identity between inner products; dimensions tell them apart,
# since a factor moved to the wrong end gives shapes that do not fit.

# %%
import torch

from gradderiv.book.chain import Point, chain, differential, display, inner, moves

at = Point(n=3, d=4, e=2)
A, B, C = at.free("A", "n, e"), at.free("B", "n, d"), at.free("C", "d, e")

line = chain(inner(A, B @ C), "Σ_ij A_ij Σ_k B_ik C_kj")
line(inner(A @ C.mT, B), "rule 1: the right factor goes over, transposed")
line(inner(B @ C, A), "⟨A, B⟩ = ⟨B, A⟩")
line(inner(C, B.mT @ A), "rule 2: the left factor goes over, transposed")
display(line)

# %%
D = at.free("D", "e, n")
line = chain(inner(A, D.mT), "Σ_ij A_ij D_ji")
line(inner(A.mT, D), "rule 3: transpose both sides")
display(line)

# %%
F, G = at.free("F", "n, e"), at.free("G", "n, e")
line = chain(inner(A, F * G), "Σ_ij A_ij F_ij G_ij")
line(inner(A * F, G), "rule 4: an entrywise factor goes over as it is")
display(line)

# %% [markdown]
# Rules 1 and 2 in words: *the transpose of multiplication by C is multiplication by Cᵀ, on the same side*. Where
# the code of a backward pass has a `.mT`, one of the two rules was used.
#
# ## Tangents come from the program
#
# Step 1 needs Ẏ, and it must not come from us: a mistake there would be proved along with everything else. It
# is computed from the forward program by *dual numbers*. A dual number is p + ε t with ε² = 0, and arithmetic on it carries the
# product rule along:
#
#     (p + ε t)(q + ε s) = p q + ε (p s + t q)          exp(p + ε t) = exp p + ε exp(p) t
#
# Feed X + ε Ẋ into any program, and beside its result Y stands the *true* tangent Ẏ. In code that
# is `differential(program, moves(X, X_dot))`. The derivative of the program enters here and nowhere else; the lines
# below it only rewrite.

# %% [markdown]
# ## A first gradient
#
# Take the program Y = X Xᵀ, all inner products between tokens. X occurs twice, so two paths lead
# back to it, and a gradient that misses one of them is half as large.


# %%
def gram(X):
    return X @ X.mT  # n n


X = at.free("X", "n, d")
X_dot = at.tangent(X)
dY = at.free("dY", "n, n")
Y_dot = differential(gram, moves(X, X_dot), name="Y")

line = chain(inner(dY, Y_dot), "the differential of ℓ")
line(inner(dY, X_dot @ X.mT + X @ X_dot.mT), "the product rule: both factors move")
line(inner(dY, X_dot @ X.mT) + inner(dY, X @ X_dot.mT), "⟨A, B⟩ is linear in B")
line(inner(dY @ X, X_dot) + inner(X.mT @ dY, X_dot.mT), "rule 1 and rule 2")
line(inner(dY @ X, X_dot) + inner(dY.mT @ X, X_dot), "rule 3")
line(inner((dY + dY.mT) @ X, X_dot), "collect Ẋ")
display(line)

# %% [markdown]
# So dX = (dY + dYᵀ) X. Check dimensions: n × n times n × d is n × d, the shape of X.
#
# ## With numbers
#
# For X the example of chapter 1 and a loss ℓ = ⟨T, Y⟩ with a fixed matrix T we have dY = T. We compare with what the
# definition says: move one entry of X a little and watch ℓ.

# %%
X = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 1], [1, 1, 0, 0]], dtype=torch.float64)
T = torch.tensor([[0.0, 1, 0], [2, 0, 0], [0, 0, 1]], dtype=torch.float64)
gradient = (T + T.mT) @ X


def loss(X):
    return (T * gram(X)).sum()


moved = X.clone()
moved[0, 1] += 1e-6
print(gradient.tolist())
print(
    "entry (1, 2):",
    gradient[0, 1].item(),
    "and by moving it:",
    round(((loss(moved) - loss(X)) / 1e-6).item(), 4),
)

# %% [markdown]
# ## What "checked" means, and how sure it is
#
# Both sides of every line are rational functions (and, from chapter 4, exponentials) of all entries. The machine
# draws a prime p near 2³¹ and random residues for all entries, and evaluates both sides exactly, without rounding.
# If the two sides are different functions of degree D, they agree at a random point with
# probability at most D/p (Schwartz 1980, Zippel 1979). Three primes at once make that (D/p)³, and the figure under each
# chain is the sum over its lines. An exponential is replaced by a random function of its argument; an identity that holds for
# *every* function in its place holds for exp.
#
# A check with floats could not do this. It compares up to a tolerance, and the tolerance of a gradient that is small to begin
# with hides mistakes in it.
#
# **Questions.** 1. Derive the gradient of X with respect to ℓ = ⟨T, Xᵀ X⟩. 2. For which T does dX = 2 T X hold in the
# example above? 3. Rules 1 and 2 are special cases of one sentence about linear maps and their adjoints; which?
