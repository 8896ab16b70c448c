# %% [markdown]
# # 13 Attention on a graph
#
# $$S_{ip} = \tau \, q_i \cdot k_{N(i,p)} \qquad P_{ip} = \frac{\exp S_{ip}}{\sum_r \exp S_{ir}} \qquad
# o_i = \sum_p P_{ip} \, v_{N(i,p)}$$
#
# Every query $q_i$ ($1 \times d_k$, row $i$ of $Q$) has a list of keys, $N(i, 0), N(i, 1), \dots$, and
# attends to nothing else (Liu et al. 2022, §3.1; Veličković et al. 2018). Here we count from 0. With $m$ the
# length of the longest list, $S$ and $P$ are $n_q \times m$: a sentence of $n$ tokens costs $n \cdot m$
# numbers instead of $n^2$. The lists are a graph: an edge from query $i$ to key $j$ stands for $j \in N(i)$.
#
# Forwards this is easy to program: walk through the list of the query. Backwards it is not. The gradient of a
# *key* comes from all queries that have it in their lists, and the lists are sorted by query. A reader of
# Pyraformer's kernel asked whether it takes the right ones (ant-research/Pyraformer, issue #15). The
# question is good, the two people who discuss it mean different things by the same name, and both are right.
# This chapter answers it with two matrices of zeros and ones.
#
# ## Lists as matrices
#
# Lay all places of all lists one under the other: place $(i, p)$ is row $i \cdot m + p$. There are $e = n_q
# \cdot m$ of them. Two matrices say where the edge in a place begins and where it ends:
#
# | matrix | shape | row $(i, p)$ | times a matrix |
# |---|---|---|---|
# | $A$ | $e \times n_q$ | 1 in column $i$ | $A Q$ repeats the row of each query, once per place of its list |
# | $G$ | $e \times n_k$ | 1 in column $N(i, p)$ | $G K$ fetches the rows of the keys that are listed: a *gather* |
#
# An empty place (−1 in the code) is a row of zeros in both: an edge that is not there has no ends. A key that
# is listed twice is two edges, and $G$ has two equal rows. Our lists have all of that: a key listed twice, an
# empty place in the middle, a query with an empty list, a key that nobody lists.

# %%
import torch

from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, differential, display, fact, inner, moves
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.book.pictures import heat
from gradderiv.rules.graph import graph_attention, graph_attention_vjp, inverse_index, symmetric_shortcut
from gradderiv.rules.graphs import pyramidal, sliding_window


def one_hot(ids, count):
    """The 0/1 matrix with a row for each id: a 1 in its column, nothing where the id is −1."""
    return (ids.reshape(-1, 1) == torch.arange(count)).double()


def begins(lists):
    """The query of every place, −1 where the place is empty."""
    return torch.where(lists < 0, -1, torch.arange(len(lists))[:, None])


neighbours = torch.tensor([[0, 2, 3], [2, 2, -1], [3, -1, 2], [-1, -1, -1]])  # n_q × m
starts, ends = one_hot(begins(neighbours), 4), one_hot(neighbours, 5)
display(
    heat(
        {
            r"A^\top G,\ n_q \times n_k": starts.mT @ ends,
            r"A,\ e \times n_q": starts,
            r"G,\ e \times n_k": ends,
        },
        alt="The adjacency matrix, 4 queries by 5 keys, with a 2 where a key is listed twice; and the "
        "matrices A and G, 12 places each, with one 1 in a row, and rows of zeros where a place is "
        "empty.",
    )
)

