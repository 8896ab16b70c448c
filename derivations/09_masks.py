# %% [markdown]
# # 9 Masks
#
# $$P = E \oslash \operatorname{rowsum}(E), \qquad E = M \circ \exp S, \qquad S, E, P, M \;\; n_q \times n_k$$
#
# A decoder must not look at later tokens, and nobody may look at padding. Vaswani et al. 2017, §3.2.3, say
# it in half a sentence: set the scores of illegal connections to $-\infty$. The sentence hides three
# questions. What is a row of which every key is hidden? What changes if a program writes $-10000$ for
# $-\infty$? And where does gradient flow? Public systems have answered each of them in several ways, and
# some answers are wrong. This chapter derives all three.
#
# $M_{ij} = 1$ where query $i$ may attend to key $j$, and $0$ where it may not. (In code `mask`, boolean,
# True = may attend.) As $\exp(-\infty) = 0$, writing $-\infty$ into the scores and multiplying the
# exponentials by $M$ are one thing. The second says it without an infinity, so we differentiate that.
#
# ## A mask is a factor
#
# A row that hides everything would be $0/0$. It has no softmax, so it needs a definition, and ours is $0$.
# Chapter 4 derived the tangent of a masked softmax for the other rows, and spoke of the empty ones in words.
# Here one formula covers all: let $e$ be $1$ in empty rows and $0$ in others, a column, $n_q \times 1$, and
# divide by $R = \operatorname{rowsum}(E) + e$, $n_q \times 1$. An empty row is then $0/1$. Below, the last
# of three queries sees nothing.

# %%
import torch

from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, differential, display, fact, inner, moves
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.pictures import heat
from gradderiv.casebook.onnxruntime_14363 import MASK, N, condition, near, report_scores
from gradderiv.rules.attend import attend, attend_vjp
from gradderiv.rules.attention import attention, attention_vjp
from gradderiv.rules.fills import SEMANTICS, Fill, masked_fill, masked_fill_vjp
from gradderiv.rules.masks import causal, hidden
from gradderiv.rules.score_bias import distance
from gradderiv.rules.softmax import SoftmaxSaved, softmax, softmax_vjp

at = Point(n_q=3, n_k=4)
allowed = torch.tensor([[1.0, 1, 0, 1], [1, 0, 1, 1], [0, 0, 0, 0]])
mask = at.given("mask", allowed.bool())
M = at.given("mask", allowed)  # the same, as numbers
e = at.given("e", torch.tensor([[0.0], [0], [1]]))
S, dP = at.free("S", "n_q, n_k"), at.free("dP", "n_q, n_k")


def exponentials(S, M):
    return M * torch.exp(S)  # n_q n_k


def row_sums(S, M, e):
    return exponentials(S, M).sum(-1, keepdim=True) + e  # n_q 1


E = at.let("E", M * torch.exp(S))
R = at.let("R", E.sum(-1, keepdim=True) + e)
P = at.let("P", softmax(S, mask=mask)[0])
EXPONENTIALS, ROW_SUMS, SOFTMAX = definition(E), definition(R), definition(P, E / R)

# %% [markdown]
# The last line is the first check: the function that ships, which writes $-\infty$ and lets `torch.softmax`
# do the rest, returns $E \oslash R$. Now $S$ moves. $M$ and $e$ are constants; whether a key is hidden does
# not depend on its score.

# %%
S_dot = at.tangent(S)
P_dot, _ = differential(softmax, moves(S, S_dot), mask=mask, name="P")
E_dot = differential(exponentials, moves(S, S_dot), M, name="E")
R_dot = differential(row_sums, moves(S, S_dot), M, e, name="R")

line = chain(P_dot, "the true tangent")
line(E_dot / R - P * (R_dot / R), SOFTMAX.moves)
line(E * S_dot / R - P * (R_dot / R), EXPONENTIALS.moves)
line(E * S_dot / R - P * ((E * S_dot).sum(-1, keepdim=True) / R), ROW_SUMS.moves, EXPONENTIALS.moves)
line(E * S_dot / R - P * (E * S_dot / R).sum(-1, keepdim=True), laws.ROW_FACTOR)
line(P * S_dot - P * (P * S_dot).sum(-1, keepdim=True), SOFTMAX)
line(P * (S_dot - (P * S_dot).sum(-1, keepdim=True)), laws.LINEARITY)
display(line)

