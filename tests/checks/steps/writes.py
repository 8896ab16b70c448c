"""Steps that read and write by index, in place, through a view, and into a buffer slice by slice."""

from __future__ import annotations

from programs import FINITE, LOG, MASKED, MIXED, PLAIN, Maker, Unfit

from steps.registry import step

# ---------------------------------------------------------------- by index


@step("read by index", 2)
def _read(m: Maker) -> None:
    x = m.take((*FINITE, LOG, MIXED), low=1, high=3)
    d = m.axis(x)
    shape = m.value(x).shape
    some = f"torch.tensor({m.indices(m.random.randint(2, 4), shape[d])})"
    forms = [
        f"{x}.index_select({d}, {some})",
        f"{x}[torch.tensor({m.indices(3, shape[0])})]",
        f"{x}[..., {m.indices(3, shape[-1])}]",
    ]
    like = list(shape)
    like[d] = 2
    count = 1
    for n in like:
        count *= n
    places = f"torch.tensor({m.indices(count, shape[d])}).reshape({like})"
    forms += [f"{x}.gather({d}, {places})", f"torch.take_along_dim({x}, {places}, {d})"]
    if len(shape) > 1:
        forms += [
            f"{x}[{m.indices(3, shape[0])}, {m.indices(3, shape[1])}]",
            f"{x}[:, torch.tensor([{m.indices(2, shape[1])}, {m.indices(2, shape[1])}])]",
        ]
        forms += [f"{x}[{m.mask(shape[:1], 0)}]"]
    if len(shape) == 2:
        forms += [f"F.embedding(torch.tensor([{m.indices(2, shape[0])}]), {x})"]
    m.put(m.random.choice(forms), m.kinds[x])


@step("write by index", 2)
def _write(m: Maker) -> None:
    x = m.take(low=1, high=3)
    d = m.axis(x)
    shape = list(m.value(x).shape)
    count = m.random.randint(2, 4)
    form = m.random.choice(
        (
            "index_add",
            "scatter_add",
            "index_put",
            "index_copy",
            "scatter",
            "index_fill",
            "scatter value",
            "accumulate",
            "slice_scatter",
            "select_scatter",
        )
    )
    source = [count if k == d % len(shape) else n for k, n in enumerate(shape)]
    if form == "index_add":
        m.put(
            f"torch.index_add({x}, {d}, torch.tensor({m.indices(count, shape[d])}), {m.fitted(source)}, alpha={m.random.choice((1, 2))})"
        )
    elif form == "scatter_add":
        entries = [m.random.randrange(shape[d]) for _ in range(m.value(m.fitted(source)).numel())]
        m.put(f"{x}.scatter_add({d}, torch.tensor({entries}).reshape({source}), {m.fitted(source)})")
    elif form == "scatter":
        once = [1 if k == d % len(shape) else n for k, n in enumerate(shape)]
        entries = [m.random.randrange(shape[d]) for _ in range(m.value(m.fitted(once)).numel())]
        m.put(f"{x}.scatter({d}, torch.tensor({entries}).reshape({once}), {m.fitted(once)})")
    elif form == "scatter value":
        m.put(f"{x}.scatter({d}, torch.zeros({[1] * len(shape)}, dtype=torch.int64), 0.5)")
    elif form == "index_put":
        rows = m.indices(2, shape[0], distinct=True)
        m.put(f"{x}.index_put((torch.tensor({rows}),), {m.fitted((len(rows), *shape[1:]))})")
    elif form == "accumulate":
        m.put(
            f"{x}.index_put((torch.tensor({m.indices(3, shape[0])}),), {m.fitted((3, *shape[1:]))}, accumulate=True)"
        )
    elif form == "index_copy":
        rows = m.indices(2, shape[d], distinct=True)
        source[d % len(shape)] = len(rows)
        m.put(f"{x}.index_copy({d}, torch.tensor({rows}), {m.fitted(source)})")
    elif form == "index_fill":
        m.put(f"{x}.index_fill({d}, torch.tensor({m.indices(1, shape[d])}), 0.5)")
    elif form == "slice_scatter":
        source[d % len(shape)] = shape[d] - 1
        m.put(f"torch.slice_scatter({x}, {m.fitted(source)}, {d % len(shape)}, 1)")
    else:
        del source[d]
        m.put(f"torch.select_scatter({x}, {m.fitted(source)}, {d % len(shape)}, 0)")


