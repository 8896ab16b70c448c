# %% [markdown]
# # 5 Practice
#
# A small chapter with one exercise of each kind, and one in stages. Q is n_q × d_k, K is n_k × d_k, V is n_k × d_v.

# %%
import torch

from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, differential, display, fact, inner, moves
from gradderiv.book.exercises import check_chain, check_functions, check_mistake, claim, correct
from gradderiv.rules.attention import attention, attention_vjp

at = Point(n_q=3, n_k=4, d_k=2, d_v=5)
Q, K, V = at.free("Q", "n_q, d_k"), at.free("K", "n_k, d_k"), at.free("V", "n_k, d_v")
tau = at.free("scale")
dO = at.free("dO", "n_q, d_v")
O, saved = attention(Q, K, V, scale=tau)
O, P, S = at.let("O", O), saved.P, at.let("S", tau * Q @ K.mT)
OUTPUT, SCORES = definition(O, P @ V), definition(S, tau * Q @ K.mT)
Q_dot, K_dot, V_dot = at.tangent(Q), at.tangent(K), at.tangent(V)

# %% [markdown] exercise="5.1" kind="chain" points=4 title="The values"
# Only $V$ moves. Continue the chain to the gradient of $V$.

# %% given="5.1"
O_dot, _ = differential(attention, Q, K, moves(V, V_dot), scale=tau, name="O")
line = chain(inner(dO, O_dot), "the differential of ℓ")

# %% answer="5.1"
### BEGIN SOLUTION
line(inner(dO, P @ V_dot), OUTPUT.moves)
line(inner(P.mT @ dO, V_dot), laws.LEFT)
### END SOLUTION


# %% checker="5.1"
def sign(line):
    """the new side is -1 × the one before"""
    line(inner(dO, P @ V_dot), OUTPUT.moves)
    line(inner(-P.mT @ dO, V_dot), laws.LEFT)


def other_law(line):
    """it follows by LEFT"""
    line(inner(dO, P @ V_dot), OUTPUT.moves)
    line(inner(P.mT @ dO, V_dot), laws.RIGHT)


check_chain(line, V_dot, attention_vjp(dO, saved).V, mistakes=[sign, other_law])
display(line)

# %% [markdown]
# ## Softmax

# %% [markdown] exercise="5.2" kind="function" points=2 title="The gradient of softmax"
# Write $dS$ from $dP$ and $P$, both $n_q \times n_k$.


# %% answer="5.2"
def softmax_backward(dP, P):
    """dS, n_q × n_k."""
    ### BEGIN SOLUTION
    return P * (dP - (P * dP).sum(-1, keepdim=True))
    ### END SOLUTION


# %% checker="5.2"
def softmax_forward(S):
    return {"P": torch.softmax(S, -1)}


def without_P(dP, P):
    """the factor P in front is missing"""
    return dP - (P * dP).sum(-1, keepdim=True)


check_functions(
    {"dS": softmax_backward},
    softmax_forward,
    inputs={"S": "n_q, n_k"},
    sizes=[{"n_q": 3, "n_k": 4}, {"n_q": 5, "n_k": 2}],
    mistakes=["softmax-diagonal", "softmax-no-rowsum", without_P],
)

# %% [markdown] exercise="5.3" kind="function" points=4 title="One head, stage by stage"
# Write the four stages of the backward pass.


# %% answer="5.3"
def value_grad(P, dO):
    """dV, n_k × d_v."""
    ### BEGIN SOLUTION
    return P.mT @ dO
    ### END SOLUTION


def score_grad(P, dO, V):
    """dS, n_q × n_k."""
    ### BEGIN SOLUTION
    dP = dO @ V.mT
    return P * (dP - (P * dP).sum(-1, keepdim=True))
    ### END SOLUTION


def query_key_grad(dS, Q, K, scale):
    """dQ and dK."""
    ### BEGIN SOLUTION
    return scale * dS @ K, scale * dS.mT @ Q
    ### END SOLUTION


# %% checker="5.3"
def head_forward(Q, K, V, scale, mask):
    S = scale * Q @ K.mT
    P = torch.softmax(S.masked_fill(~mask, -torch.inf), -1)
    return {"S": S, "P": P, "O": P @ V}