# %% [markdown]
# $A^\top G$ is the *adjacency matrix*, $n_q \times n_k$: entry $(i, j)$ counts how often query $i$ lists key
# $j$.
#
# ## The output in edges
#
# Write the probabilities of all places as one column $w$, $e \times 1$, and so the scores, $s$. A column
# times a matrix, $w \circ B$, multiplies each row of $B$ by its number. Then
#
# $$s = \tau \, \operatorname{rowsum}\big((A Q) \circ (G K)\big) \qquad e \times 1$$
#
# $$O = A^\top \big( w \circ (G V) \big) \qquad n_q \times d_v$$
#
# Read the second from the inside: fetch the values ($G V$, $e \times d_v$), weight them ($w \, \circ$), and
# add up the rows that belong to one query ($A^\top$). $A$ repeats, $A^\top$ adds up. The softmax runs over
# each list by itself. The sum over the list of a place is $A A^\top$ applied to a column, since $A A^\top$
# ($e \times e$) has a 1 where two places belong to one query. It is what $\mathcal{I}$ was in chapter 6. So,
# by chapter 4, list by list,
#
# $$\dot{w} = w \circ \big( \dot{s} - A A^\top (w \circ \dot{s}) \big) \qquad e \times 1$$
#
# We state this as a fact; the machine compares it with dual numbers through the rule. An empty place has
# $w = 0$ and stays 0.

# %%
at = Point(n_q=4, n_k=5, e=12, d_k=2, d_v=7)
A, G = at.given("A", starts), at.given("G", ends)
Q, K, V = at.free("Q", "n_q, d_k"), at.free("K", "n_k, d_k"), at.free("V", "n_k, d_v")
tau, dO = at.free("scale"), at.free("dO", "n_q, d_v")
options = {"neighbours": neighbours, "scale": tau}


def scores(Q, K, A, G, tau):
    return tau * ((A @ Q) * (G @ K)).sum(-1, keepdim=True)


O, saved = graph_attention(Q, K, V, **options)
O = at.let("O", O)
w = at.let("w", saved.P.reshape(-1, 1))
s = at.let("s", scores(Q, K, A, G, tau))

OUTPUT = definition(O, A.mT @ (w * (G @ V)))
SCORES = definition(s)
for matrix in (A @ Q, G @ K, s, w, A @ A.mT):
    display(matrix)

# %% [markdown]
# ## The values
#
# Only $V$ moves. $A^\top$ goes over as $A$, the column $w$ goes over as it is, and $G$ goes over as $G^\top$.

# %%
V_dot = at.tangent(V)
O_dot, _ = differential(graph_attention, Q, K, moves(V, V_dot), **options, name="O")

line = chain(inner(dO, O_dot), "the differential of ℓ")
line(inner(dO, A.mT @ (w * (G @ V_dot))), OUTPUT.moves)
line(inner(A @ dO, w * (G @ V_dot)), laws.LEFT, note="(Aᵀ)ᵀ = A")
line(inner(w * (A @ dO), G @ V_dot), laws.ENTRYWISE)
line(inner(G.mT @ (w * (A @ dO)), V_dot), laws.LEFT)
line.reads_off(V_dot, graph_attention_vjp(dO, saved).V)
display(line)

# %% [markdown]
# What was a gather forwards, $G$, is a *scatter* backwards, $G^\top$: $n_k \times e$, it adds the row of
# every place to the row of the key that is listed there. And what was a sum, $A^\top$, is a repetition. A
# linear map goes back by its transpose; a gather is a linear map, and so nothing new had to be learned.
#
# ## The keys
#
# $K$ acts through the scores, so first back through the softmax, as in chapters 4 and 5.

# %%
K_dot = at.tangent(K)
O_dot, dot = differential(graph_attention, Q, moves(K, K_dot), V, **options, name="O")
w_dot = at.let("w_dot", dot.P.reshape(-1, 1))
s_dot = differential(scores, Q, moves(K, K_dot), A, G, tau, name="s")
SOFTMAX = fact(w_dot, w * (s_dot - A @ A.mT @ (w * s_dot)), "the tangent of softmax, list by list")

