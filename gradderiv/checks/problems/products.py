"""Problems of products in all the forms of ``torch.matmul``, and of embeddings."""

from __future__ import annotations

import torch

from gradderiv.checks.problems.problem import Problem


def problems() -> list[Problem]:
    return matmul() + embedding()


def matmul() -> list[Problem]:
    def case(name: str, A: tuple[int, ...], B: tuple[int, ...], C: tuple[int, ...], why: str) -> Problem:
        return Problem(name, "matmul", {"A": A, "B": B}, C, why=why)

    return [
        case("matmul", (5, 3), (3, 7), (5, 7), "dA = dC B for dC Bᵀ; sizes pairwise distinct"),
        case("matmul-dot", (7,), (7,), (), "a product without axes: its cotangent is a number"),
        case("matmul-row", (3,), (3, 5), (5,), "one row: the outer product of dB the wrong way round"),
        case("matmul-row-batch", (3,), (2, 5, 3, 7), (2, 5, 7), "one row for all matrices: dA summed over all"),
        case("matmul-column", (5, 3), (3,), (5,), "one column: dA is an outer product"),
        case("matmul-column-batch", (2, 5, 7, 3), (3,), (2, 5, 7), "one column for all matrices: dB summed over all"),
        case("matmul-heads", (2, 3, 5, 7), (2, 3, 7, 4), (2, 3, 5, 4), "batch and heads with nothing to sum over"),
        case("matmul-left", (2, 3, 5, 7), (7, 4), (2, 3, 5, 4), "a weight for all heads: dB summed over both axes"),
        case("matmul-right", (5, 7), (2, 3, 7, 4), (2, 3, 5, 4), "the same on the other side: dA summed over both"),
        case(
            "matmul-broadcast", (2, 1, 5, 7), (3, 7, 4), (2, 3, 5, 4),
            "(j, 1, n, n) by (k, n, n): dA summed over an axis of size 1, which stays, dB over one that it lacks",
        ),
        case("matmul-ones", (1, 3, 1, 5), (2, 1, 5, 1), (2, 3, 1, 1), "axes of size 1 everywhere, on both sides"),
        case("tiny-matmul", (1, 2), (2, 2, 1), (2, 1, 1), "symbols, A broadcast"),
    ]  # fmt: skip


def embedding() -> list[Problem]:
    def case(
        name: str, n_vocab: int, tokens: list[object], why: str, *, d: int = 3, n_pos: int | None = None,
        position_ids: list[object] | None = None,
    ) -> Problem:  # fmt: skip
        ids = torch.tensor(tokens)
        options = {"tokens": ids}
        if position_ids is not None:
            options["position_ids"] = torch.tensor(position_ids)
        shapes: dict[str, tuple[int, ...]] = {"table": (n_vocab, d)}
        if n_pos is not None:
            shapes["positions"] = (n_pos, d)
        return Problem(name, "embedding", shapes, (*ids.shape, d), options, why=why)

    return [
        case("embedding", 5, [1, 4, 4, 0, 1, 4, 1], "a repeated token overwritten instead of added, an unused row not 0"),
        case("embedding-positions", 5, [1, 4, 4, 0, 1, 4, 2], "positions counted from 1; those past the end not 0", n_pos=11),
        case(
            "embedding-batch", 11, [[[1, 4, 4, 0, 9], [4, 9, 7, 7, 2]], [[3, 3, 3, 1, 10], [8, 1, 1, 6, 4]]],
            "one position for the whole batch: dpositions averaged over it, not summed", n_pos=7,
        ),
        case(
            "embedding-padded", 13, [[4, 4, 4, 0, 1, 3, 1], [2, 1, 3, 3, 0, 1, 4]],
            "padding on the left, where all positions are 0, and a sequence that goes on from 3",
            n_pos=11, position_ids=[[0, 0, 0, 0, 1, 2, 3], [3, 4, 5, 6, 7, 8, 9]],
        ),
        case("embedding-shared-ids", 5, [[4, 0, 1], [2, 4, 1]], "the same positions, not in order, for all sequences",
             n_pos=7, position_ids=[6, 2, 2]),
        case("tiny-embedding", 3, [2, 0, 2], "symbols, a repeated token and an unused one", d=2, n_pos=4),
    ]  # fmt: skip
