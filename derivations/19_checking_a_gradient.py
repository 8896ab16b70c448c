# %% [markdown]
# # 19 Checking a gradient
#
# $$\frac{f(x + h) - f(x - h)}{2h} = f'(x) + \frac{h^2}{6} f'''(x) + O(h^4) + O\!\left(\frac{\varepsilon}{h}\right)$$
#
# ($\varepsilon \approx 10^{-16}$ is the rounding of a double.) The chapters before this one derive gradients.
# This one and the next are about a backward pass that somebody has written, perhaps without a derivation: is
# it right? Here we look at what people do, and at what it can and cannot see; in chapter 20 at how to be
# sure.
#
# A check has to catch what is wrong, to keep quiet about what is right, and to say when it cannot know. Most
# checks in use fail at the first: their tolerances are larger than the gradients. We measure that below.
#
# ## What finite differences can show
#
# Move one input by $h$ in both directions, and divide the change of the output by $2h$. For
# $P = \operatorname{softmax}(S)$, with $S$ a row of $n_k = 3$ scores, $1 \times n_k$,
# $\partial P_1 / \partial S_2 = -P_1 P_2$ (chapter 4). Here is the error relative to it, for two rows; in one
# the second score is low.

# %%
import math

import torch

from gradderiv.bench.checkers import gradcheck_fast
from gradderiv.bench.layers import ARGUMENTS, OPTIONS, draw, layer_of
from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, display, fact, inner
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.pictures import heat
from gradderiv.checks.mutants import MUTANTS, PEERS, RIGHT, Layer
from gradderiv.rules.blockdiag import blocks, grad_b_Q, grad_W_K, grad_W_O, grad_W_Q, grad_W_V, grad_X


def error(S, h):
    step = torch.tensor([0.0, h, 0.0], dtype=torch.float64)
    P, after, before = (torch.softmax(x, -1) for x in (S, S + step, S - step))
    return abs((after[0] - before[0]) / (2 * h) / (-P[0] * P[1]) - 1).item()


rows = [torch.tensor([1.0, second, 2.0], dtype=torch.float64) for second in (0.0, -30.0)]
print("S_2       ", *(f"{S[1].item():8.0f}" for S in rows))
print("derivative", *(f"{-math.prod(torch.softmax(S, -1)[:2].tolist()):8.1e}" for S in rows))
for k in range(1, 12, 2):
    print(f"h = 1e-{k:02} ", *(f"{error(S, 10.0**-k):8.1e}" for S in rows))

# %% [markdown]
# In the first column the error falls with $h^2$, and then rises again: two nearly equal numbers are
# subtracted, and their rounding, about $10^{-16}$, is divided by $h$. The best $h$ balances $h^2$ against
# $\varepsilon/h$: $h \approx \varepsilon^{1/3} \approx 10^{-5}$, and two thirds of the digits are left. In
# the second column the derivative is so small that, but for the largest $h$, $P_1$ does not move in its 16
# digits: the difference is 0, and a gradient of the opposite sign would look no worse than the right one. So
# a test by differences needs a tolerance, somebody has to choose it, what is smaller is not tested, and what
# it shows, it shows for one point.
#
# **The complex step** (Squire & Trapp 1998) avoids the subtraction. If a program computes with complex
# numbers, and $f$ is analytic, then $f(x + ih) = f(x) + ih f'(x) + \dots$, and the derivative is the
# imaginary part divided by $h$. Nothing cancels, and $h$ can be $10^{-40}$. It asks for a program without
# maximum, absolute value or comparison, softmax written out:


# %%
def complex_step(S, h):
    z = torch.exp(S + torch.tensor([0, h * 1j, 0], dtype=torch.complex128))
    P = torch.softmax(S, -1)
    return abs((z[0] / z.sum()).imag / h / (-P[0] * P[1]) - 1).item()


for h in (1e-2, 1e-8, 1e-40):
    print(f"complex step, h = {h:.0e}:", *(f"{complex_step(S, h):8.1e}" for S in rows))