line = chain(inner(dO, O_dot), "the differential of ℓ")
line(inner(dO, A.mT @ (w_dot * (G @ V))), OUTPUT.moves)
line(inner(A @ dO, w_dot * (G @ V)), laws.LEFT)
line(inner(((A @ dO) * (G @ V)).sum(-1, keepdim=True), w_dot), laws.ROW_SUM)
dw = line.let("dw", ((A @ dO) * (G @ V)).sum(-1, keepdim=True))
line(inner(dw, w * (s_dot - A @ A.mT @ (w * s_dot))), SOFTMAX)
line(inner(w * dw, s_dot) - inner(w * dw, A @ A.mT @ (w * s_dot)), laws.ENTRYWISE, laws.LINEARITY)
line(inner(w * dw, s_dot) - inner(A @ A.mT @ (w * dw), w * s_dot), laws.LEFT, note="A Aᵀ is symmetric")
line(inner(w * (dw - A @ A.mT @ (w * dw)), s_dot), laws.ENTRYWISE, laws.LINEARITY)
ds = line.let("ds", w * (dw - A @ A.mT @ (w * dw)))
line(inner(ds, tau * ((A @ Q) * (G @ K_dot)).sum(-1, keepdim=True)), SCORES.moves)
line(inner(tau * ds * (A @ Q), G @ K_dot), laws.ROW_SUM)
line(inner(tau * G.mT @ (ds * (A @ Q)), K_dot), laws.LEFT)
line.reads_off(K_dot, graph_attention_vjp(dO, saved).K)
display(line)
KEYS = line

# %% [markdown]
# Place by place, $ds = w \circ (dw - \delta)$ with $\delta$ the sum of $w \circ dw$ over the list: the
# gradient of softmax, as ever. And $dK$ scatters $ds$ times the query. The queries are an exercise below;
# they need no scatter, since $G$ then stays where it is.
#
# ## What $G^\top$ is: the inverse index
#
# A scatter is awkward on parallel hardware: two edges may want to add to the same row at the same time. So
# one turns it into a gather. For every key $j$, list the places in which it stands: the *inverse index*. It
# is a table with a row for each key and $m_k$ columns, as many as the most frequent key has places. The rule
# stores it in two tables, the query $i$ and the position $p$ in the list of that query.

# %%
inverse = inverse_index(neighbours, 5)
print("key   (query, position in its list)")
for j, (queries, positions) in enumerate(zip(*map(torch.Tensor.tolist, inverse), strict=True)):
    print(f"{j:3}  ", *(f"({i}, {p})" for i, p in zip(queries, positions, strict=True) if i >= 0))

# %% [markdown]
# As matrices: $H$, $n_k m_k \times e$, has a row for every entry of the inverse index, with a 1 at its place;
# $B$, $n_k m_k \times n_k$, has a 1 at its key. Then
#
# $$G^\top = B^\top H$$
#
# which says in one line what an inverse index is: *gather, and add up what belongs to one key*. $B$ is to the
# keys what $A$ is to the queries, and $H A$ plays the part of $G$. And since each row of $H$ picks one place,
# it may pick before or after an entrywise product: $H (a \circ M) = (H a) \circ (H M)$ for a column $a$.

# %%
places = torch.where(inverse.queries < 0, -1, inverse.queries * 3 + inverse.positions)
H = at.given("H", one_hot(places, 12))
B = at.given("B", one_hot(torch.where(places < 0, -1, torch.arange(5)[:, None]), 5))
INVERSE = fact(G.mT, B.mT @ H)
PICKS = fact(H @ (w * (A @ dO)), (H @ w) * (H @ A @ dO), "H picks places")

line = chain(G.mT @ (w * (A @ dO)), "dV, as derived above")
line(B.mT @ H @ (w * (A @ dO)), INVERSE)
line(B.mT @ ((H @ w) * (H @ A @ dO)), PICKS)
display(line)