# ---------------------------------------------------------------- in place


@step("write into a copy", 2.5)
def _write_copy(m: Maker) -> None:
    x = m.take(low=1, high=3)
    shape = list(m.value(x).shape)
    copy = m.put(m.random.choice((f"{x}.clone()", f"{x} * 1", f"torch.cat([{x}])", f"0.5 * {x} + 1")))
    for _ in range(m.random.choice((1, 1, 2))):
        part = m.fitted((*shape[:-1], shape[-1] - 1))
        whole = m.fitted(shape)
        column = m.fitted(shape[:-1])
        rows = m.indices(2, shape[0], distinct=True)
        some = m.fitted((len(rows), *shape[1:]))
        forms = (
            f"{copy}[..., 1:] = {part}", f"{copy}[..., :-1] += {part}", f"{copy}[..., 0] *= {column}", f"{copy}[..., -1] = {column}",
            f"{copy} += {whole}", f"{copy} -= 0.5 * {whole}", f"{copy}.mul_({whole})", f"{copy}.add_({whole}, alpha=2)", f"{copy}.copy_({whole})",
            f"{copy}[torch.tensor({rows})] = {some}", f"{copy}[{rows}] += {some}", f"{copy}[::2] = 0", f"{copy}[..., :1].fill_(1.5)", f"{copy}[0].zero_()",
            f"{copy}.masked_fill_({m.mask(shape, None)}, 0.0)", f"{copy}[{m.mask(shape, None)}] = 0.5", f"{copy}.narrow(-1, 0, 1).mul_(3)", f"{copy}.select(-1, 0).add_({column})",
            f"{copy}.neg_()", f"{copy}.relu_()", f"{copy}.tanh_()", f"{copy}.sigmoid_()", f"{copy}.exp_()", f"{copy}.clamp_(-1, 1)", f"{copy}.div_(2)", f"{copy}.square_()",
            f"{copy}.addcmul_({whole}, {whole})", f"{copy}.lerp_({whole}, 0.5)", f"{copy}.index_add_(0, torch.tensor({rows}), {some})",
            f"{copy}.index_copy_(0, torch.tensor({rows}), {some})", f"{copy}.index_put_((torch.tensor({m.indices(2, shape[0])}),), {m.fitted((2, *shape[1:]))}, accumulate=True)",
            f"{copy}.sin_()", f"{copy}.mT.mul_(2)", f"{copy}.view(-1)[1:3] = 0.25", f"{copy}.flatten()[0] = 2", f"{copy}.diagonal(0, 0, -1).fill_(1)", f"{copy}.tril_()",
            f"{copy}.masked_fill_({copy} < 0, 0.1)", f"{copy}.subtract_({whole})", f"{copy}.cumsum_(0)", f"F.silu({copy}, inplace=True)", f"F.relu({copy}, inplace=True)",
        )  # fmt: skip
        m.do(m.random.choice(forms), copy)
        m.check(copy, PLAIN)


