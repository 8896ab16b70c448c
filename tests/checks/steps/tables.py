"""Steps that are one line of text: a pointwise function, a function along an axis, a function of two values."""

from __future__ import annotations

from programs import FINITE, LOG, MASKED, MIXED, PLAIN, POSITIVE, Maker, Unfit

from steps.registry import STEPS, Step


def _rarely_fits(needs: tuple[str, ...], gives: str, weight: float) -> float:
    """A higher weight where the values that it needs are rare, or where it gives one."""
    return weight + (1.5 if PLAIN not in needs else 0.5 if gives in (LOG, MIXED) else 0)


# ---------------------------------------------------------------- one value of any shape: {name: (text, needs, gives)}

POINTWISE = {
    "neg": ("-{x}", FINITE, PLAIN),
    "neg log": ("-{x}", (LOG, MIXED), "same"),
    "scale": ("{x} * 0.5", FINITE, "same"),
    "scale from the left": ("3 * {x}", FINITE, "same"),
    "scale by a root": ("{x} * 4 ** -0.5", FINITE, "same"),
    "scale by 1/sqrt(3)": ("{x} / 3 ** 0.5", FINITE, "same"),
    "twice a log": ("2 * {x}", (LOG,), LOG),
    "shift": ("{x} + 1.5", FINITE, PLAIN),
    "shift a log": ("{x} - 1", (LOG, MIXED), MIXED),
    "from a number": ("2 - {x}", FINITE, PLAIN),
    "divide by a number": ("{x} / 3", FINITE, "same"),
    "square": ("{x}.square()", FINITE, PLAIN),
    "power 2": ("{x} ** 2", FINITE, PLAIN),
    "power 3": ("torch.pow({x}, 3)", FINITE, PLAIN),
    "x*x + 1": ("{x} * {x} + 1", FINITE, POSITIVE),
    "x^2 + eps": ("{x}.pow(2) + 0.25", FINITE, POSITIVE),
    "reciprocal": ("{x}.reciprocal()", (POSITIVE,), POSITIVE),
    "power -1": ("{x} ** -1", (POSITIVE,), POSITIVE),
    "power -2": ("{x} ** -2", (POSITIVE,), POSITIVE),
    "number over": ("0.5 / {x}", (POSITIVE,), POSITIVE),
    "sqrt": ("torch.sqrt({x} + 0.5)", (POSITIVE,), POSITIVE),
    "rsqrt": ("torch.rsqrt({x} + 1)", (POSITIVE,), POSITIVE),
    "power 0.5": ("(2 * {x}) ** 0.5", (POSITIVE,), POSITIVE),
    "power 1.5": ("({x} + 2) ** 1.5", (POSITIVE,), POSITIVE),
    "power -0.5": ("({x} + 1e-6).pow(-0.5)", (POSITIVE,), POSITIVE),
    "power -1.5": ("({x} * {x} + 1) ** -1.5", FINITE, POSITIVE),
    "root of a square plus": ("torch.sqrt({x} * {x} + 1)", FINITE, POSITIVE),
    "exp": ("torch.exp({x})", FINITE, POSITIVE),
    "exp of a negative": ("(-{x}).exp()", FINITE, POSITIVE),
    "exp of a log": ("torch.exp({x})", (LOG, MIXED), POSITIVE),
    "exp2": ("torch.exp2({x})", FINITE, POSITIVE),
    "expm1": ("torch.expm1({x})", FINITE, PLAIN),
    "log": ("torch.log({x})", (POSITIVE,), LOG),
    "log1p": ("torch.log1p({x})", (POSITIVE,), LOG),
    "exp log1p": ("torch.log1p({x} * {x}).exp()", FINITE, POSITIVE),
    "silu": ("F.silu({x})", FINITE, PLAIN),
    "x sigmoid": ("{x} * torch.sigmoid({x})", FINITE, PLAIN),
    "gelu": ("F.gelu({x})", FINITE, PLAIN),
    "gelu tanh": ("F.gelu({x}, approximate='tanh')", FINITE, PLAIN),
    "gelu by erf": ("0.5 * {x} * (1 + torch.erf({x} / 2 ** 0.5))", FINITE, PLAIN),
    "tanh": ("torch.tanh({x})", FINITE, PLAIN),
    "softcap": ("5 * torch.tanh({x} / 5)", FINITE, PLAIN),
    "sigmoid": ("torch.sigmoid({x})", FINITE, POSITIVE),
    "softplus": ("F.softplus({x})", FINITE, LOG),
    "exp softplus": ("torch.exp(-F.softplus({x}))", FINITE, POSITIVE),
    "logsigmoid": ("F.logsigmoid({x})", FINITE, LOG),
    "exp logsigmoid": ("F.logsigmoid({x}).exp()", FINITE, POSITIVE),
    "erf": ("torch.erf({x})", FINITE, PLAIN),
    "sin": ("torch.sin({x})", FINITE, PLAIN),
    "cos": ("torch.cos(2 * {x})", FINITE, PLAIN),
    "relu": ("F.relu({x})", FINITE, PLAIN),
    "relu squared": ("F.relu({x}) ** 2", FINITE, PLAIN),
    "abs": ("{x}.abs()", FINITE, PLAIN),
    "clamp": ("{x}.clamp(-0.5, 1)", FINITE, PLAIN),
    "clamp min": ("torch.clamp({x}, min=0.25)", FINITE, POSITIVE),
    "clamp max": ("{x}.clamp(max=0.5)", FINITE, PLAIN),
    "where positive": ("torch.where({x} > 0, {x}, 0.1 * {x})", FINITE, PLAIN),
    "gated by a comparison": ("{x} * ({x} > 0.5)", FINITE, PLAIN),
    "float": ("{x}.float()", FINITE, "same"),
    "double": ("{x}.double()", FINITE, "same"),
    "to float32": ("{x}.to(torch.float32)", FINITE, "same"),
    "clone": ("{x}.clone()", (*FINITE, LOG, MIXED, MASKED), "same"),
    "contiguous": ("{x}.contiguous()", (*FINITE, LOG, MIXED), "same"),
    "nan_to_num": ("torch.nan_to_num({x})", FINITE, "same"),
    "mean of all": ("{x}.mean()", FINITE, "same"),
    "sum of all": ("{x}.sum()", FINITE, PLAIN),
    "flatten": ("{x}.flatten()", (*FINITE, LOG, MIXED, MASKED), "same"),
    "view flat": ("{x}.contiguous().view(-1)", (*FINITE, LOG), "same"),
    "squeeze": ("{x}.unsqueeze(0).squeeze()", (*FINITE, LOG), "same"),
    "add zeros_like": ("{x} + torch.zeros_like({x})", FINITE, "same"),
    "times ones_like": ("{x} * torch.ones_like({x})", FINITE, "same"),
    "detached factor": ("{x} + 0 * {x}.detach()", FINITE, "same"),
    "softmax of one number": ("F.softmax({x}.sum(), 0) * {x}", FINITE, PLAIN),
    "share of the sum": ("{x} / ({x} * {x} + 1).sum()", FINITE, PLAIN),
    "mean and var of all": ("({x} - {x}.mean()) * {x}.var()", FINITE, PLAIN),
    "norm of all": ("{x} / ({x}.norm() + 1)", FINITE, PLAIN),
    "two roots of one": ("(lambda u: {x} * u.rsqrt() + u.sqrt())({x} * {x} + 1)", FINITE, PLAIN),
    "root of a root": ("torch.sqrt(torch.sqrt({x} * {x} + 1) + 1)", FINITE, POSITIVE),
    "relu of relu": ("F.relu(F.relu({x}) - 0.5)", FINITE, PLAIN),
    "sign": ("{x} * {x}.sign()", FINITE, PLAIN),
    "nested softmax": ("F.softmax(F.softmax({x}.flatten(), 0), 0)", FINITE, POSITIVE),
    "lse of all": ("torch.logsumexp({x}, tuple(range({x}.dim()))).exp()", FINITE, POSITIVE),
    "checkpoint": ("checkpoint(lambda t: torch.exp(t) * t, {x}, use_reentrant=False)", FINITE, PLAIN),
    "squares by hand": ("Squares.apply({x})", FINITE, PLAIN),
    "softmax by a Function": ("Softmax.apply({x}.flatten())", FINITE, POSITIVE),
    "dropout": ("F.dropout({x}, 0.5)", FINITE, PLAIN),
}  # fmt: skip