# %% [markdown]
# The tangent of chapter 4, letter for letter, and $e$ has dropped out as a constant. From the tangent
# chapter 4 goes on to the gradient, $dS = P \circ (dP - \delta)$ with $\delta = \operatorname{rowsum}(P
# \circ dP)$, $n_q \times 1$, and asks for no property of $P$ on the way. $M$ was in $E$, left with it, and
# is in $P$ now: **the backward pass of a mask needs no mask**. It needs the $P$ of the forward pass. The
# empty row came along: there $P = 0$, so $dS = 0$.

# %%
delta = at.let("delta", (P * dP).sum(-1, keepdim=True))
SHIPPED = fact(softmax_vjp(dP, SoftmaxSaved(P)).S, P * (dP - delta), "softmax_vjp returns P ∘ (dP − δ)")
display(SHIPPED.statement)

# %% [markdown]
# ## Where gradient flows
#
# A hidden entry has $P_{ij} = 0$, that is $M \circ P = P$. So $dS$ is hidden where the scores are:

# %%
HIDDEN = fact(M * P, P)

line = chain(P * (dP - delta), "the gradient dS")
line(M * P * (dP - delta), HIDDEN)
display(line)

# %% [markdown]
# What does that mean for a key $j$ that no query may see, a column of zeros in $M$? Row $j$ of $dV = P^\top
# dO$ and row $j$ of $dK = \tau\, dS^\top Q$ are sums over column $j$ of $P$ and of $dS$: both are zero.
# As a key, padding gets no gradient. A query $i$ that sees nothing has a row of zeros, so its row of $dQ =
# \tau\, dS K$ is zero. And a query that sees exactly one key has $P_{ij} = 1$ there and $\delta_i =
# dP_{ij}$: again $dS = 0$. The first row of a causal mask sends gradient to its value and never to a score.
#
# The picture shows it for seven tokens, counted from 0. Later keys are hidden, and tokens 0, 3, 4 and 6 are
# padding, as in the case below: the mask, the probabilities, the gradient of the scores.

# %%
padding = hidden(torch.tensor(MASK) == 0).on((N, N)).expand(N, N)
earlier = causal().on((N, N))
both = padding & earlier
generator = torch.Generator().manual_seed(9)
scores, cotangent = torch.randn(2, N, N, dtype=torch.float64, generator=generator)
shown, saved = softmax(scores, mask=both)
display(
    heat(
        {"M": both.double(), "P": shown, "dS": softmax_vjp(cotangent, saved).S + 0},
        alt="Seven queries, seven keys. M is 1 in columns 1, 2 and 5, on and below the diagonal; "
        "P and dS are 0 elsewhere. Row 0 is empty, and row 1 has P = 1 in one place and dS = 0.",
        rows="query",
        columns="key",
    )
)

# %% [markdown]
# Masks combine by logic: a key is seen where padding *and* causality allow it, $M = M_1 \circ M_2$, which
# is `&` in code. Keep that in mind for what follows.
#
# ## A number in the place of −∞
#
# Programs have written large numbers for $-\infty$: $-10000$ (BERT's code; `mask_filter_value` of
# onnxruntime), $-10^9$, the lowest float. All of them are
#
# $$S' = \kappa \circ S + C, \qquad P = \operatorname{softmax}(S'), \qquad \text{all } n_q \times n_k$$
#
# with $C$ the number where a key is hidden and $0$ elsewhere; $\kappa = 0$ where the score is *replaced*,
# $\kappa = 1$ everywhere if the number is *added*. The derivative is short, and shows how much hangs on
# that choice. ($S'$ and its gradient $dS'$ are `S_filled` and `dS_filled` in the program.)

# %%
keep, kappa = at.given("kappa", allowed.bool()), at.given("kappa", allowed)
C = at.free("C", "n_q, n_k")
fill = Fill(keep, C)
S_filled, saved = masked_fill(S, fill=fill)
S_filled = at.let("S_filled", S_filled)
dS_filled = at.free("dS_filled", "n_q, n_k")
FILLED = definition(S_filled, kappa * S + C)
S_filled_dot, _ = differential(masked_fill, moves(S, S_dot), fill=fill, name="S_filled")