@step("write through a view", 2)
def _write_view(m: Maker) -> None:
    x = m.take(low=2, high=3)
    shape = list(m.value(x).shape)
    copy = m.put(
        m.random.choice((f"{x} * 1", f"{x}.clone()", f"torch.zeros_like({x}) + {x}", f"{x}.mT.clone().mT"))
    )
    early = m.random.random() < 0.5
    kept = m.put(f"{copy}[..., :1]", hidden=True) if early else copy
    view = m.random.choice(
        (
            ".mT",
            ".view(-1)",
            "[..., 1:]",
            "[0]",
            "[..., 0]",
            ".diagonal(0, -2, -1)",
            ".unsqueeze(0)",
            "[1:][..., ::2]",
            "[:1].squeeze(0)",
            ".movedim(-1, 0)[1]",
            ".flatten(0, 1)[1:]",
            f".reshape(1, {shape[0]}, -1)[0]",
            ".select(-1, -1)",
            ".narrow(0, 1, 1)",
            ".t()",
        )
    )
    part = m.put(f"{copy}{view}", hidden=True)
    other = m.fitted(m.value(part).shape)
    for _ in range(m.random.choice((1, 2))):
        m.do(
            m.random.choice((f"{part}.mul_({other}); {copy} = {copy}", f"{part} += {other}; {copy} = {copy}", f"{part}.copy_({other}); {copy} = {copy}", f"{part}[...] = 2 * {other}; {copy} = {copy}", f"{part}.tanh_(); {copy} = {copy}", f"{part}.zero_(); {copy} = {copy}", f"{part}[0] = 0.5; {copy} = {copy}", f"{part}.add_({other}, alpha=-2); {copy} = {copy}", f"{part}.masked_fill_({m.mask(m.value(part).shape, None)}, 1.0); {copy} = {copy}", f"{copy} *= 2", f"{copy}.relu_()")),
            copy,
        )  # fmt: skip
    m.check(copy, PLAIN)
    m.put(f"{kept} * {copy}" if early else f"{copy} + {part}.sum()")


@step("boolean index")
def _boolean(m: Maker) -> None:
    x = m.take(low=1, high=3)
    shape = m.value(x).shape
    mask = m.constant(m.mask(shape, -1))
    if m.random.random() < 0.5:
        m.put(f"{x}[{mask}] * {m.fitted(shape)}[{mask}]")
        return
    copy = m.put(f"{x} + 0", hidden=True)
    m.do(f"{copy}[{mask}] = {m.fitted(shape)}[{mask}]", copy)
    m.put(f"{copy} * 1")


@step("buffer of another type", 0.7)
def _buffer(m: Maker) -> None:
    x = m.take(low=1, high=3)
    buffer = m.put(f"torch.zeros({list(m.value(x).shape)})", hidden=True)
    m.do(
        m.random.choice(
            (
                f"{buffer}[:] = {x} * {x}",
                f"{buffer}.copy_({x})",
                f"{buffer}[..., 0] = {x}[..., 1]",
                f"{buffer} += {x}.float()",
                f"{buffer}[0] = {x}[1]",
            )
        ),
        buffer,
    )
    m.put(f"{buffer} + {x}")


@step("one hot", 0.5)
def _one_hot(m: Maker) -> None:
    x = m.take(low=2, high=2)
    n = m.value(x).shape[0]
    m.put(f"F.one_hot(torch.tensor({m.indices(3, n)}), {n}).to({x}.dtype) @ {x}")


@step("tensordot", 0.5)
def _tensordot(m: Maker) -> None:
    x = m.take(low=2, high=3)
    m.put(f"torch.tensordot({x}, {m.fitted((2, m.value(x).shape[-1]))}, dims=([-1], [1]))")


@step("var_mean", 0.5)
def _var_mean(m: Maker) -> None:
    x = m.take(low=1, high=3)
    v, mean = m.several(f"torch.var_mean({x}, -1, correction=0, keepdim=True)", 2)
    m.put(f"({x} - {mean}) * torch.rsqrt({v} + 0.1)")