# %% [markdown]
# $H w$ are the probabilities in the order of the keys, $H A \, dO$ ($n_k m_k \times d_v$) the output
# gradients of the queries that list each key. Compare with $O = A^\top (w \circ (G V))$: the same formula,
# with the graph turned round. This is how `graph_attention_vjp` computes it.
#
# ## Pyraformer, issue #15
#
# Pyraformer stores the lists as `q_k_mask`, and its kernel for $dK$ and $dV$ also walks through
# `q_k_mask[i]`: through the list of *query* $i$, to find the gradient of *key* $i$. jlidw, who reports this,
# says that one must walk through the queries that list key $i$, and calls them `k_q_mask[i]`. To look up
# their probabilities, one further needs to know where $i$ stands in the list of each: a matrix $M$ with
# `M[k_q_mask[i,j], i] = where(q_k_mask[k_q_mask[i,j]] == i)`. Zhazhan, an author, answers that the graph is
# *undirected*, so those who list $i$ are those whom $i$ lists, `q_k_mask[i]`; and that `k_q_mask` in the code
# has about the part of the reporter's $M$: `k_q_mask[i, j]` is where $i$ stands in the list of its $j$-th
# neighbour.
#
# | | who lists key $i$ | where $i$ stands in their lists |
# |---|---|---|
# | jlidw | `k_q_mask[i]` | $M$ |
# | Zhazhan | `q_k_mask[i]`, as the graph is undirected | `k_q_mask[i]` |
# | here | `inverse.queries[i]` | `inverse.positions[i]` |
#
# One name, *who* for the one and *where* for the other. Now in matrices. Queries and keys are the same nodes
# here, $n_q = n_k = n$. Let
#
# $$T = (A G^\top) \circ (G A^\top) \qquad e \times e$$
#
# $A G^\top$ has a 1 where one place begins at the node where another ends, $G A^\top$ the reverse. So $T$ has
# a 1 where two edges connect the same two nodes in opposite directions: $T$ turns every edge round. In an
# undirected graph (without double edges) every edge has exactly one counterpart. There $T A = G$ (the
# counterpart begins where the edge ends), $T$ is symmetric, and so
#
# $$G^\top = (T A)^\top = A^\top T .$$
#
# Zhazhan's scatter is $A^\top T$: add up along the *own* list ($A^\top$), and read each entry at its
# counterpart ($T$, his `k_q_mask`). Here it is, on a pyramid with four tokens and two parents.

# %%
pyramid = pyramidal(4, window=3, children=2, levels=2)
print("lists", *pyramid.tolist()[:3], "...")
begin, end = one_hot(begins(pyramid), 6), one_hot(pyramid, 6)
turn = (begin @ end.mT) * (end @ begin.mT)
display(
    heat(
        {r"A^\top G": begin.mT @ end, "T": turn},
        values=False,
        alt="The adjacency matrix of the pyramid is symmetric. T, places by places, is a permutation "
        "matrix that is its own transpose, but for the rows of empty places.",
    )
)

# %%
there = Point(n=6, e=pyramid.numel(), d_k=2, d_v=7)
A_u, G_u, T = there.given("A", begin), there.given("G", end), there.given("T", turn)
Q_u, K_u, V_u = there.free("Q", "n, d_k"), there.free("K", "n, d_k"), there.free("V", "n, d_v")
dO_u, tau_u = there.free("dO", "n, d_v"), there.free("scale")
_, saved_u = graph_attention(Q_u, K_u, V_u, neighbours=pyramid, scale=tau_u)
w_u = there.let("w", saved_u.P.reshape(-1, 1))
O_u = there.let("O", A_u.mT @ (w_u * (G_u @ V_u)))
V_dot = there.tangent(V_u)
O_dot, _ = differential(
    graph_attention, Q_u, K_u, moves(V_u, V_dot), neighbours=pyramid, scale=tau_u, name="O"
)
TURNED = fact(G_u, T @ A_u)
SELF_INVERSE = fact(T.mT, T)
PICKS_T = fact(T @ (w_u * (A_u @ dO_u)), (T @ w_u) * (T @ A_u @ dO_u), "T picks places")