line = chain(inner(dS_filled, S_filled_dot), "the differential of ℓ")
line(inner(dS_filled, kappa * S_dot), FILLED.moves)
line(inner(kappa * dS_filled, S_dot), laws.ENTRYWISE)
line.reads_off(S_dot, masked_fill_vjp(dS_filled, saved).S)
display(line)

# %% [markdown]
# - $-\infty$: hidden entries have $P = 0$ exactly, whatever the scores are.
# - replaced by a finite number: a score that is hidden gets no gradient, $\kappa = 0$. Its *value* does:
# $dV = P^\top dO$ asks for $P$ only, and $P$ is not quite $0$.
# - a finite number added: $dS = dS'$. In a row that sees a key, $P$ of the hidden ones underflows to $0$ in
# floats, and with it $dS$. In a row that sees none, nothing is large beside them: $C$ is one constant for
# the whole row, softmax does not see a shift of its row, and **the mask is gone**. Then hidden keys share
# the row, and gradient goes to them.
#
# Exact arithmetic makes the difference visible: over a field nothing underflows, $\exp(-10000)$ is not $0$,
# and a rule with a finite fill is refuted against one with $-\infty$. That is right. $-10000$ is a number;
# only rounding makes a mask of it.
#
# ## The case: onnxruntime #14363
#
# A user of onnxruntime 1.13.1 reported outputs of its operators `Attention` and `QAttention` that are 10 to
# 50 % away from what they should be. The case: 13 heads of 37, seven tokens, the padding mask 0110010 (1 =
# a token), and `unidirectional`, that is causal. Two masks, therefore, and the operator implements each by
# adding $-10000$:

# %%
each = SEMANTICS["add each"].options([padding, earlier], torch.float64)["fill"].constant
print("the two masks, added (in thousands):")
for row in (each / 1000).int().tolist():
    print(" ".join(f"{x:4d}" for x in row))

# %% [markdown]
# Numbers that stand for masks do not combine: where both hide a key there is $-20000$ now. In a row that
# sees something it makes no difference. In row 0, where everything is hidden, it makes two classes of
# hidden keys: those hidden once ($-10000$: keys 0, 1, 2 and 5) and those hidden twice ($-20000$: keys 3, 4
# and 6). Beside the first the second are nothing.
#
# The report prints its scores, so its row can be computed again. $S + C$ minus $C$ gives back $S$ to the
# digits that were printed; here is row 0 under all the ways found in real systems
# (`gradderiv.rules.fills`). The report itself prints [0.0005, 0.3332, 0.3332, 0, 0, 0.3332, 0]: the last
# line, "onnxruntime 1.13".

# %%
S_report = report_scores()
print("scores", " ".join(f"{x:6.2f}" for x in S_report[0].tolist()))
for name, semantics in SEMANTICS.items():
    options = semantics.options([padding, earlier], torch.float64)
    filled = masked_fill(S_report, fill=options["fill"])[0] if "fill" in options else None
    row = softmax(S_report, mask=both)[0][0] if filled is None else torch.softmax(filled, -1)[0]
    print(f"{name:17s}", " ".join(f"{x:6.4f}" for x in row.tolist()))