@step("accumulator", 2.5)
def _accumulator(m: Maker) -> None:
    x = m.take(low=1, high=3)
    shape = list(m.value(x).shape)
    n = shape[0]
    size = ", ".join(map(str, shape))
    like = f"dtype={x}.dtype"
    form = m.random.choice(("rows", "rows", "add", "scan", "columns", "constant"))
    blank = [
        f"torch.zeros({size}, {like})",
        f"torch.empty({size}, {like})",
        f"{x}.new_zeros({size})",
        f"torch.zeros_like({x})",
        f"torch.empty_like({x})",
        f"{x}.new_empty({size})",
        f"torch.full(({size},), 0.5, {like})",
        f"torch.ones({size}, {like})",
    ]
    if form == "rows":
        out = m.put(m.random.choice([b for b in blank if "empty" not in b]), hidden=True)
        for i in range(m.random.choice((n, n - 1))):
            m.do(
                m.random.choice(
                    (
                        f"{out}[{i}] = {x}[{i}] * {x}[{(i + 1) % n}]",
                        f"{out}[{i}] = {x}[: {i + 1}].sum(0)",
                        f"{out}[{i}:{i + 1}] = 2 * {x}[{i}:{i + 1}]",
                    )
                ),
                out,
            )
    elif form == "columns":
        out = m.constant(m.random.choice(blank))
        for i in range(shape[-1]):
            m.do(f"{out}[..., {i}] = {x}[..., {shape[-1] - 1 - i}] ** 2", out)
    elif form == "add":
        out = m.put(m.random.choice([b for b in blank if "empty" not in b]), hidden=True)
        for i in range(n):
            m.do(
                m.random.choice(
                    (
                        f"{out} += {x} * {x}[{i}]",
                        f"{out}[{i}] += {x}[{n - 1 - i}]",
                        f"{out}[:{i + 1}] += {x}[{i}]",
                        f"{out}.add_({x}[{i}])",
                    )
                ),
                out,
            )
    elif form == "scan":
        state = m.put(f"torch.zeros_like({x}[0])", hidden=True)
        out = m.constant(m.random.choice([b for b in blank if "full" not in b and "ones" not in b]))
        for i in range(n):
            m.do(f"{state} = 0.5 * {state} + {x}[{i}]", state)
            m.do(f"{out}[{i}] = {state}", out)
    else:
        k = shape[-1]
        out = m.put(
            m.random.choice(
                (
                    f"{x} @ torch.eye({k}, {like})",
                    f"{x} * torch.arange({k})",
                    f"{x} + torch.arange({k}, {like}) / {k}",
                    f"{x} * {m.numbers((k,), x)}",
                    f"{x} - torch.linspace(0, 1, {k}, {like})",
                    f"{x} * torch.ones({k}, {like}).cumsum(0)",
                )
            ),
            hidden=True,
        )
    m.check(out, PLAIN)
    if not m.value(out).requires_grad:
        raise Unfit
    m.kinds[out] = PLAIN


@step("scores into a buffer", 0.7)
def _scores_buffer(m: Maker) -> None:
    x = m.take(low=2, high=2)
    n = m.value(x).shape[0]
    s = m.put(f"torch.full(({n}, {n}), -torch.inf, dtype={x}.dtype)", MASKED, hidden=True)
    for i in range(n):
        m.do(f"{s}[{i}, : {i + 1}] = {x}[: {i + 1}] @ {x}[{i}]", s, spoils=False)
    m.put(f"F.softmax({s}, -1)")


@step("scatter_add into zeros")
def _scatter_zeros(m: Maker) -> None:
    x = m.take(low=1, high=2)
    shape = list(m.value(x).shape)
    places = m.indices(m.value(x).numel(), 3)
    m.put(
        f"torch.zeros({[3, *shape[1:]]}, dtype={x}.dtype).scatter_add(0, torch.tensor({places}).reshape({shape}), {x})"
    )


@step("index_add into zeros")
def _index_add_zeros(m: Maker) -> None:
    x = m.take(low=1, high=3)
    shape = list(m.value(x).shape)
    m.put(
        f"torch.zeros({[3, *shape[1:]]}, dtype={x}.dtype).index_add(0, torch.tensor({m.indices(shape[0], 3)}), {x})"
    )
