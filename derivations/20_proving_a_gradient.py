# %% [markdown]
# # 20 Proving a gradient
#
# $$\langle dY, \dot{Y}\rangle = \langle d\theta, \dot{\theta}\rangle$$
#
# ($\theta$ stands for all inputs together, $\dot{\theta}$ is free, $\dot{Y}$ is the true tangent of the
# program along $\dot{\theta}$.) Chapter 19 looked at checks that compare numbers: each needs a tolerance, and
# shows what it shows for one point. This one is about a test that needs no more runs and settles the
# question: the gradient is proved, for this program and these shapes, with a probability of accident that is
# printed and is below $2^{-40}$. `gradderiv.prove` does all of it in one call; here it is taken apart.
#
# ## One random point is enough, if the arithmetic is exact
#
# A formula made of sums, products and quotients is a quotient of two polynomials. Two such formulas are equal
# when the numerator of their difference is the zero polynomial, and to see that one need not multiply it out.
#
# **Schwartz (J. ACM 27, 1980), Zippel (EUROSAM 1979).** A polynomial $N \neq 0$ of degree at most $D$ over
# the residues modulo a prime $p$ is zero with probability at most $D/p$ at a point whose coordinates are
# drawn independently and uniformly.
#
# In one variable: there are at most $D$ roots. With more, let $x^k$ be the highest power of one variable $x$.
# Its coefficient has degree at most $D - k$, so it is zero at the other coordinates with probability at most
# $(D - k)/p$, by induction; if it is not, a polynomial of degree $k$ in $x$ is left, with at most $k$ roots.
# The two add up to $D/p$.
#
# Residues are the integers $0 \dots p - 1$: nothing is rounded, and equal means equal. With a small prime we
# can count over all points. (The picture shows where three polynomials are 0 modulo 29: few of the $29^2$
# points.) A wrong identity of degree 2, $(x + y)^2 = x^2 + y^2$, is caught at most of them:

# %%
import math
from itertools import product

import torch

import gradderiv
from gradderiv.book import laws
from gradderiv.book.chain import Point, chain, definition, differential, display, fact, inner, moves
from gradderiv.book.exercises import check_chain, check_functions
from gradderiv.book.layout import wrap
from gradderiv.book.pictures import pattern
from gradderiv.numbers.field import Field
from gradderiv.numbers.ledger import Degree, Ledger
from gradderiv.rules.attention import attention
from gradderiv.rules.multihead import multihead, multihead_vjp


def agreeing(left, right, p):
    """The share of all points (x, y) mod p at which two formulas agree."""
    return sum((left(x, y) - right(x, y)) % p == 0 for x, y in product(range(p), repeat=2)) / p**2


for p in (5, 29, 211):
    share = agreeing(lambda x, y: (x + y) ** 2, lambda x, y: x**2 + y**2, p)
    print(f"p = {p:3}: agrees at {share:.3f} of all points, and D/p = {2 / p:.3f}")
for p in (5, 7):
    degree = agreeing(lambda x, y: x**5, lambda x, y: x, p)
    multiple = agreeing(lambda x, y: (x + y) ** 5, lambda x, y: x**5 + y**5, p)
    print(f"p = {p}: x^5 = x at {degree:.3f}, (x + y)^5 = x^5 + y^5 at {multiple:.3f}")

x, y = torch.arange(29)[:, None], torch.arange(29)
wrong = {
    "2xy": (2 * x * y) % 29 == 0,
    "x^2 - y^2 - 1": (x * x - y * y - 1) % 29 == 0,
    "x^3 - y": (x**3 - y) % 29 == 0,
}
zeros = "where three polynomials are 0: two axes, a hyperbola, a cubic; 57, 28 and 29 of 29 by 29 points"
display(pattern(wrong, alt=zeros))