line = chain(inner(dO_u, O_dot), "the differential of ℓ")
line(inner(dO_u, A_u.mT @ (w_u * (G_u @ V_dot))), definition(O_u).moves)
line(inner(A_u @ dO_u, w_u * (G_u @ V_dot)), laws.LEFT)
line(inner(w_u * (A_u @ dO_u), G_u @ V_dot), laws.ENTRYWISE)
line(inner(G_u.mT @ (w_u * (A_u @ dO_u)), V_dot), laws.LEFT)
line(inner(A_u.mT @ T @ (w_u * (A_u @ dO_u)), V_dot), TURNED, SELF_INVERSE)
line(inner(A_u.mT @ ((T @ w_u) * (T @ A_u @ dO_u)), V_dot), PICKS_T)
line(inner(A_u.mT @ ((T @ w_u) * (G_u @ dO_u)), V_dot), TURNED)
line.reads_off(V_dot, graph_attention_vjp(dO_u, saved_u).V)
display(line)

who, where = symmetric_shortcut(pyramid)  # the lists themselves, and the author's k_q_mask
counterparts = torch.where(who < 0, -1, who * pyramid.shape[1] + where)
print("T has its ones where k_q_mask says:", torch.equal(one_hot(counterparts, pyramid.numel()), turn))

# %% [markdown]
# The last line, $dV = A^\top ((T w) \circ (G \, dO))$, walks the lists as the forward pass does ($G$ on the
# right, $A^\top$ on the left), with $T w$ for $w$. So the kernel is right, and the name `k_q_mask` misleads.
# The chain also shows what it rests on: $G = T A$, a property of the graph.
#
# ## Where it stops being right
#
# In a *directed* graph an edge may have no counterpart. Its row of $T$ is 0, and $A^\top T$ leaves the edge
# out. A causal window is directed: the query looks back, nobody looks forward. Only the edge of a token to
# itself is left.

# %%
window = sliding_window(12, 2, 0)  # itself and two before it
begin, end = one_hot(begins(window), 12), one_hot(window, 12)
turn = (begin @ end.mT) * (end @ begin.mT)
display(
    heat(
        {"G^\\top A": end.mT @ begin, "A^\\top T A": begin.mT @ turn @ begin},
        values=False,
        rows="key that collects",
        columns="query it collects from",
        alt="Which queries a key collects from. On the left, as it should be: itself and the two after "
        "it. On the right, by the shortcut for undirected graphs: only itself.",
    )
)
print("edges:", int((window >= 0).sum()), " with a counterpart:", int(turn.sum()))

# %% [markdown]
# What does that do to training? Let a layer with this window learn to copy the token before: a token has two
# random features, to be copied, and three that say where it stands, modulo 3. Both backward passes are
# written with the matrices above; they differ in $G^\top$ and $A^\top T$ only.

# %%
generator = torch.Generator().manual_seed(13)