# %% [markdown]
# Eight programs, seven different rows, and one mask. "zero" is the definition of this book. "nan" is
# $-\infty$ without a definition. "replace" and "lowest" are uniform: the row attends to padding, to later
# tokens, to everything. "add" is the softmax of the plain scores, as the shift argument says. "add each"
# drops the keys hidden twice. The version of the report also takes the later scores out ($\kappa = 0$
# there) before it adds, so keys 1, 2 and 5 tie at $-10000$, and key 0 has its score $-6.6$ besides. Newer
# versions ("onnxruntime") add $-10000$ for padding, and then replace the scores of later tokens by the
# lowest float. That is far below $-10000$, so row 0 attends to token 0 alone, which is padding. (Found by
# running onnxruntime 1.31.1: `gradderiv casebook onnxruntime-14363`. Its other six rows agree with those of
# all the others.)
#
# The report expects $1/7$ for each. That is the row of a program that replaces by one number. There is no
# right answer to be found in the formula: $0/0$ needs a definition. What can be said is what a definition
# does. With $P = 0$ nothing leaks. With any other row the output of a padding query is a mixture of hidden
# values, and if the loss sees it, gradient flows into tokens that do not exist.
#
# ```{admonition} Common mistake: two masks, added
# :class: warning
# $-10000 + (-10000) = -20000$ is another fill than $-10000$, and the lowest float plus the lowest float is
# $-\infty$, which is $0/0$ where everything is hidden. Rows that see a key do not show it, so neither
# shapes nor a loss that leaves out padding do; in row 0, "add each" and "add" of the table differ. Combine
# masks with `&`, and fill once. Seen in: onnxruntime #14363 and #8549; the overflow in Automodel #2658 and
# gpt-neox #25.
# ```
#
# ## Is softmax ill-conditioned there?
#
# The report has a second argument. It lowers one of seven equal scores at $-10000$ by 1, 2, 3, 4, a relative
# change of a few times $10^{-4}$, and the probability falls from 0.14 to 0.00. It repeats this at $-10^8$,
# sees no change at all, and takes $-10^8$ for the better fill. Both observations can be reproduced, and the
# second has another reason. ("moved" is by how much.)

# %%
print("           fill -10000              fill -1e8")
print("moved   float32  condition   float32  float64  condition")
for moved in (0.0, -1.0, -2.0, -3.0, -4.0):
    deep = torch.softmax(near(-1e8, moved, torch.float32), -1)[0]
    deep_wide = torch.softmax(near(-1e8, moved, torch.float64), -1)[0]
    shallow = torch.softmax(near(-1e4, moved, torch.float32), -1)[0]
    conditions = [condition(near(fill, moved, torch.float64)) for fill in (-1e4, -1e8)]
    at_10000 = f"{shallow:.4f}   {conditions[0]:.2e}"
    print(f"{moved:5.0f}   {at_10000}   {deep:.4f}   {deep_wide:.4f}   {conditions[1]:.2e}")
below = torch.nextafter(torch.tensor(-1e8), torch.tensor(-torch.inf)).item()
print(f"the float32 below -1e8 is {below:.0f}")

# %% [markdown]
# How large a *relative* change of the output a small relative change of the input can make is measured by a
# condition number. For a row $s$ of scores and its probabilities $p$, both $1 \times n_k$, it is
# $\lVert J \rVert\, \lVert s \rVert / \lVert p \rVert$ with the Jacobian of chapter 4, $J =
# \operatorname{diag}(p) - p^\top p$, $n_k \times n_k$, and its spectral norm. The first chain of this chapter
# says what to think of it. $\dot{P} = P \circ (\dot{S} -
# \operatorname{rowsum}(P \circ \dot{S}))$ contains $\dot{S}$ and $P$, and no $S$: a shift of the row
# changes nothing, so the *absolute* sensitivity at $-10000$ is that of scores around $0$. What grows is
# $\lVert s \rVert$, by the choice to write the row at $-10000$. At $-10^8$ the condition is ten thousand
# times larger, not smaller. The experiment did not see it because float32 numbers near $-10^8$ are 8 apart:
# $-10^8 - 4$ *is* $-10^8$. The change never arrives. In float64 it arrives, and the probabilities are those
# of the fill $-10000$.
#
# So a deeper fill does not stabilise a row without keys; it deletes its scores by rounding. No finite fill
# cures the row.
#
# ## What the slips do
#
# One head, the masks of the case, random scores and cotangents. How far is each gradient from the right
# one? The last column is the free check of chapter 4: the rows of $dS$ sum to $0$.

# %%
Q, K, V, dO = torch.randn(4, N, 5, dtype=torch.float64, generator=generator)
S_case = Q @ K.mT / 5**0.5
P_case = softmax(S_case, mask=both)[0]
sees = both.any(-1, keepdim=True)