# %% [markdown]
# Sixteen digits, in the second column too. Dual numbers (chapter 2) are the same idea with a letter whose
# square is 0 in the place of $i$: exact, whatever $h$. Both need the forward program and nothing of the
# backward one, so they do not share its mistakes.
#
# ## The price, and the short cut
#
# All of these give one column of the Jacobian per run. A layer with $W^Q$ of $768 \times 768$ and 16 tokens
# has for this weight alone a Jacobian of $(16 \cdot 768) \times 768^2$ numbers, 58 GB in doubles. So checkers
# take a random direction. For $u$ and $v$ drawn at random, $\langle v, J u\rangle$ from differences must
# equal $\langle J^\top v, u\rangle$ from the backward pass. It costs two runs. That is
# `torch.autograd.gradcheck(fast_mode=True)`.
#
# A random direction is a good idea: the next chapter rests on it. What matters is *what one accepts as
# equal*. Here are fourteen wrong backward passes of a whole layer (8 tokens, $d_{model} = 32$, 4 heads,
# weights as GPT-2 initialises them, normal with deviation 0.02): each is the right one with one term changed,
# and several have been seen in public code.
#
# | name | what is wrong |
# |---|---|
# | softmax-diagonal, softmax-no-rowsum | $dS = P \circ (1 - P) \circ dP$; $dS = P \circ dP$ |
# | scale-missing, scale-model-backward | $dQ$, $dK$ without $\tau$; with $1/\sqrt{d_{model}}$ for $\tau$ |
# | transpose-dK, transpose-dV, swap-dQ-dK | $dK = \tau \, dS \, Q$; $dV = P \, dO$; $dQ$ and $dK$ exchanged |
# | heads-permuted-dQ | the heads of $dQ$ joined in reverse order |
# | x-path-V, x-path-V-only | $dX$ without the path through $V$; with that path alone |
# | entry-too-large, entry-wrong-sign | one entry of $dW^Q$ 10 % too large; with the wrong sign |
# | query-key-zero | $dW^Q$, $dW^K$ and $db^Q$ are 0 |
# | bias-mean | $db^Q$ averaged, not summed |

# %%
wrong_layers = {name: MUTANTS[name] for name in PEERS}
inputs = draw(0.02, 0)
accepted = [gradcheck_fast(layer_of(m.rule()), inputs, 0) == "accepted" for m in wrong_layers.values()]
print(f"gradcheck(fast_mode=True) accepts {sum(accepted)} of {len(accepted)} wrong layers")

# %% [markdown]
# It accepts every one. (It is not only this draw: in another run, with ten draws of inputs, 13 of the 14 were
# accepted in each. `gradderiv bench verify` prints the whole table, for four scales of the weights and five
# checkers.) Why? Let us take it apart for $W^Q$ and three wrong layers. With the absolute tolerance $10^{-5}$
# per entry, and directions with non-negative entries normalised to 1, torch accepts a difference up to
# $10^{-5} \sum_i u_i \sum_j v_j$, which grows with the root of the size of both sides.


# %%
def gradients(name, tensors, dY):
    rule = RIGHT.rule() if name == "right" else MUTANTS[name].rule()
    return rule.gradients(dict(zip(ARGUMENTS, tensors, strict=True)), OPTIONS, dY)


generator = torch.Generator().manual_seed(19)
u = torch.rand(32, 32, generator=generator, dtype=torch.float64)
v = torch.rand(8, 32, generator=generator, dtype=torch.float64)
u, v = u / u.norm(), v / v.norm()
true = (gradients("right", inputs, v)["W_Q"] * u).sum().item()
print(f"<v, J u> for W^Q:            {true:10.1e}")
for name in ("softmax-diagonal", "scale-missing", "query-key-zero"):
    print(f"the same from {name:16}{(gradients(name, inputs, v)['W_Q'] * u).sum().item():9.1e}")
print(f"differences accepted up to:  {1e-5 * (u.sum() * v.sum()).item():10.1e}")

# %% [markdown]
# All of them, the zero included, are far below what is accepted. At initialisation the scores are nearly 0,
# $P$ nearly uniform, and the gradient of $W^Q$ has three small weights as factors. Entry by entry it is the
# same story: a tolerance of $10^{-5}$ beside entries of that size tests nothing. The remedy is no smaller
# constant, which would be wrong at another scale; it is to compare in the scale of the gradient itself. Here
# is the same set, by the largest error of each gradient divided by the largest entry of the right one:


# %%
def furthest_off(found, right):
    seen = [k for k in right if k != "b_K"]  # b_K: see below
    return max(((found[k] - right[k]).abs().max() / right[k].abs().max()).item() for k in seen)


arriving = torch.randn(8, 32, generator=generator, dtype=torch.float64)
reference = gradients("right", inputs, arriving)
off = {name: furthest_off(gradients(name, inputs, arriving), reference) for name in wrong_layers}
reordered = gradients("right", [inputs[0].flip(0), *inputs[1:]], arriving.flip(0))
reordered["X"] = reordered["X"].flip(0)
print(f"smallest relative error of the fourteen: {min(off.values()):.1e} ({min(off, key=off.get)})")
print(f"of the right one, tokens in another order: {furthest_off(reordered, reference):.0e}")


def within(name, allowed):
    """Whether no entry of any gradient is off by more than ``allowed``."""
    right, found = gradients("right", inputs, arriving), gradients(name, inputs, arriving)
    return all((found[k] - right[k]).abs().max() <= allowed for k in right)


print(f"with 2e-2 allowed in every entry: {sum(within(n, 2e-2) for n in wrong_layers)} of 14 accepted")

# %% [markdown]
# The right gradient is itself only known to rounding: computed with the tokens in another order it changes by
# about $10^{-15}$ of its largest entry. Between $10^{-15}$ and $10^{-3}$ there is much room for a tolerance,
# and it can be *measured*: run the reference in one type wider, and allow a small multiple of the error that
# the reference makes in the narrow one. That is what `gradderiv.check` does; no number is typed by anybody.
#
# ```{admonition} Common mistake: an absolute tolerance
# :class: warning
# llm.c accepts $2 \cdot 10^{-2}$ in every entry (the last line above); jax multiplies its tolerance by the
# size of the array. Either passes whatever is smaller than the tolerance. A gradient below the tolerance of
# its own check has not been checked, and the check should say so.
# ```
#
# ## A picture is a diagnosis
#
# *Where* a gradient is wrong tells what is wrong. Relative errors of $dW^Q$, $6 \times 6$, for two heads of
# width 3 and four tokens, with larger weights:

# %%
X, W_Q, W_K, W_V, W_O = (
    torch.randn(s, generator=generator, dtype=torch.float64) for s in ((4, 6), *[(6, 6)] * 4)
)
small = {"X": X, "W_Q": W_Q, "W_K": W_K, "W_V": W_V, "W_O": W_O}
cotangent = torch.randn(4, 6, generator=generator, dtype=torch.float64)
right = Layer().gradients(small, {"n_heads": 2}, cotangent)["W_Q"]
maps = {}
for title, name in {
    "scale": "scale-missing",
    "heads": "heads-permuted-dQ",
    "entry": "entry-wrong-sign",
}.items():
    found = MUTANTS[name].layer().gradients(small, {"n_heads": 2}, cotangent)["W_Q"]
    maps[rf"\mathrm{{{title}}}"] = (found - right) / right
    print(
        f"{name:18} (dW_Q - right) / right: {len(maps[list(maps)[-1]].flatten().round(decimals=6).unique())} different values"
    )
display(
    heat(
        maps,
        cuts=3,
        values=False,
        alt="three maps of relative errors of dW^Q: with the scale missing one colour everywhere, with exchanged heads no "
        "pattern, with one wrong sign a single coloured entry",
    )
)

# %% [markdown]
# One value everywhere is a factor, here $\sqrt{3} - 1$: the scale. A single entry is an index. No pattern at
# all is a wrong matrix. `gradderiv.check` reads such patterns: rows, columns, heads, factors.
#
# ## Identities: checks that need no reference
#
# A gradient of attention must satisfy equations that cost one inner product each, whatever the loss. They
# come from symmetries. Softmax does not see a shift of a row, so rows of $dS$ sum to 0 (chapter 4), and
# $db^K = 0$ (chapter 8). Doubling $W^Q$ and halving $W^K$ does not change the scores. Doubling $W^V$ and
# halving $W^O$ does not change the output. (A bias is doubled or halved with its weight.) Each symmetry is a
# curve on which $\ell$ is constant; its derivative along the curve is 0.
#
# We prove what follows from the last two in the form of chapter 6, with its letters and dimensions, for three
# tokens that attend to one another, $h = 2$.