def scale_twice(dS, Q, K, scale):
    """τ is in dK twice"""
    return scale * dS @ K, scale**2 * dS.mT @ Q


def no_scale(dS, Q, K, scale):
    """τ is missing"""
    return dS @ K, dS.mT @ Q


check_functions(
    {"dV": value_grad, "dS": score_grad, ("dQ", "dK"): query_key_grad},
    head_forward,
    inputs={
        "Q": "n_q, d_k",
        "K": "n_k, d_k",
        "V": "n_k, d_v",
        "scale": "",
        "mask": lambda n_q, n_k: torch.ones(n_q, n_k).tril(2).bool(),
    },
    sizes=[{"n_q": 3, "n_k": 4, "d_k": 2, "d_v": 5}, {"n_q": 5, "n_k": 6, "d_k": 3, "d_v": 2}],
    mistakes={
        "value_grad": [],
        "score_grad": [],
        "query_key_grad": [scale_twice, no_scale],
    },
    shares={"dS": 2},
)

# %% [markdown] exercise="5.4" kind="mistake" points=4 title="A gradient for the keys"
# One line of this derivation is false. Which one, and what should stand there?

# %% given="5.4"
O_dot, dot = differential(attention, Q, moves(K, K_dot), V, scale=tau, name="O")
dP = at.let("dP", dO @ V.mT)
dS = at.let("dS", P * (dP - (P * dP).sum(-1, keepdim=True)))
SOFTMAX = fact(inner(dO, O_dot), inner(dS, dot.S), "the gradient of softmax")

wrong = claim(inner(dO, O_dot), "the differential of ℓ")
wrong(inner(dS, dot.S), SOFTMAX)
wrong(inner(dS, tau * Q @ K_dot.mT), SCORES.moves)
wrong(inner(-tau * Q.mT @ dS, K_dot.mT), laws.LEFT)
wrong(inner(tau * dS.mT @ Q, K_dot), laws.TRANSPOSE)
display(wrong)

# %% answer="5.4"
### BEGIN SOLUTION
answer = correct(4, inner(tau * Q.mT @ dS, K_dot.mT), laws.LEFT)
### END SOLUTION


# %% checker="5.4"
def earlier():
    """line 3 follows from line 2"""
    return correct(3, inner(dS, tau * Q @ K_dot.mT), SCORES.moves)


def later():
    """a line before line 5 is false already"""
    return correct(5, inner(tau * dS.mT @ Q, K_dot), laws.TRANSPOSE)


def no_scale():
    """is the factor τ missing?"""
    return correct(4, inner(Q.mT @ dS, K_dot.mT), laws.LEFT)


check_mistake(wrong, answer, K_dot, attention_vjp(dO, saved).K, mistakes=[earlier, later, no_scale])

# %% [markdown] exercise="5.5" kind="mistake" points=2 title="An error that is carried on"
# Again one line is false; those after it follow from it.

# %% given="5.5"
wrong = claim(inner(dO, O_dot), "the differential of ℓ")
wrong(inner(dS, dot.S), SOFTMAX)
wrong(inner(dS, Q @ K_dot.mT), SCORES.moves)
wrong(inner(Q.mT @ dS, K_dot.mT), laws.LEFT)
wrong(inner(dS.mT @ Q, K_dot), laws.TRANSPOSE)
display(wrong)

# %% answer="5.5"
### BEGIN SOLUTION
answer = correct(3, inner(dS, tau * Q @ K_dot.mT), SCORES.moves)
### END SOLUTION


# %% checker="5.5"
def rest(line):
    line(inner(tau * Q.mT @ dS, K_dot.mT), laws.LEFT)
    line(inner(tau * dS.mT @ Q, K_dot), laws.TRANSPOSE)


def the_last():
    """a line before line 5 is false already"""
    return correct(5, inner(tau * dS.mT @ Q, K_dot), laws.TRANSPOSE)


def negative():
    """the new side is -1 × the one before"""
    return correct(3, inner(dS, -tau * Q @ K_dot.mT), SCORES.moves)


check_mistake(wrong, answer, K_dot, attention_vjp(dO, saved).K, rest=rest, mistakes=[the_last, negative])