def unmasked(S):
    """exp(S − lse) with the lse of the forward pass, and no mask."""
    lse = S.masked_fill(~both, -torch.inf).logsumexp(-1, keepdim=True).masked_fill(~sees, torch.inf)
    return (S - lse).exp()


def backward(P, delta):
    """dV, dQ, dK and dS, from the probabilities that a program believes in."""
    dS = P * (dO @ V.mT - delta)
    return P.mT @ dO, dS @ K / 5**0.5, dS.mT @ Q / 5**0.5, dS


def row_sum(P):
    return (P * (dO @ V.mT)).sum(-1, keepdim=True)


right = backward(P_case, row_sum(P_case))
swapped, even = softmax(S_case, mask=~both)[0], P_case + (~sees).double() / N
slips = {
    "True read as hidden": backward(swapped, row_sum(swapped)),
    "empty row uniform": backward(even, row_sum(even)),
    "backward ignores M": backward(unmasked(S_case), row_sum(P_case)),
}
print("relative error of         dV     dQ     dK    row sums of dS")
for name, found in slips.items():
    errors = [(a - b).norm() / b.norm() for a, b in zip(found[:3], right[:3], strict=True)]
    print(f"{name:20s}", *(f"{x:6.2f}" for x in errors), f"{found[3].sum(-1).abs().max():14.1e}")

# %% [markdown]
# The first two slips change the forward pass, and their backward passes fit it: the rows of $dS$ sum to 0,
# no check of a *derivative* finds them, only a reference for the outputs. What does the first do to training?
# A causal model is asked for the next token of a random sequence, which it cannot know; the best it can do is
# a loss of about 1, the variance. With the mask turned round it attends to what comes. Below, a head that
# looks at the nearest token it may see, and the best linear map on top.

# %%
tokens = torch.randn(400, N, 4, dtype=torch.float64, generator=generator)
nearest = (-5 * distance(tokens @ tokens.mT)).expand(400, N, N)
for name, mask_used in (("the right mask", earlier), ("turned round", ~earlier)):
    seen = (softmax(nearest, mask=mask_used)[0] @ tokens)[:, : N - 1].reshape(-1, 4)
    wanted = tokens[:, 1:].reshape(-1, 4)
    best = torch.linalg.lstsq(seen, wanted).solution
    print(f"{name:16s} best loss {(seen @ best - wanted).square().mean():.4f}")

# %% [markdown]
# A loss near zero, and a model that cannot write a word. The third slip is one of the backward pass alone.
# Two students learn the same teacher by gradient descent, behind the masks of the case; one of them forgets
# the mask on the way back.

# %%


def learn(ignores, steps=(0, 2, 5, 10, 20), rate=0.02):
    """The loss after so many steps."""
    draw = torch.Generator().manual_seed(1)
    X = torch.randn(16, N, 5, dtype=torch.float64, generator=draw)
    teacher, student = 0.2 * torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=draw)
    target, losses = attention(*(X @ W for W in teacher), mask=both)[0], []
    for _ in range(steps[-1] + 1):
        O, saved = attention(*(X @ W for W in student), mask=both)
        used = saved._replace(P=unmasked(saved.S)) if ignores else saved
        g = attention_vjp((O - target) / len(X), used)
        student = student - rate * torch.stack([(X.mT @ d).sum(0) for d in (g.Q, g.K, g.V)])
        losses.append((O - target).square().mean().item())
    return [losses[i] for i in steps]


print("step                  0       2       5      10      20")
for name, ignores in (("right", False), ("ignores the mask", True)):
    print(f"{name:18s}", "  ".join(f"{x:.4f}" for x in learn(ignores)))