# %%
at = Point(n=3, d_model=5, h=2, d_k=7, d_v=4, d_out=11)
X, dY, tau = at.free("X", "n, d_model"), at.free("dY", "n, d_out"), at.free("scale")
W_Q, W_K = at.free("W_Q", "d_model, h*d_k"), at.free("W_K", "d_model, h*d_k")
W_V, W_O = at.free("W_V", "d_model, h*d_v"), at.free("W_O", "h*d_v, d_out")
b_Q = at.free("b_Q", "h*d_k")
weights, options = (X, W_Q, W_K, W_V, W_O), {"n_heads": 2, "b_Q": b_Q, "scale": tau}
B = blocks(*weights, **options)
Q, P, calK, calV, calI, calC, D_K, D_V = B.Q, B.P, B.calK, B.calV, B.calI, B.calC, B.D_K, B.D_V
K, V = at.let("K", X @ W_K), at.let("V", X @ W_V)
ones = torch.ones_like(X[:, :1])  # n × 1

dP = at.let("dP", dY @ W_O.mT @ calV.mT)
dS = at.let("dS", P * (dP - (P * dP) @ calI))
dQ = at.let("dQ", tau * dS @ calK)
dK = at.let("dK", calC @ (D_K * (tau * dS.mT @ Q)))
dV = at.let("dV", calC @ (D_V * (P.mT @ dY @ W_O.mT)))
dW_Q, dW_K = (
    at.let("dW_Q", grad_W_Q(*weights, dY, **options)),
    at.let("dW_K", grad_W_K(*weights, dY, **options)),
)
dW_V, dW_O = (
    at.let("dW_V", grad_W_V(*weights, dY, **options)),
    at.let("dW_O", grad_W_O(*weights, dY, **options)),
)
db_Q, dX = at.let("db_Q", grad_b_Q(*weights, dY, **options)), at.let("dX", grad_X(*weights, dY, **options))
SHIPPED_Q, SHIPPED_K, SHIPPED_V = (
    definition(dW_Q, X.mT @ dQ),
    definition(dW_K, X.mT @ dK),
    definition(dW_V, X.mT @ dV),
)

line = chain(inner(dW_Q, W_Q) + inner(db_Q, b_Q), "W^Q and its bias")
line(inner(X.mT @ dQ, W_Q) + inner(dQ.sum(0), b_Q), SHIPPED_Q, definition(db_Q, dQ.sum(0)))
line(inner(dQ, X @ W_Q) + inner(dQ.sum(0), b_Q), laws.LEFT)
line(inner(dQ, X @ W_Q) + inner(dQ, ones @ b_Q.unsqueeze(0)), laws.BIAS)
line(inner(dQ, X @ W_Q + ones @ b_Q.unsqueeze(0)), laws.LINEARITY)
line(inner(dQ, Q), definition(Q, X @ W_Q + ones @ b_Q.unsqueeze(0)))
line(inner(tau * dS @ calK, Q), definition(dQ))
line(inner(dS, tau * Q @ calK.mT), laws.RIGHT)
display(line)

line = chain(inner(dW_K, W_K), "W^K, here without a bias")
line(inner(X.mT @ dK, W_K), SHIPPED_K)
line(inner(dK, X @ W_K), laws.LEFT)
line(inner(calC @ (D_K * (tau * dS.mT @ Q)), X @ W_K), definition(dK))
line(inner(D_K * (tau * dS.mT @ Q), calC.mT @ X @ W_K), laws.LEFT)
line(inner(tau * dS.mT @ Q, D_K * (calC.mT @ X @ W_K)), laws.ENTRYWISE)
line(inner(tau * dS.mT @ Q, calK), definition(calK, D_K * (calC.mT @ X @ W_K)))
line(inner(tau * Q.mT @ dS, calK.mT), laws.TRANSPOSE)
line(inner(dS, tau * Q @ calK.mT), laws.LEFT)
display(line)

# %% [markdown]
# Both are $\langle dS, \tau Q \mathcal{K}^\top\rangle = \langle dS, S\rangle$, so they are equal. What both
# sides have in common cannot be tested by this: any $dS$ at all passes. It is a test of the two products
# behind $dS$, of their scales and transposes. A bias of the keys adds its term as $b^Q$ did. And for one
# head, with its columns of $W^Q$ and $W^K$, the lines are the same with $Q_i$, $K_i$ and $dS_i$ (chapter 7).
# The values and the output projection meet in $\langle dY, P \mathcal{V} W^O\rangle$:

# %%
line = chain(inner(dW_O, W_O), "W^O")
line(inner((P @ calV).mT @ dY, W_O), definition(dW_O, (P @ calV).mT @ dY))
line(inner(dY, P @ calV @ W_O), laws.LEFT)
line(inner(dY @ W_O.mT, P @ calV), laws.RIGHT)
line(inner(P.mT @ dY @ W_O.mT, calV), laws.LEFT)
line(inner(P.mT @ dY @ W_O.mT, D_V * (calC.mT @ V)), definition(calV, D_V * (calC.mT @ V)))
line(inner(D_V * (P.mT @ dY @ W_O.mT), calC.mT @ V), laws.ENTRYWISE)
line(inner(calC @ (D_V * (P.mT @ dY @ W_O.mT)), V), laws.LEFT)
line(inner(dV, V), definition(dV))
line(inner(dV, X @ W_V), definition(V))
line(inner(X.mT @ dV, W_V), laws.LEFT)
line(inner(dW_V, W_V), SHIPPED_V)
display(line)

line = chain(inner(dX, X), "the input of self-attention")
line(
    inner(dQ @ W_Q.mT + dK @ W_K.mT + dV @ W_V.mT, X), definition(dX, dQ @ W_Q.mT + dK @ W_K.mT + dV @ W_V.mT)
)
line(inner(dQ @ W_Q.mT, X) + inner(dK @ W_K.mT, X) + inner(dV @ W_V.mT, X), laws.LINEARITY)
line(inner(dQ, X @ W_Q) + inner(dK, X @ W_K) + inner(dV, X @ W_V), laws.RIGHT)
line(inner(X.mT @ dQ, W_Q) + inner(X.mT @ dK, W_K) + inner(X.mT @ dV, W_V), laws.LEFT)
line(inner(dW_Q, W_Q) + inner(dW_K, W_K) + inner(dW_V, W_V), SHIPPED_Q, SHIPPED_K, SHIPPED_V)
display(line)

# %% [markdown]
# The table has them with all biases. Each has conditions: with RoPE, a norm on the keys, a sink or a soft cap
# some fail, rightly.
#
# | identity | what it is blind to |
# |---|---|
# | $\langle dW^Q, W^Q\rangle + \langle db^Q, b^Q\rangle = \langle dW^K, W^K\rangle + \langle db^K, b^K\rangle$, per head | any mistake before $dS$ |
# | $\langle dW^V, W^V\rangle + \langle db^V, b^V\rangle = \langle dW^O, W^O\rangle$, per head | the way through $P$ |
# | $\langle dX, X\rangle = \langle dW^Q, W^Q\rangle + \langle dW^K, W^K\rangle + \langle dW^V, W^V\rangle$ | all before $dQ$, $dK$, $dV$ |
# | $db^K = 0$ | what keeps rows of $dS$ at sum 0 |
#
# Now the fourteen layers again, with weights of deviation 0.3, and each identity as the difference of its two
# sides, head by head, divided by their size. A cross says that it is above $10^{-9}$.


# %%
def identities(name, tensors, dY):
    t, g = dict(zip(ARGUMENTS, tensors, strict=True)), gradients(name, tensors, dY)

    def per_head(which):
        weight, axis = f"W_{which}", 0 if which == "O" else 1
        total = (g[weight] * t[weight]).sum(1 - axis)
        total = total if which == "O" else total + g[f"b_{which}"] * t[f"b_{which}"]
        return total.reshape(OPTIONS["n_heads"], -1).sum(1)

    q, k, v, o = map(per_head, "QKVO")
    paths = sum((g[f"W_{w}"] * t[f"W_{w}"]).sum() for w in "QKV")
    pairs = {"Q = K": (q, k), "V = O": (v, o), "X": ((g["X"] * t["X"]).sum(), paths)}
    size = {n: max(a.abs().max(), b.abs().max()) for n, (a, b) in pairs.items()}
    off = {n: ((a - b).abs().max() / size[n]).item() for n, (a, b) in pairs.items()}
    return off | {"b_K = 0": (g["b_K"].abs().max() / max(g["b_Q"].abs().max(), g["b_V"].abs().max())).item()}