def normal(*shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def attend(Q, K, V):
    """The column of weights, and the output."""
    e = ((begin @ Q) * (end @ K)).sum(-1, keepdim=True).exp() * begin.sum(-1, keepdim=True)
    w = e / (begin @ begin.mT @ e + (e == 0))
    return w, begin.mT @ (w * (end @ V))


def train(scatter, weights, texts, rate=0.5):
    """The losses of gradient descent, a text a step, with this matrix in the place of Gᵀ."""
    losses = []
    for text in texts:
        X = torch.cat([text, torch.eye(3).double().repeat(4, 1)], 1)  # 12 tokens, 2 + 3 features
        Q, K, V = (X @ W for W in weights)
        w, O = attend(Q, K, V)
        missing = O - torch.cat([text[:1], text[:-1]])
        dO = missing / 12
        dw = ((begin @ dO) * (end @ V)).sum(-1, keepdim=True)
        ds = w * (dw - begin @ begin.mT @ (w * dw))
        dQ, dK = begin.mT @ (ds * (end @ K)), scatter @ (ds * (begin @ Q))
        dV = scatter @ (w * (begin @ dO))
        weights = [W - rate * X.mT @ d for W, d in zip(weights, (dQ, dK, dV), strict=True)]
        losses.append(float((missing**2).sum() / 24))
    return torch.tensor(losses)


texts, initial = normal(200, 12, 2), [0.5 * normal(5, k) for k in (3, 3, 2)]
for name, scatter in {"G^T": end.mT, "A^T T": begin.mT @ turn}.items():
    losses = train(scatter, initial, texts)
    print(
        f"{name:6} mean loss of the first 10 texts {losses[:10].mean():.3f}, of the last {losses[-10:].mean():.4f}"
    )

# %% [markdown]
# ```{admonition} Common mistake: the neighbours of the key from the list of the query
# :class: warning
# $dV = A^\top T (w \circ (A \, dO))$ on a directed graph: the list of query $j$ is taken for the list of the
# queries of key $j$. All shapes fit, the output and $dQ$ are right, no index is out of range; $dK$ and
# $dV$ lose the edges without a counterpart. The loss falls, and then stays many times too high, as the two
# lines above show: $W^V$ and $W^K$ never hear of the edge that the task needs. What flags it: comparing $dV$
# with $P^\top dO$ of dense, masked attention, on a graph that is *not* symmetric. `symmetric_shortcut`
# refuses such a graph and counts the edges that would be lost. Seen in: Pyraformer #15, as the limit of code
# that is right for its own graph.
# ```
#
# ## Duplicates and padding
#
# Dense attention is hidden in the formula. The column $w$ may multiply the rows of $G$ instead of those of
# $G V$:

# %%
line = chain(A.mT @ (w * (G @ V)), "the output, in edges")
line(A.mT @ (w * G) @ V, laws.ROW_SCALE)
display(line)

# %% [markdown]
# $A^\top (w \circ G)$, $n_q \times n_k$, is the matrix $P$ of a dense layer: entry $(i, j)$ is the sum of the
# probabilities of all places where $i$ lists $j$. A key that is listed $c$ times gets $c \exp S$ in the
# numerator. That is dense attention with $\log c$ added to the score, and −∞ where $c = 0$.
#
# ```{admonition} Common mistake: a duplicate that one pass knows and the other does not
# :class: warning
# If the forward pass makes a *mask* of the lists, a key listed twice counts once; if the backward pass walks
# the *lists*, it counts twice, and $dK$ and $dV$ of that key are too large: below, the rows of $dV$ of our
# first graph, in which query 1 lists key 2 twice, relative to what they should be. With both on the lists, or
# both on the mask, each is right for its own meaning. Only a test in which a list has a duplicate shows it.
# Seen in: cudnn-frontend #384.
# ```
#
# ```{admonition} Common mistake: 0 for what is not there
# :class: warning
# Lists of different lengths are padded. The score of an empty place must be −∞, so that $\exp$ gives 0. Where
# it is left 0, $\exp 0 = 1$ enters the sum of its row: the probabilities of a list add up to less than 1, the
# more so the shorter it is (below, down to 1/8). It looks like attention to extra, empty tokens, and
# $\operatorname{rowsum}(dS) = 0$ fails over the places that are there. Seen in: Pyraformer #5.
# ```

# %%
allowed = (starts.mT @ ends > 0).double()  # a mask: a duplicate counts once
P_dense = allowed / allowed.sum(-1, keepdim=True).clamp(min=1)  # all scores 0
per_place = (starts @ P_dense * ends).sum(-1, keepdim=True)  # what a list would look up
right, twice = P_dense.sum(0), (ends.mT @ per_place)[:, 0]  # dV for dO = 1
for key in (0, 2, 3):
    print(f"key {key}: dV is {twice[key] / right[key]:.2f} of what it should be")
for length in (1, 2, 4, 8):  # a list of that length in a table with m = 8, all scores 0
    padded = torch.softmax(torch.zeros(8), -1)[:length]
    print(f"{length} of 8 places: the probabilities add up to {padded.sum():.3f}")

# %% [markdown]
# ## With numbers
#
# Three queries, the scores of chapter 4 ($Q$ with logarithms of small integers, $K$ the identity, $\tau =
# 1$), $V$ the last two columns of our example. Counted from 1, as in the other chapters: query 1 lists keys 1
# and 2, query 2 lists keys 2 and 3, query 3 lists key 3. The loss is the first output of the first query.

# %%
Q3 = torch.tensor([[1.0, 2, 1], [1, 1, 2], [3, 1, 1]], dtype=torch.float64).log()
K3, V3 = torch.eye(3, dtype=torch.float64), torch.tensor([[2.0, 0], [0, 1], [0, 0]], dtype=torch.float64)
dO3 = torch.tensor([[1.0, 0], [0, 0], [0, 0]], dtype=torch.float64)
lists = torch.tensor([[0, 1], [1, 2], [2, -1]])

O3, saved3 = graph_attention(Q3, K3, V3, neighbours=lists, scale=1.0)
g = graph_attention_vjp(dO3, saved3)
for name, x in {"P": saved3.P, "O": O3, "dV": g.V, "dQ": g.Q, "dK": g.K}.items():
    print(f"{name:3}", [[round(v, 4) + 0.0 for v in row] for row in x.tolist()])

# %% [markdown]
# By hand: query 1 has $P_1 = (1/3, 2/3)$, so $o_1 = (2/3, 2/3)$. $dP_1 = (2, 0)$, $\delta = 2/3$,
# $dS_1 = (1/3 \cdot 4/3, \; 2/3 \cdot (-2/3)) = (4/9, -4/9)$. $dk_1 = 4/9 \, q_1$ and $dk_2 = -4/9 \, q_1$
# with $q_1 = (0, \log 2, 0)$. The shortcut would ask node 2 for its list, find 2 and 3 there and not 1, and
# give $dk_2 = 0$.
#
# ## Exercises

# %% [markdown] exercise="13.1" kind="chain" points=3 title="The queries"
# Only $Q$ moves. The chain for the keys has shown how $\dot{O}$ becomes $\langle ds, \dot{s} \rangle$;
# nothing in that part depends on what moves, and the given cell takes it over. Continue to the gradient of
# $Q$, $n_q \times d_k$. Is there a scatter in it?

# %% given="13.1"
Q_dot = at.tangent(Q)
O_dot, _ = differential(graph_attention, moves(Q, Q_dot), K, V, **options, name="O")
s_dot = differential(scores, moves(Q, Q_dot), K, A, G, tau, name="s")

line = chain(inner(dO, O_dot), "the differential of ℓ")
dw = line.let("dw", ((A @ dO) * (G @ V)).sum(-1, keepdim=True))
ds = line.let("ds", w * (dw - A @ A.mT @ (w * dw)))
line(inner(ds, s_dot), KEYS.cited("as for the keys"))

# %% answer="13.1"
### BEGIN SOLUTION
line(inner(ds, tau * ((A @ Q_dot) * (G @ K)).sum(-1, keepdim=True)), SCORES.moves)
line(inner(tau * ds * (G @ K), A @ Q_dot), laws.ROW_SUM)
line(inner(tau * A.mT @ (ds * (G @ K)), Q_dot), laws.LEFT)
### END SOLUTION


# %% checker="13.1"
def other_end(line):
    """differ"""
    line(inner(ds, tau * ((A @ Q_dot) * (G @ K)).sum(-1, keepdim=True)), SCORES.moves)
    line(inner(tau * ds * (A @ Q), A @ Q_dot), laws.ROW_SUM)


def no_scale(line):
    """τ"""
    line(inner(ds, ((A @ Q_dot) * (G @ K)).sum(-1, keepdim=True)), SCORES.moves)


def scattered(line):
    """one shape"""
    line(inner(ds, tau * ((A @ Q_dot) * (G @ K)).sum(-1, keepdim=True)), SCORES.moves)
    line(inner(tau * ds * (G @ K), A @ Q_dot), laws.ROW_SUM)
    line(inner(tau * G.mT @ (ds * (G @ K)), Q_dot), laws.LEFT)


check_chain(line, Q_dot, graph_attention_vjp(dO, saved).Q, mistakes=[other_end, no_scale, scattered])

# %% [markdown] exercise="13.2" kind="function" points=4 title="A scatter"
# Write $dV$, $n \times d_v$, for a graph on $n$ nodes, from $dO$ ($n \times d_v$), the probabilities $P$
# ($n \times m$, a list in each row) and the lists `neighbours` ($n \times m$, −1 where a place is empty). The
# graph is directed, and a list may have a node twice. `torch.Tensor.index_add` adds rows to the rows that an
# index names, and where the index names a row twice, it adds twice.


# %% answer="13.2"
def value_gradient(dO, P, neighbours):
    """dV, n × d_v."""
    ### BEGIN SOLUTION
    dV = torch.zeros_like(dO)
    for place in range(neighbours.shape[1]):
        queries = (neighbours[:, place] >= 0).nonzero()[:, 0]
        dV = dV.index_add(0, neighbours[queries, place], P[queries, place].unsqueeze(-1) * dO[queries])
    return dV
    ### END SOLUTION


# %% checker="13.2"
def forward_on_lists(V, S, neighbours):
    E = torch.exp(S) * (neighbours >= 0)
    P = E / E.sum(-1, keepdim=True)
    return {"P": P, "O": (P.unsqueeze(-2) @ V[neighbours.clamp(min=0)]).squeeze(-2)}


def directed(n, m):
    """Node i lists i, i + 1, …, and node 0 itself twice; the last place of node 1 is empty."""
    lists = (torch.arange(n)[:, None] + torch.arange(m)) % n
    lists[0, 1], lists[1, -1] = 0, -1
    return lists


def own_list(dO, P, neighbours):
    """whom j lists, not who lists j"""
    return (P.unsqueeze(-2) @ dO[neighbours.clamp(min=0)]).squeeze(-2)


def overwritten(dO, P, neighbours):
    """a node that several list keeps the last of them only"""
    dV = torch.zeros_like(dO)
    for i, row in enumerate(neighbours.tolist()):
        for place, j in enumerate(row):
            if j >= 0:
                dV[j] = P[i, place] * dO[i]
    return dV


check_functions(
    {"dV": value_gradient},
    forward_on_lists,
    inputs={"V": "n, d_v", "S": "n, m", "neighbours": directed},
    sizes=[{"n": 5, "m": 3, "d_v": 2}, {"n": 7, "m": 4, "d_v": 3}],
    mistakes=[own_list, overwritten],
)

# %% [markdown] exercise="13.3" kind="mistake" points=4 title="When may one pick before multiplying?"
# $H (a \circ M) = (H a) \circ (H M)$ was right for the matrix $H$ of the inverse index. Somebody uses the
# same for $G^\top$, to save the long column. Which line is false, and what should stand there?

# %% given="13.3"
V_dot = at.tangent(V)
O_dot, _ = differential(graph_attention, Q, K, moves(V, V_dot), **options, name="O")

wrong = claim(inner(dO, O_dot), "the differential of ℓ")
wrong(inner(A @ dO, w * (G @ V_dot)), OUTPUT.moves, laws.LEFT)
wrong(inner(w * (A @ dO), G @ V_dot), laws.ENTRYWISE)
wrong(inner((G.mT @ w) * (G.mT @ A @ dO), V_dot), laws.LEFT)
display(wrong)

# %% answer="13.3"
### BEGIN SOLUTION
answer = correct(4, inner(G.mT @ (w * (A @ dO)), V_dot), laws.LEFT)
### END SOLUTION


# %% checker="13.3"
def line_three():
    """line 3 follows from line 2"""
    return correct(3, inner(w * (A @ dO), G @ V_dot), laws.ENTRYWISE)


def no_weights():
    """differ"""
    return correct(4, inner(G.mT @ A @ dO, V_dot), laws.LEFT)


check_mistake(wrong, answer, V_dot, graph_attention_vjp(dO, saved).V, mistakes=[line_three, no_weights])

# %% [markdown]
# **Questions.** 1. Every row of $A$ and of $G$ has at most one 1. Which property of the lists makes every
# *column* of $G$ have at most one 1, and what is $G^\top$ then? 2. A hub is a key that all queries list. How
# large is the inverse index, and how large would a scatter be? 3. Heads share the graph. Where does a batch
# axis go in $A$, $G$ and $T$? 4. Show that $\operatorname{rowsum}$ of $dS$ over a list is 0 with
# $A^\top ds = 0$.