def _pointwise(text: str, needs: tuple[str, ...], gives: str) -> Step:
    def take(m: Maker) -> None:
        x = m.take(needs)
        m.put(text.format(x=x), m.kinds[x] if gives == "same" else gives)

    return take


for _name, (_text, _needs, _gives) in POINTWISE.items():
    STEPS[_name] = _rarely_fits(_needs, _gives, 0.3), _pointwise(_text, _needs, _gives)

# ---------------------------------------------------------------- one value and an axis d: {name: (text, needs, gives)}

ALONG = {
    "sum": ("{x}.sum({d})", FINITE, PLAIN),
    "sum keepdim": ("{x}.sum({d}, keepdim=True)", FINITE, PLAIN),
    "mean": ("{x}.mean({d}, keepdim=True)", FINITE, "same"),
    "centred": ("{x} - {x}.mean({d}, keepdim=True)", FINITE, PLAIN),
    "var": ("{x}.var({d}, keepdim=True) + 0.5", FINITE, POSITIVE),
    "var unbiased=False": ("torch.var({x}, {d}, unbiased=False)", FINITE, PLAIN),
    "std": ("{x}.std({d}, keepdim=True)", FINITE, PLAIN),
    "standardised": ("({x} - {x}.mean({d}, keepdim=True)) / ({x}.var({d}, keepdim=True, correction=0) + 1e-2).sqrt()", FINITE, PLAIN),
    "norm": ("{x}.norm(dim={d}, keepdim=True)", FINITE, PLAIN),
    "vector_norm": ("torch.linalg.vector_norm({x}, dim={d})", FINITE, PLAIN),
    "unit vectors": ("{x} / torch.sqrt({x}.square().sum({d}, keepdim=True) + 1e-3)", FINITE, PLAIN),
    "F.normalize": ("F.normalize({x}, dim={d})", FINITE, PLAIN),
    "rms by hand": ("{x} * torch.rsqrt({x}.pow(2).mean({d}, keepdim=True) + 1e-5)", FINITE, PLAIN),
    "softmax": ("F.softmax({x}, {d})", (*FINITE, MASKED, MIXED), POSITIVE),
    "softmax by hand": ("torch.exp({x}) / torch.exp({x}).sum({d}, keepdim=True)", (*FINITE, MIXED), POSITIVE),
    "softmax, shift detached": (
        "({x} - {x}.amax({d}, keepdim=True).detach()).exp() / ({x} - {x}.amax({d}, keepdim=True).detach()).exp().sum({d}, keepdim=True)",
        FINITE,
        POSITIVE,
    ),
    "exp log_softmax": ("F.log_softmax({x}, {d}).exp()", FINITE, POSITIVE),
    "log_softmax": ("F.log_softmax({x}, {d})", (*FINITE, MIXED), MIXED),
    "logsumexp": ("torch.logsumexp({x}, {d})", (*FINITE, LOG, MIXED), LOG),
    "logsumexp keepdim": ("{x}.logsumexp({d}, keepdim=True)", (*FINITE, MASKED), LOG),
    "exp logsumexp": ("torch.exp(torch.logsumexp({x}, {d}))", FINITE, POSITIVE),
    "exp of minus lse": ("torch.exp({x} - torch.logsumexp({x}, {d}, keepdim=True))", FINITE, POSITIVE),
    "cumsum": ("{x}.cumsum({d})", FINITE, PLAIN),
    "reversed cumsum": ("{x}.flip({d}).cumsum({d}).flip({d})", FINITE, PLAIN),
    "flip": ("{x}.flip({d})", (*FINITE, LOG, MIXED, MASKED), "same"),
    "roll": ("torch.roll({x}, 1, {d})", (*FINITE, LOG, MIXED), "same"),
    "every other": ("{x}.movedim({d}, 0)[::2]", (*FINITE, LOG, MIXED), "same"),
    "all but the first": ("{x}.movedim({d}, -1)[..., 1:]", (*FINITE, LOG, MIXED), "same"),
    "last": ("{x}.select({d}, -1)", (*FINITE, LOG, MIXED), "same"),
    "narrow": ("{x}.narrow({d}, 0, 2)", (*FINITE, LOG, MASKED), "same"),
    "unsqueeze": ("{x}.unsqueeze({d})", (*FINITE, LOG), "same"),
    "repeat_interleave": ("{x}.repeat_interleave(2, {d})", (*FINITE, LOG), "same"),
    "unfold": ("{x}.unfold({d}, 2, 1)", FINITE, "same"),
    "differences": ("torch.diff({x}, dim={d})", FINITE, PLAIN),
    "glu by chunk": ("torch.cat([{x}, {x} * 2], {d}).chunk(2, {d})[1]", FINITE, "same"),
    "split and cat": ("torch.cat([t * t for t in {x}.split(1, {d})], {d})", FINITE, PLAIN),
    "unbind and stack": ("torch.stack([t + 1 for t in {x}.unbind({d})][::-1], {d})", FINITE, PLAIN),
}  # fmt: skip