inputs = draw(0.3, 0)
caught = {}
for name in ("right", *wrong_layers):
    found = identities(name, inputs, arriving)
    if name == "right":
        print(" " * 22, *(f"{n:8}" for n in found), "any")
    caught[name] = any(x > 1e-9 for x in found.values())
    marks = ["x" if x > 1e-9 else "." for x in found.values()]
    print(f"{name:22}", *(f"{m:8}" for m in marks), "x" if caught[name] else "-")
print(
    f"{sum(caught.values())} of {len(wrong_layers)} flagged without any reference; the right one: {caught['right']}"
)

# %% [markdown]
# No reference, no derivation, hardly a tolerance, and a cost of a few inner products: as a first check in a
# training script nothing is better. What is not flagged shows the limit. If $\tau$ is missing in $dQ$ and in
# $dK$, or is another one, then both sides of the first identity have the wrong factor, and both sides of the
# third. A softmax without its row sum satisfies all equations between weights, and only $db^K$ gives it away.
# Without biases in the layer it would pass.
#
# ## Exact zeros and false alarms
#
# The last identity of the table is $db^K = 0$ (chapter 8): a shift of all keys moves all scores of a query
# alike. In floats the sum of many numbers that cancel is not 0 but rounding. A test that divides by the size
# of what it compares, as it should, then compares rounding with rounding.

# %%
leaves = [x.clone().requires_grad_() for x in inputs]
auto = torch.autograd.grad((layer_of(RIGHT.rule())(*leaves) * arriving).sum(), leaves)
other = gradients("right", [inputs[0].flip(0), *inputs[1:]], arriving.flip(0))["b_K"]
mine = auto[list(ARGUMENTS).index("b_K")]
print(f"db_K twice, tokens in two orders: largest {mine.abs().max():.0e} and {other.abs().max():.0e},")
print(f"    relative difference {((mine - other).abs().max() / mine.abs().max()).item():.1f}; both are right")

saturated = draw(30.0, 0)
print(
    f"weights of deviation 30: largest entry of dW_Q {gradients('right', saturated, arriving)['W_Q'].abs().max().item():.0e}"
)

# %% [markdown]
# The remedy is to know the zeros, and to test them as zeros, in units of the terms that cancel. The last line
# is the opposite danger: where every softmax is saturated, $P$ is 0 or 1 and the gradient of $W^Q$ is 0, in
# the right layer and in most wrong ones. A check at this point passes anything. `gradderiv.check` calls such
# a result *vacuous*, which is neither a pass nor a failure.
#
# ## Exercises

# %% [markdown] exercise="19.1" kind="chain" points=3 title="The values of one head"
# One head, $O = PV$, with $P$ $n_q \times n_k$ and $V$ $n_k \times d_v$. Show that $\langle dV, V\rangle$ is
# the sum of all $\delta = \operatorname{rowsum}(dO \circ O)$ (chapter 17): a program that computes $\delta$
# and $dV$ can test the one with the other.

# %% given="19.1"
at = Point(n_q=3, n_k=4, d_v=5)
P, V, dO = at.free("P", "n_q, n_k"), at.free("V", "n_k, d_v"), at.free("dO", "n_q, d_v")
O = at.let("O", P @ V)
line = chain(inner(P.mT @ dO, V), "⟨dV, V⟩, with dV = Pᵀ dO")

# %% answer="19.1"
### BEGIN SOLUTION
line(inner(dO, P @ V), laws.LEFT)
line(inner(dO, O), definition(O))
line((dO * O).sum(), laws.SUM)
### END SOLUTION


# %% checker="19.1"
def other_side(line):
    """it follows by LEFT"""
    line(inner(dO, P @ V), laws.RIGHT)


def twice(line):
    """differ"""
    line(inner(dO, P @ V) + inner(dO, P @ V), laws.LEFT)


def at_once(line):
    """LEFT is used as well"""
    line(inner(dO, O), definition(O))


check_chain(line, ends=(dO * O).sum(), mistakes=[other_side, twice, at_once])