# %% [markdown]
# The wrong one learns for some steps, more slowly, and a short look at the loss says that all is well. But
# nothing keeps a hidden score below $\operatorname{lse}$. Its "probability" $\exp(S - \operatorname{lse})$
# may exceed 1, and as such scores grow, the gradient explodes.
#
# ```{admonition} Common mistake: the backward pass never asks for the mask
# :class: warning
# A backward pass that saves memory keeps $\operatorname{lse}$ instead of $P$ and recomputes $P = \exp(S -
# \operatorname{lse})$. If it recomputes the *unmasked* scores, hidden entries are not $0$ any more, and are
# no probabilities. All shapes fit and the forward pass is right, so the loss that is printed is right too.
# The row sums of $dS$ show it without a reference. Seen in: triton #4541.
# ```
#
# ```{admonition} Common mistake: True for hidden
# :class: warning
# `nn.MultiheadAttention` reads True as *hidden*, `scaled_dot_product_attention` reads it as *may attend*.
# Exchanged under a causal mask, every query sees only the future. The rows of $dS$ sum to $0$ and the
# backward pass is the right one of the wrong model. A loss that is too good is the sign. Seen in:
# tensorflow/text #894, nanoGPT_mlx #6.
# ```
#
# ```{admonition} Common mistake: a row that leaks
# :class: warning
# With a finite fill the row without keys is uniform, and $dV$ gets $dO_i / n_k$ from it at every position,
# padding included ("empty row uniform" above: one such row in seven, and $dV$ is off by a quarter of its
# size). Guessing the mask in the backward pass from $P = 0$ does not mend it: the uniform row
# has no zeros, so nothing is cleared there. Seen in: apex #1444, pytorch #41508; the finite fill itself in
# transformers #14859, llm.c, the Annotated Transformer.
# ```
#
# ## A bias is not a mask
#
# A finite number that is added to the scores is a *bias*, and if a model learns it, it has a gradient.
# Chapter 5 found it: the gradient of the bias is $dS$. A bias with fewer entries than $S$ is repeated over
# some of them, so its gradient is the sum of $dS$ over these. ALiBi (Press et al. 2021, §3) has one number
# $m_i$ for each head $i$, the *slope*, and subtracts it times the distance of the two tokens:
#
# $$S_i = \tau Q_i K_i^\top - m_i D, \qquad D_{ab} = |a - b|,
# \qquad S_i, D \;\; n_q \times n_k, \qquad m \;\; h$$
#
# Here $Q$, $K$, $V$ have the head as a first axis, $h \times n \times d$, and all products are taken head
# by head. Chapter 5 gives $dS$, $h \times n_q \times n_k$, and two lines are left. The law of the second
# says: a number for each head goes over as the sum over its matrix.

# %%
heads = Point(h=6, n_q=2, n_k=4, d_k=3, d_v=5)
Q, K, V = (heads.free(*x) for x in (("Q", "h, n_q, d_k"), ("K", "h, n_k, d_k"), ("V", "h, n_k, d_v")))
m, tau = heads.free("m", "h"), heads.free("scale")
dO = heads.free("dO", "h, n_q, d_v")
D = heads.given("D", distance(torch.zeros(2, 4)))

out, saved = attend(Q, K, V, slopes=m, scale=tau)
weights = heads.let("P", out.weights)
dP = heads.let("dP", dO @ V.mT)
dS = heads.let("dS", weights * (dP - (weights * dP).sum(-1, keepdim=True)))

m_dot = heads.tangent(m)
dot, _ = differential(attend, Q, K, V, slopes=moves(m, m_dot), scale=tau)
SCORES = fact(
    inner(dO, dot.O), inner(dS, -m_dot[:, None, None] * D), "chapter 5; S = τ Q Kᵀ − m D, and only m moves"
)

line = chain(inner(dO, dot.O), "the differential of ℓ")
line(inner(dS, -m_dot[:, None, None] * D), SCORES)
line(inner(-(dS * D).sum((-1, -2)), m_dot), laws.HEAD_SUM)
line.reads_off(m_dot, attend_vjp(dO, saved).slopes)
display(line)

# %% [markdown]
# $dm_i = -\sum_{ab} (dS_i)_{ab}\, |a - b|$: one number for each head. The rows of $dS$ sum to $0$, so it is
# a comparison of near and far. Where nearer keys should have had higher scores, $dS$ is negative at small
# distances and positive at large ones. Then $dm_i$ is negative, and a step of gradient descent makes the
# slope steeper.
#
# ## With numbers
#
# The scores of chapters 4 and 5, whose exponentials are (1, 2, 1), (1, 1, 2), (3, 1, 1), under a causal
# mask. What is left is (1), (1, 1), (3, 1, 1), so the rows of $P$ are (1, 0, 0), (½, ½, 0), (3/5, 1/5,
# 1/5). With $dP = I$, the identity:

# %%
S_small = torch.tensor([[1.0, 2, 1], [1, 1, 2], [3, 1, 1]], dtype=torch.float64).log()
P_small, saved = softmax(S_small, mask=causal())
dS_small = softmax_vjp(torch.eye(3, dtype=torch.float64), saved).S
for P_row, dS_row in zip(P_small.tolist(), dS_small.tolist(), strict=True):
    print(
        "P",
        " ".join(f"{x:5.2f}" for x in P_row),
        "   100 dS",
        " ".join(f"{100 * x + 0:4.0f}" for x in dS_row),
    )

# %% [markdown]
# Row 1: one key, no choice, no gradient. Row 2: $\delta = ½$, $dS = (-¼, ¼, 0)$; by itself the old row
# would have given (−1/16, 3/16, −2/16), so a mask does not cut pieces out of $dS$, it changes $\delta$ as
# well. Row 3 sees everything: $\delta = 1/5$, $dS = (-3/25, -1/25, 4/25)$.

# %% [markdown]
# ## Exercises

# %% [markdown] exercise="9.1" kind="chain" points=3 title="A bias for each key"
# A model adds a learned number to the scores of each key, the same for all queries: $S = \tau Q K^\top +
# 1\, b$, where $1$ is $n_q \times 1$ and $b$ is $1 \times n_k$. Some keys are hidden. Chapter 5 has brought
# the chain to $\dot{S}$. Continue it to the gradient of $b$. (`one` is $1$; `b_dot.unsqueeze(0)` is
# $\dot{b}$ as a row; `BIASED.moves` is the product rule on $S$.)

# %% given="9.1"
one_head = Point(n_q=3, n_k=4, d_k=2, d_v=5)
Q, K, V = one_head.free("Q", "n_q, d_k"), one_head.free("K", "n_k, d_k"), one_head.free("V", "n_k, d_v")
tau, b, dO = one_head.free("scale"), one_head.free("b", "n_k"), one_head.free("dO", "n_q, d_v")
options = {"scale": tau, "mask": one_head.given("mask", allowed.bool())}
one = one_head.given("1", torch.ones(3, 1))

O, saved = attention(Q, K, V, bias=b, **options)
S, P = one_head.let("S", saved.S), one_head.let("P", saved.P)
BIASED = definition(S, tau * Q @ K.mT + one @ b.unsqueeze(0))
dP = one_head.let("dP", dO @ V.mT)
dS = one_head.let("dS", P * (dP - (P * dP).sum(-1, keepdim=True)))

b_dot = one_head.tangent(b)
O_dot, dot = differential(attention, Q, K, V, bias=moves(b, b_dot), **options, name="O")
line = chain(inner(dO, O_dot), "the differential of ℓ")
line(inner(dS, dot.S), fact(inner(dO, O_dot), inner(dS, dot.S), "chapter 5"))

# %% answer="9.1"
### BEGIN SOLUTION
line(inner(dS, one @ b_dot.unsqueeze(0)), BIASED.moves)
line(inner(dS.sum(0), b_dot), laws.BIAS)
### END SOLUTION


# %% checker="9.1"
def over_keys(line):
    """the line before it"""
    line(inner(dS, one @ b_dot.unsqueeze(0)), BIASED.moves)
    line(inner(-dS.sum(0), b_dot), laws.BIAS)


def only_some(line):
    """must follow by"""
    line(inner(dS, one @ b_dot.unsqueeze(0)), laws.BIAS)


check_chain(line, b_dot, attention_vjp(dO, saved).bias, mistakes=[over_keys, only_some])

# %% [markdown] exercise="9.2" kind="function" points=4 title="A score that was replaced"
# A program replaces hidden scores, $S' = \kappa \circ S + C$, and takes $P = \operatorname{softmax}(S')$.
# Write $dS$, $n_q \times n_k$, from $dP$, $P$ and $\kappa$ (here `kappa`, of numbers 0 and 1).