def _along(text: str, needs: tuple[str, ...], gives: str) -> Step:
    def take(m: Maker) -> None:
        x = m.take(needs, low=1, high=3)
        d = -1 if m.kinds[x] == MASKED else m.axis(x)
        if m.value(x).shape[d] == 1 and ("var(" in text or "std(" in text):
            raise Unfit
        m.put(text.format(x=x, d=d), m.kinds[x] if gives == "same" else gives)

    return take


for _name, (_text, _needs, _gives) in ALONG.items():
    STEPS[_name] = _rarely_fits(_needs, _gives, 0.4), _along(_text, _needs, _gives)

# ---------------------------------------------------------------- two values: {name: (text, kinds of x, kinds of y, gives)}

TWO = {
    "add": ("{x} + {y}", FINITE, FINITE, PLAIN),
    "sub": ("{x} - {y}", FINITE, FINITE, PLAIN),
    "mul": ("{x} * {y}", FINITE, FINITE, PLAIN),
    "div": ("{x} / {y}", FINITE, (POSITIVE,), PLAIN),
    "add alpha": ("torch.add({x}, {y}, alpha=2)", FINITE, FINITE, PLAIN),
    "sub alpha": ("torch.sub({x}, {y}, alpha=0.5)", FINITE, FINITE, PLAIN),
    "addcmul": ("torch.addcmul({x}, {y}, {y}, value=0.5)", FINITE, FINITE, PLAIN),
    "addcdiv": ("torch.addcdiv({x}, {x}, {y})", FINITE, (POSITIVE,), PLAIN),
    "lerp": ("torch.lerp({x}, {y}, 0.25)", FINITE, FINITE, PLAIN),
    "silu gate": ("F.silu({x}) * {y}", FINITE, FINITE, PLAIN),
    "gates together": ("torch.where(({x} > 0) & ({y} > 0) | ~({x} > {y}), {x} * {y}, {x})", FINITE, FINITE, PLAIN),
    "clamp min by a tensor": ("torch.clamp({x}, min={y})", FINITE, FINITE, PLAIN),
    "product by a Function": ("Product.apply({x}, {y}.expand_as({x}))", FINITE, FINITE, PLAIN),
    "distance": ("({x} - {y}).abs().mean()", FINITE, FINITE, PLAIN),
    "where greater": ("torch.where({x} > {y}, {x}, {y})", FINITE, FINITE, PLAIN),
    "where less": ("torch.where({x} <= {y}, {x} * {y}, {x})", FINITE, FINITE, PLAIN),
    "add to a log": ("{x} + {y}", (LOG, MIXED), FINITE, MIXED),
    "take from a log": ("{y} - {x}", (LOG, MIXED), FINITE, MIXED),
    "sum of logs": ("{x} + {y}", (LOG,), (LOG,), LOG),
    "difference of logs": ("{x} - {y}", (LOG,), (LOG,), LOG),
    "logaddexp of logs": ("torch.logaddexp({x}, {y})", (LOG,), (LOG,), LOG),
    "share by lse": ("torch.exp({x} - torch.logaddexp({x}, {y}))", (LOG,), (LOG,), POSITIVE),
}  # fmt: skip


def _two(text: str, first: tuple[str, ...], second: tuple[str, ...], gives: str) -> Step:
    def take(m: Maker) -> None:
        x = m.take(first)
        y = m.partner(x, second)
        m.put(text.format(x=x, y=y), gives)

    return take


for _name, (_text, _first, _second, _gives) in TWO.items():
    STEPS[_name] = _rarely_fits(_first, _gives, 0.8), _two(_text, _first, _second, _gives)