# %% [markdown]
# In the last line but one $p = 5$ fails altogether, in two ways. $x^5 = x$ has degree 5, and $D/p = 1$
# promises nothing. In the other the coefficients of the difference are 5, 10, 10 and 5: modulo 5 it *is*
# zero, and no point can tell. Against the first the primes must be large beside $D$, near $2^{31}$ here.
# Against the second they are drawn at random: few primes divide a given number.
#
# ## The exponential
#
# $\exp(a)$ modulo a prime has no meaning, so exp is made *opaque*: a function $H$ that gives every residue a
# random residue, the same for the same argument. Of exp it keeps $H(0) = 1$ and its derivative rule,
# $H(a)\,\dot{a}$; where a program needs it, `prove` tries once more with $H(-a) = 1/H(a)$. Why is that
# enough? Give each argument $a_t$ that the program meets a variable $E_t$ of its own. The difference of two
# formulas is then a quotient of polynomials in the inputs and the $E_t$. If its numerator is the zero
# polynomial, it stays zero whatever is put for the $E_t$, and so if that is $\exp(a_t)$: putting values for
# variables respects sums and products, it is a homomorphism. *An identity that holds for free values holds
# for the real ones.* The reverse is not true: $\exp(a + b) = \exp(a) \exp(b)$ does not hold for free values.
#
# Here are three backwards for $y = \exp(a + b)$, with $a$ and $b$ of $2 \times 3$. Beside "proved" stand two
# bounds on the probability that it is an accident: for the primes drawn, and with primes that divide all
# coefficients, as 5 above, included.


# %%
def with_backward(forward, backward):
    """An operation that autograd does not look into: it takes our word for the gradient."""

    class Operation(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            y = forward(*inputs)
            ctx.save_for_backward(*inputs, y)
            return y

        @staticmethod
        def backward(ctx, dY):
            return backward(dY, *ctx.saved_tensors)

    return Operation.apply


def prove(what, function, *inputs, **options):
    """Print the verdict, with both figures of a proof, or why there is none."""
    proof = gradderiv.prove(function, inputs, names=["A", "B", "C"][: len(inputs)], **options)
    figures = (f"2^{math.ceil(f)}" for f in (proof.log2_failure, proof.log2_failure_over_q) if proof.passed)
    display(f"{what:30} {proof.verdict:13} {', '.join(figures)}".rstrip())
    for text in wrap(proof.reason, 60) if proof.reason else ():
        display(f"    {text}")


generator = torch.Generator().manual_seed(8)
a, b, S = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((2, 3), (2, 3), (3, 4)))
backwards = {
    "dy y": lambda dy, a, b, y: (dy * y, dy * y),
    "dy exp(a)": lambda dy, a, b, y: (dy * a.exp(), dy * a.exp()),
    "dy exp(a) exp(b)": lambda dy, a, b, y: (dy * a.exp() * b.exp(), dy * a.exp() * b.exp()),
}
for what, backward in backwards.items():
    prove(what, with_backward(lambda a, b: torch.exp(a + b), backward), a, b)

# %% [markdown]
# The last one is right, and it is not refuted either: *inconclusive* is neither a proof nor an alarm, and
# *refuted* is only said when float64 sees the difference, too. How much is lost? If no combination of the
# arguments (rational functions) with integer coefficients, not all 0, is constant, their exponentials satisfy
# no polynomial equation, not even with rational functions of the inputs as coefficients (Ax, Annals of
# Mathematics 93, 1971). So what is lost comes from $\exp(a + b) = \exp(a) \exp(b)$. The scores of attention,
# with free inputs, have no such combination.
#
# ## Why one prime is not enough
#
# $H$ knows its arguments by their residues only. Two different scores with one residue get one exponential;
# they are no longer free, and a mistake that swaps the two goes unseen. How often does it happen? As with
# birthdays, the number of *pairs* counts. So a run takes $k$ *lanes* at once, each with its own prime and
# point, and $H$ reads the residues of all lanes together: two arguments are confused only if they coincide in
# every lane. First the scores of a $64 \times 64$ matrix $Q K^\top$, counted modulo two primes near $2^{16}$;
# then, for primes near $2^{31}$, $n = 512$, $h = 12$ and scores of degree 4 ($X$, $W^Q$, $X$, $W^K$), the
# bound on the probability that some pair coincides in all of $k$ lanes:

# %%
primes, lanes = (65537, 65539), []
for p in primes:
    Q, K = (torch.randint(0, p, (64, 8), generator=generator) for _ in range(2))
    lanes.append((Q @ K.mT % p).flatten())  # sums below 2³⁶: exact
for name, compared in {"first prime": lanes[:1], "second": lanes[1:], "both": lanes}.items():
    counts = torch.unique(torch.stack(compared), dim=1, return_counts=True)[1]
    print(f"{name:12}", int((counts * (counts - 1) // 2).sum()), "equal pairs")
print(f"of {math.comb(64**2, 2)} pairs, a share of 1/p is {math.comb(64**2, 2) / p:.0f}")

ledger = Ledger()
ledger.opaque(12 * 512**2, Degree(4))
print(", ".join(f"k = {k}: 2^{ledger.coincidence(k):.0f}" for k in range(1, 5)))

# %% [markdown]
# Here one prime gives no bound at all. `prove` takes as many as the bound asked for needs, $2^{-40}$ unless
# told otherwise.
#
# ## The statement
#
# A backward pass $g$ must satisfy $\langle dY, \dot{Y}\rangle = \langle g, \dot{\theta}\rangle$ in every
# direction $\dot{\theta}$. That is one number on each side, yet nothing is averaged away: $\dot{\theta}$ is
# free like everything else, and the coefficient of one entry of $\dot{\theta}$ is that entry of the gradient
# (chapter 2). If one entry of $g$ is wrong, the difference is not the zero polynomial. It is the random
# direction of chapter 19, without a tolerance.
#
# $\dot{Y}$ comes from dual numbers through the *forward* code alone (chapter 2), so the left side does not
# share the author's mistake: the author's backward is not run for it. Here is one head, $Q$ of
# $n_q \times d_k$, all three inputs moving at once, every step by a law (that the Jacobian of softmax is
# symmetric is chapter 18's), and then, by `prove`, two backwards for softmax: that of chapter 4, and the
# derivative of a logistic.

# %%
at = Point(n_q=3, n_k=4, d_k=2, d_v=5)
Q, K, V = at.free("Q", "n_q, d_k"), at.free("K", "n_k, d_k"), at.free("V", "n_k, d_v")
Q_dot, K_dot, V_dot = at.tangent(Q), at.tangent(K), at.tangent(V)
dO, tau = at.free("dO", "n_q, d_v"), at.free("scale")
O, saved = attention(Q, K, V, scale=tau)
O, scores, P = at.let("O", O), saved.S, saved.P
O_dot, dot = differential(attention, moves(Q, Q_dot), moves(K, K_dot), moves(V, V_dot), scale=tau, name="O")
OUTPUT, SCORES = definition(O, P @ V), definition(scores, tau * Q @ K.mT)
SOFTMAX = fact(dot.P, P * (dot.S - (P * dot.S).sum(-1, keepdim=True)), "the tangent of softmax, chapter 4")

line = chain(inner(dO, O_dot), "Q, K and V move")
line(inner(dO, dot.P @ V + P @ V_dot), OUTPUT.moves)
line(inner(dO, dot.P @ V) + inner(dO, P @ V_dot), laws.LINEARITY)
line(inner(dO @ V.mT, dot.P) + inner(dO, P @ V_dot), laws.RIGHT)
line(inner(dO @ V.mT, dot.P) + inner(P.mT @ dO, V_dot), laws.LEFT)
dP = line.let("dP", dO @ V.mT)
line(inner(dP, P * (dot.S - (P * dot.S).sum(-1, keepdim=True))) + inner(P.mT @ dO, V_dot), SOFTMAX)
line(inner(P * (dP - (P * dP).sum(-1, keepdim=True)), dot.S) + inner(P.mT @ dO, V_dot), laws.JACOBIAN)
dS = line.let("dS", P * (dP - (P * dP).sum(-1, keepdim=True)))
line(inner(dS, tau * Q_dot @ K.mT + tau * Q @ K_dot.mT) + inner(P.mT @ dO, V_dot), SCORES.moves)
line(inner(dS, tau * Q_dot @ K.mT) + inner(dS, tau * Q @ K_dot.mT) + inner(P.mT @ dO, V_dot), laws.LINEARITY)
line(inner(tau * dS @ K, Q_dot) + inner(dS, tau * Q @ K_dot.mT) + inner(P.mT @ dO, V_dot), laws.RIGHT)
line(inner(tau * dS @ K, Q_dot) + inner(tau * Q.mT @ dS, K_dot.mT) + inner(P.mT @ dO, V_dot), laws.LEFT)
line(inner(tau * dS @ K, Q_dot) + inner(tau * dS.mT @ Q, K_dot) + inner(P.mT @ dO, V_dot), laws.TRANSPOSE)
display(line)

right = with_backward(lambda S: S.softmax(-1), lambda dP, S, P: P * (dP - (P * dP).sum(-1, keepdim=True)))
logistic = with_backward(lambda S: S.softmax(-1), lambda dP, S, P: P * (1 - P) * dP)
prove("P ∘ (dP − rowsum(P ∘ dP))", right, S)
prove("P ∘ (1 − P) ∘ dP", logistic, S)

# %% [markdown]
# ## Degrees
#
# The bound needs $D$. Each tensor carries along its *excess* $e$, the degree of the numerator minus that of
# the denominator, and its *poles* $m$: how often the inverses of each division stand in the denominator. A
# product adds both, a sum takes the larger of each. Inputs, cotangents and values of $H$ have $e = 1$. Over a
# common denominator the numerator has degree $e + \sum m R q$: a sum over the divisions, each with $R$
# inverses of degree $q$. softmax, $P = E \oslash (E \mathcal{I})$, has $e = 1 - 1 = 0$ and $m = 1$, $q = 1$.
# Then $dP = dY\, W^{O\top} \mathcal{V}^\top$ has $e = 4$ ($dY$, $W^O$, $X$, $W^V$); $dS$ has $P$ twice, so
# $e = 4$ and $m = 2$; $dQ = \tau\, dS\, K$ adds 2 ($X$, $W^K$) and $dW^Q = X^\top dQ$ adds 1. The sum over
# the tokens meets all $n$ row sums of a head. The ledger of a run counts those of all $h$ heads, so
# $D = 7 + 2nh$, and 1 more for $\langle dW^Q, \dot{W}^Q\rangle$; $d_{model}$ does not enter:

# %%
E = Field(seed=0, lanes=2).random(3, 4).exp()
P = E / E.sum(-1, keepdim=True)
print("softmax: e =", P.note.value.e, " m =", *(m for _, m in P.note.value.poles))
for n, h, d in ((2, 1, 3), (5, 1, 3), (5, 3, 6), (7, 2, 8)):
    field = Field(seed=0, lanes=2)
    inputs = (field.random(*s) for s in ((n, d), (d, d), (d, d), (d, d), (d, d)))
    dW_Q = multihead_vjp(field.random(n, d), multihead(*inputs, n_heads=h, scale=1.0)[1]).W_Q
    D = field.ledger.numerator(dW_Q.note.value)
    print(f"n = {n}, h = {h}, d_model = {d}: the ledger says {D}, 7 + 2nh = {7 + 2 * n * h}")

# %% [markdown]
# ## Roots, and the maximum as a shift
#
# $\sqrt{u}$ is opaque too. $r = 1/\sqrt{u}$ is a random function of $u$ with
# $\dot{r} = -\frac{1}{2} r^3 \dot{u}$, $\sqrt{u}$ is $1/r$, and $u$ itself is then *replaced* by $r^{-2}$.
# The real $u$ is that, too, and $r^2 u = 1$ holds by itself (for this $u$, not for one that is computed a
# second time, chapter 14). Relations between two roots, such as $\sqrt{uv} = \sqrt{u}\sqrt{v}$, are unknown.
#
# Residues have no order, so a row has no greatest entry. But programs ask for the maximum $m$ to subtract it
# under exp and undo that later, and any number would do. So $m$ is a random shift with tangent zero, drawn
# twice; what changes with it is not proved.

# %%
two_roots = with_backward(lambda u: (3 * u).sqrt(), lambda d, u, y: d * 3**0.5 / (2 * u.sqrt()))
prove("x / root mean square", lambda S: S * torch.rsqrt((S * S).mean(-1, keepdim=True)), S)
prove("√(3u), by way of √u", two_roots, S.exp())
prove("log Σ exp(S − m) + m", lambda S: (S - S.amax(-1, True)).exp().sum(-1).log() + S.amax(-1), S)
prove("the maximum itself", lambda S: S.amax(-1), S)

# %% [markdown]
# ## What "proved" does not say
#
# The backward belongs to *this* forward; a wrong forward has a derivative as well. Attention scaled by
# $1/d_k$ where $1/\sqrt{d_k}$ is meant is proved, and only a second program, a `reference`, can object. Nor
# does a proof know of rounding: softmax without the shift is proved, and in floats a score of 800 is too
# large for exp.
#
# ```{admonition} Common mistake: the scale of the whole model
# :class: warning
# $1/\sqrt{d_{model}}$ for $1/\sqrt{d_k}$ has stood in at least seven repositories (ViT-CIFAR #9, dfdx #171,
# set_transformer #18 and others). The backward pass matches the forward pass, so every gradient check passes,
# and so does a proof. With $d_{model} = h\, d_k$ the scores are too small by $\sqrt{h}$, and attention is
# flatter than meant: for 64 keys with normal scores the largest probability falls from 0.11 to 0.03 (last
# line below). What finds it is a reference, or reading.
# ```

# %%
K, V, wrong, meant = S[:2] + 1, S[:2] - 1, 1 / 4, 1 / 2  # d_k = 4
heads = [lambda Q, K, V, tau=tau: torch.softmax(tau * Q @ K.mT, -1) @ V for tau in (wrong, meant)]
prove("scale 1/d_k, by itself", heads[0], S, K, V)
prove("scale 1/d_k, with a reference", heads[0], S, K, V, reference=heads[1])
prove("softmax without the shift", lambda S: S.exp() / S.exp().sum(-1, keepdim=True), S)
x = torch.full((2,), 800.0)
print("    in floats, of two scores of 800:", (x.exp() / x.exp().sum()).tolist())
scores = torch.randn(1000, 64, generator=generator, dtype=torch.float64)
shares = (torch.softmax(s, -1).amax(-1).mean().item() for s in (scores, scores / 12**0.5))
print("largest of 64 probabilities, mean: {:.3f}; 1/sqrt(d_model), h = 12: {:.3f}".format(*shares))

# %% [markdown]
# ## The theorem
#
# Let $f$ be a straight-line program of sums, products, quotients and opaque functions, on inputs of fixed
# shapes, and $g$ what autograd and the backwards written by hand return for the cotangents $dY$. **If
# $\langle dY, \dot{f}(\theta; \dot{\theta})\rangle = \langle g(\theta, dY), \dot{\theta}\rangle$ for free
# $\theta$, $\dot{\theta}$, $dY$ and free values of the opaque functions, then $g$ is the gradient of
# $\langle dY, f\rangle$ at all real $\theta$ at which the program is defined and smooth.**
#
# A run evaluates the difference of the two sides, $N/Q$, at a random point modulo $k$ random primes. Let
# $N \neq 0$ have degree at most $D$, let $M$ arguments be given to opaque functions, and let the differences
# of two of them have numerators of degree at most $d_a$. With $p$ the smallest prime that can be drawn, the
# probability that every lane is 0 is at most
#
# $$\frac{1}{1 - \eta} \left( \frac{(M + 1) M}{2} \left(\frac{d_a}{p - 1}\right)^k + \left(\frac{D}{p - 1}\right)^k \right)$$
#
# The first term pays for arguments that coincide, the second for the point, and $1 - \eta$ for points that
# were drawn again because a denominator was 0 ($\eta$ bounds the probability of that). Odd functions,
# repeated calls and zeros add terms (`gradderiv/numbers/ledger.py`). The bound holds for the primes drawn; a
# second figure adds the chance that they divide all coefficients of $N$.
#
# *Assumed.* The keyed function behaves as a random one. Torch's operations are implemented over the residues
# as torch defines them (the tests compare them with exact fractions). The program runs the same operations
# for all values; one that asks for values is refused. A constant such as 0.7071… stands for the number that
# it is read as, $1/\sqrt{2}$; readings are listed.
#
# *Limits.* Other shapes are other theorems. Rounding, overflow and shared memory are not seen; a wrong
# forward is not, without a reference. At a kink, as of relu, either side's derivative is meant. What is not
# proved may still be true.
#
# ## Exercises

# %% [markdown] exercise="20.1" kind="chain" points=3 title="What is used of exp"
# $y = \exp(a) \circ b$, all $n \times d$, and only $a$ moves. Go from $\langle dy, \dot{y}\rangle$ to what
# multiplies $\dot{a}$. Which property of exp did you need, and is it one that the opaque $H$ has?

# %% given="20.1"
at = Point(n=3, d=4)
a, b, dy = at.free("a", "n, d"), at.free("b", "n, d"), at.free("dy", "n, d")
a_dot = at.tangent(a)
y = at.let("y", torch.exp(a) * b)
y_dot = differential(lambda a, b: torch.exp(a) * b, moves(a, a_dot), b, name="y")
PRODUCT = definition(y)
line = chain(inner(dy, y_dot), "the true differential")

# %% answer="20.1"
### BEGIN SOLUTION
line(inner(dy, torch.exp(a) * a_dot * b), PRODUCT.moves)
line(inner(dy, y * a_dot), PRODUCT)
line(inner(dy * y, a_dot), laws.ENTRYWISE)
### END SOLUTION


# %% checker="20.1"
def without_exp(line):
    """differ"""
    line(inner(dy, a_dot * b), PRODUCT.moves)


def two_at_once(line):
    """ENTRYWISE is used as well"""
    line(inner(dy, torch.exp(a) * a_dot * b), PRODUCT.moves)
    line(inner(dy * y, a_dot), PRODUCT)


def other_law(line):
    """it follows by ENTRYWISE"""
    line(inner(dy, torch.exp(a) * a_dot * b), PRODUCT.moves)
    line(inner(dy, y * a_dot), PRODUCT)
    line(inner(dy * y, a_dot), laws.RIGHT)


check_chain(line, ends=inner(dy * y, a_dot), mistakes=[without_exp, two_at_once, other_law])

# %% [markdown] exercise="20.2" kind="function" points=3 title="The derivative rule of a root"
# $r = u^{-1/2}$, entry by entry, $n \times d$. Write $\dot{r}$ from $r$ and $\dot{u}$, and $du$ from $r$ and
# $dr$, without a root and without $u$: this is the rule that the opaque root keeps.


# %% answer="20.2"
def root_dot(r, u_dot):
    """The tangent of r, n × d."""
    ### BEGIN SOLUTION
    return -(r**3) * u_dot / 2
    ### END SOLUTION


def root_gradient(r, dr):
    """du, n × d."""
    ### BEGIN SOLUTION
    return -(r**3) * dr / 2
    ### END SOLUTION


# %% checker="20.2"
def root(u):
    return {"r": torch.rsqrt(u)}


def sign(r, u_dot):
    """the sign: r falls when u rises"""
    return r**3 * u_dot / 2


def power(r, dr):
    """r² in the place of r³"""
    return -(r**2) * dr / 2


check_functions(
    {"r_dot": root_dot, "du": root_gradient},
    root,
    inputs={"u": "n, d"},
    sizes=[{"n": 3, "d": 4}, {"n": 2, "d": 5}],
    mistakes={"root_dot": [sign], "root_gradient": [power]},
)

# %% [markdown]
# **Questions.** 1. At which share of all points modulo $p$ does $(x + y)^2 = x^2 + y^2$ hold? 2. A forward
# returns $\exp(a) \exp(b)$, and its backward uses both factors. Is it proved? 3. A function has two outputs.
# Why must their cotangents be free of one another? 4. Why does the test of chapter 19 with one random
# direction in floats need a tolerance, and this one none?