# %% answer="9.2"
def replaced_backward(dP, P, kappa):
    """dS, n_q × n_k."""
    ### BEGIN SOLUTION
    return kappa * P * (dP - (P * dP).sum(-1, keepdim=True))
    ### END SOLUTION


# %% checker="9.2"
def forward(S, kappa, C):
    return {"P": torch.softmax(kappa * S + C, -1)}


def leaks(dP, P, kappa):
    """the replaced scores get a gradient"""
    return P * (dP - (P * dP).sum(-1, keepdim=True))


def too_early(dP, P, kappa):
    """κ stands inside the row sum: hidden values are part of the row"""
    return P * (kappa * dP - (P * kappa * dP).sum(-1, keepdim=True))


def no_row_sum(dP, P, kappa):
    """the row sum is missing"""
    return kappa * P * dP


check_functions(
    {"dS": replaced_backward},
    forward,
    inputs={
        "S": "n_q, n_k",
        "C": "n_q, n_k",
        "kappa": lambda n_q, n_k: torch.ones(n_q, n_k, dtype=torch.float64).tril(),
    },
    sizes=[{"n_q": 3, "n_k": 4}, {"n_q": 5, "n_k": 2}],
    mistakes=[leaks, too_early, no_row_sum],
)

# %% [markdown] exercise="9.3" kind="mistake" points=4 title="Masked after the softmax"
# A program takes an unmasked softmax and multiplies by the mask afterwards: $A = M \circ P$, $n_q \times
# n_k$. Its rows do not sum to 1, and its gradient differs. One line of this derivation is false. Which, and
# what should stand there?

# %% given="9.3"
at = Point(n_q=3, n_k=4)
S, dA = at.free("S", "n_q, n_k"), at.free("dA", "n_q, n_k")
M = at.given("mask", allowed)
P, S_dot = at.let("P", softmax(S)[0]), at.tangent(S)
P_dot, _ = differential(softmax, moves(S, S_dot), name="P")
TANGENT = fact(P_dot, P * (S_dot - (P * S_dot).sum(-1, keepdim=True)), "the tangent of softmax, chapter 4")

wrong = claim(inner(dA, M * P_dot), "the differential of ℓ")
wrong(inner(M * dA, P_dot), laws.ENTRYWISE)
wrong(inner(M * dA, P * (S_dot - (P * S_dot).sum(-1, keepdim=True))), TANGENT)
wrong(
    inner(P * M * dA, S_dot) - inner((P * dA).sum(-1, keepdim=True), (P * S_dot).sum(-1, keepdim=True)),
    laws.LINEARITY,
    laws.ROW_SUM,
)
display(wrong)

# %% answer="9.3"
### BEGIN SOLUTION
answer = correct(
    4,
    inner(P * M * dA, S_dot) - inner((P * M * dA).sum(-1, keepdim=True), (P * S_dot).sum(-1, keepdim=True)),
    laws.LINEARITY,
    laws.ROW_SUM,
)
### END SOLUTION


# %% checker="9.3"
def line_two():
    """line 2 follows from line 1"""
    return correct(2, inner(dA, P_dot), laws.ENTRYWISE)


def sign():
    """sign"""
    return correct(
        4,
        inner(P * M * dA, S_dot)
        + inner((P * M * dA).sum(-1, keepdim=True), (P * S_dot).sum(-1, keepdim=True)),
        laws.LINEARITY,
        laws.ROW_SUM,
    )


check_mistake(
    wrong,
    answer,
    ends=inner(P * M * dA, S_dot)
    - inner((P * M * dA).sum(-1, keepdim=True), (P * S_dot).sum(-1, keepdim=True)),
    mistakes=[line_two, sign],
)

# %% [markdown]
# **Questions.** 1. In exercise 9.3 the hidden *scores* do get a gradient. Why, and what is an empty row
# there, without any definition? 2. A causal mask with $n_q < n_k$ can be aligned at the first or at the
# last key. Which one does a program need that continues a text from a cache, and which rows are empty in
# the other one if $n_q > n_k$? 3. For which rows does a gradient with $-10000$ for $-\infty$ differ from
# the right one in float64, and for which in exact arithmetic? 4. Derive the gradient of $\tau$ under a
# mask, and show that empty rows do not contribute.