# %% [markdown] exercise="19.2" kind="function" points=3 title="Three paths into X"
# The third identity is broken by a layer that forgets a path. Write $dX$, $n \times d$, from $dQ$, $dK$, $dV$
# and the three weights, each $d \times e$, and $dW^Q$.


# %% answer="19.2"
def input_gradient(dQ, dK, dV, W_Q, W_K, W_V):
    """dX, n × d."""
    ### BEGIN SOLUTION
    return dQ @ W_Q.mT + dK @ W_K.mT + dV @ W_V.mT
    ### END SOLUTION


def query_weight_gradient(X, dQ):
    """dW_Q, d × e."""
    ### BEGIN SOLUTION
    return X.mT @ dQ
    ### END SOLUTION


# %% checker="19.2"
def projections(X, W_Q, W_K, W_V):
    Q, K, V = X @ W_Q, X @ W_K, X @ W_V
    return {"Q": Q, "K": K, "V": V, "O": torch.softmax(Q @ K.mT, -1) @ V}


def without_values(dQ, dK, dV, W_Q, W_K, W_V):
    """the path through V is missing"""
    return dQ @ W_Q.mT + dK @ W_K.mT


def averaged(X, dQ):
    """averaged over two, not summed"""
    return X.mT @ dQ / 2


check_functions(
    {"dX": input_gradient, "dW_Q": query_weight_gradient},
    projections,
    inputs={"X": "n, d", "W_Q": "d, e", "W_K": "d, e", "W_V": "d, e"},
    sizes=[{"n": 3, "d": 4, "e": 2}, {"n": 2, "d": 3, "e": 5}],
    mistakes={"input_gradient": [without_values], "query_weight_gradient": [averaged]},
)

# %% [markdown] exercise="19.3" kind="mistake" points=4 title="An identity for the output"
# Somebody wants to test $W^O$ against the output itself: $Y = C W^O + 1\, b^O$, with $C$ $n \times e$, $W^O$
# $e \times d$, $b^O$ a row of $d$ numbers. One line is false. Which, and what should stand there?

# %% given="19.3"
at = Point(n=3, e=4, d=5)
C, W_O, b_O, dY = at.free("C", "n, e"), at.free("W_O", "e, d"), at.free("b_O", "d"), at.free("dY", "n, d")
ones = torch.ones_like(C[:, :1])  # n × 1
Y = at.let("Y", C @ W_O + ones @ b_O.unsqueeze(0))
REST = fact(C @ W_O, Y - ones @ b_O.unsqueeze(0), "C W^O = Y − 1 b^O")

wrong = claim(inner(C.mT @ dY, W_O), "⟨dW^O, W^O⟩")
wrong(inner(dY, C @ W_O), laws.LEFT)
wrong(inner(dY, Y), REST)
wrong((dY * Y).sum(), laws.SUM)
display(wrong)

# %% answer="19.3"
### BEGIN SOLUTION
answer = correct(3, inner(dY, Y - ones @ b_O.unsqueeze(0)), REST)
### END SOLUTION


# %% checker="19.3"
def rest(line):
    line((dY * (Y - ones @ b_O.unsqueeze(0))).sum(), laws.SUM)


def first_step():
    """line 2 follows from line 1"""
    return correct(2, inner(dY, Y), laws.LEFT)


def later():
    """a line before line 4 is false already"""
    return correct(4, (dY * (Y - ones @ b_O.unsqueeze(0))).sum(), laws.SUM)


def plus():
    """differ"""
    return correct(3, inner(dY, Y + ones @ b_O.unsqueeze(0)), REST)


ends = (dY * (Y - ones @ b_O.unsqueeze(0))).sum()
check_mistake(wrong, answer, ends=ends, rest=rest, mistakes=[first_step, later, plus])

# %% [markdown]
# **Questions.** 1. Which power of $\varepsilon$ is the best $h$ for a one-sided difference, and how many
# digits are left? 2. Two of the fourteen layers change a gradient in one entry only. Which, and why does a
# random direction see them, if nothing is lost to rounding? 3. A layer has RoPE on queries and keys. Does
# $\langle dW^Q, W^Q\rangle = \langle dW^K, W^K\rangle$ still hold, without biases? And $db^K = 0$? 4. When
# gradcheck's fast mode finds a difference, it runs the slow mode to say where. What does this do to the time
# of a test that fails?
