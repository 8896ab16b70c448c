"""``torch.nn.MultiheadAttention`` with :func:`gradderiv.functional.attention` inside.

    Y = concat_i( softmax(τ Q_i K_iᵀ + bias) V_i ) W_O + b_O         Vaswani et al. 2017, §3.2.2

query (n_q, batch, d_model)   key (n_k, batch, kdim)   value (n_k, batch, vdim)   output (n_q, batch, d_model); with ``batch_first`` the batch is in front.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from gradderiv.errors import DtypeError, message
from gradderiv.functional import attention
from gradderiv.rules._inputs import kind, require, require_floating, shapes


class Hiding(NamedTuple):
    """Where queries may attend (True = may), and what is added to the scores, −∞ to hide; None where nothing is said."""

    mask: Tensor | None
    bias: Tensor | None


class MultiheadAttention(nn.MultiheadAttention):
    """Y = concat_i( softmax(τ Q_i K_iᵀ + bias) V_i ) W_O + b_O,   τ = 1/√d_k

    Vaswani et al. 2017, §3.2.2; the gradients are Dao et al. 2022, app. B.2.

    Takes the place of ``torch.nn.MultiheadAttention``: the constructor, the parameters and their initial values, the state dict, the call and
    what it returns are the same. It is a subclass for that reason: ``nn.TransformerEncoderLayer`` reads the parameters by their names, and
    isinstance goes on holding. Its ``forward`` is ours: it can be differentiated twice, in forward mode and under ``torch.func``, and without
    ``need_weights`` its memory grows with n and not with n².

    What differs from PyTorch's:

    - a row that may attend to nothing is 0 before the output projection, and so are its gradients and weights, where PyTorch has NaN;
    - ``is_causal`` without ``attn_mask`` is an error always; PyTorch's fast path ignores it without a word;
    - a boolean mask beside a float one, and a float mask of another dtype than the input, are taken;
    - which weights a seed drops; ``torch.jit.script`` does not read it; the layout of the output in memory.

    A ``NestedTensor`` goes to PyTorch's own fast path, and so does a whole ``nn.TransformerEncoderLayer`` in eval mode where no parameter requires
    a gradient, without asking its ``self_attn``: ``torch.backends.mha.set_fastpath_enabled(False)`` where such a layer is to be differentiated in forward mode.

    Args:
        embed_dim, num_heads: d_model and h, which divides it.
        dropout: the probability of dropping a weight, in training only.
        bias: whether the projections have biases.
        add_bias_kv: one more key and value, learned.
        add_zero_attn: one more key and value, zero.
        kdim, vdim: the widths of key and value; d_model unless given.
        batch_first: whether (batch, n, d) rather than (n, batch, d) comes and goes.
        device, dtype: of the parameters.

    Raises:
        InputError: sizes that are not positive, heads that do not divide ``embed_dim``, a probability outside [0, 1].
    """

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, *args: Any, **kwargs: Any
    ) -> None:
        require(
            embed_dim > 0 and num_heads > 0 and embed_dim % num_heads == 0,
            "MultiheadAttention needs num_heads to divide embed_dim",
            f"embed_dim={embed_dim}, num_heads={num_heads}",
            "the width of one head passed for the number of heads, or the two exchanged",
            "embed_dim = num_heads times the width of one head",
        )
        require(
            0.0 <= dropout <= 1.0,
            "MultiheadAttention needs dropout as a probability",
            f"dropout={dropout}",
            "a percentage, or the probability of keeping",
            "a number from 0 to 1, the share that is dropped",
        )
        super().__init__(embed_dim, num_heads, dropout, *args, **kwargs)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Y and, where they are asked for, the weights P

        Args:
            query, key, value: (n, batch, d), (batch, n, d) with ``batch_first``, or (n, d) without a batch.
            key_padding_mask: (batch, n_k) or (n_k). Boolean: True = may **not** be attended to. Float: added to the scores, with a gradient.
            need_weights: return the weights, which takes their n_q·n_k numbers for each head.
            attn_mask: (n_q, n_k) or (batch·h, n_q, n_k), boolean or float in the same sense.
            average_attn_weights: their mean over the heads rather than all of them.
            is_causal: ``attn_mask`` is the causal mask, and need not be read: it is not, unless weights are asked for or keys are padded.

        Returns:
            Y like query; weights (batch, n_q, n_k) or (batch, h, n_q, n_k), after dropout, or None.

        Raises:
            InputError: shapes that do not fit, is_causal without attn_mask.
            DtypeError: integers, several dtypes or devices, a mask that is neither boolean nor floating.
        """
        if any(isinstance(x, Tensor) and x.is_nested for x in (query, key, value)):
            return super().forward(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)  # fmt: skip
        batched = self._require(query, key, value, key_padding_mask, attn_mask, is_causal)
        query, key, value = self._batch_in_front((query, key, value), batched)
        added = self.add_zero_attn or self.bias_k is not None  # which all may see
        hidden_by_cause = is_causal and key_padding_mask is None and not need_weights and not added
        Q, K, V = self._heads(query, key, value)
        hiding = self._hiding(None if hidden_by_cause else attn_mask, key_padding_mask, Q, K.shape[-2])
        O, weights = self._attend(Q, K, V, hiding, hidden_by_cause, need_weights)
        Y = linear(O.transpose(-3, -2).flatten(-2), self.out_proj.weight, self.out_proj.bias)
        if weights is not None and average_attn_weights:
            weights = weights.mean(-3)
        if not batched:
            return Y[0], None if weights is None else weights[0]
        return Y if self.batch_first else Y.transpose(0, 1), weights

    def _attend(
        self, Q: Tensor, K: Tensor, V: Tensor, hiding: Hiding, is_causal: bool, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """O (batch, h, n_q, d), and P (batch, h, n_q, n_k) where it is needed."""
        options: dict[str, Any] = {
            "attn_mask": hiding.mask, "bias": hiding.bias, "is_causal": is_causal,
            "dropout_p": self.dropout if self.training else 0.0,
        }  # fmt: skip
        found: Any = attention(Q, K, V, return_weights=need_weights, **options)
        return found if need_weights else (found, None)

    # ------------------------------------------------------------ keys and values

    def _batch_in_front(self, tensors: tuple[Tensor, ...], batched: bool) -> list[Tensor]:
        """(batch, n, d). The same tensor stays the same: then one product makes all three projections."""
        fronted = {
            id(x): x if batched and self.batch_first else x.transpose(0, 1) if batched else x[None]
            for x in tensors
        }
        return [fronted[id(x)] for x in tensors]

    def _heads(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Q (batch, h, n_q, d), K and V (batch, h, n_k, d), with the keys and values that are learned, or zero, at the end."""
        Q, K, V = self._project(query, key, value)
        batch, (b_K, b_V) = len(K), (self.bias_k, self.bias_v)
        if b_K is not None and b_V is not None:
            K, V = (torch.cat([x, b.to(x.dtype).expand(batch, 1, -1)], 1) for x, b in ((K, b_K), (V, b_V)))
        if self.add_zero_attn:
            K, V = (pad(x, (0, 0, 0, 1)) for x in (K, V))
        return [x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(-3, -2) for x in (Q, K, V)]

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """X W + b for each of the three."""
        W, b = self.in_proj_weight, self.in_proj_bias
        if W is not None and query is key is value:
            return linear(query, W, b).chunk(3, -1)
        rows = W.chunk(3) if W is not None else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if b is None else b.chunk(3)
        return tuple(linear(X, W, b) for X, W, b in zip((query, key, value), rows, biases, strict=True))

    # ------------------------------------------------------------ masks

    def _hiding(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, Q: Tensor, n_k: int
    ) -> Hiding:
        """Both masks as one, on scores (batch, h, n_q, n_k): boolean ones by logic, float ones by their sum. Added keys are seen by all."""
        masks = []
        if key_padding_mask is not None:
            masks.append(key_padding_mask.reshape(len(Q), 1, 1, key_padding_mask.shape[-1]))
        if attn_mask is not None:
            masks.append(attn_mask if attn_mask.dim() == 2 else attn_mask.unflatten(0, Q.shape[:2]))
        masks = [pad(m, (0, n_k - m.shape[-1])) for m in masks]
        seen = [~m for m in masks if m.dtype == torch.bool]
        added = [m.to(Q.dtype) for m in masks if m.dtype != torch.bool]
        return Hiding(
            reduce(torch.logical_and, seen) if seen else None, reduce(torch.add, added) if added else None
        )

    # ------------------------------------------------------------ what is given

    def _require(
        self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None, attn_mask: Tensor | None, is_causal: bool
    ) -> bool:  # fmt: skip
        """Whether there is a batch; everything else fits."""
        where = "MultiheadAttention"
        autocast = isinstance(query, Tensor) and torch.is_autocast_enabled(query.device.type)
        weight = {} if autocast else {"weight": self.out_proj.weight}
        require_floating(where, query=query, key=key, value=value, **weight)
        dims = {x.dim() for x in (query, key, value)}
        require(
            dims in ({2}, {3}),
            f"{where} needs query, key and value with a batch (3 axes) or without (2 axes)",
            shapes(query=query, key=key, value=value),
            "heads already split, or one of the three with a batch and another without",
            "(batch, n, d) with batch_first, (n, batch, d) without it, (n, d) for one sequence",
        )
        batched, widths = dims == {3}, (self.embed_dim, self.kdim, self.vdim)
        n, front = (-2, 0) if self.batch_first or not batched else (0, 1)
        require(
            tuple(x.shape[-1] for x in (query, key, value)) == widths
            and key.shape[:-1] == value.shape[:-1]
            and (not batched or query.shape[front] == key.shape[front]),
            f"{where} needs query, key and value {widths} wide, as many values as keys, and one batch size",
            f"{shapes(query=query, key=key, value=value)}, batch_first={self.batch_first}",
            "batch and sequence exchanged, or widths for which kdim and vdim are there",
            "batch_first=True for (batch, n, d); kdim=, vdim= for keys and values of other widths",
        )
        batch = query.shape[front] if batched else 1
        self._require_masks(batched, batch, query.shape[n], key.shape[n], padding, attn_mask)
        require(
            attn_mask is not None or not is_causal,
            f"{where} needs attn_mask where is_causal is given",
            "is_causal=True, attn_mask=None",
            "is_causal says which mask attn_mask is; it does not make one",
            "attn_mask=nn.Transformer.generate_square_subsequent_mask(n)",
        )
        return batched

    def _require_masks(
        self, batched: bool, batch: int, n_q: int, n_k: int, padding: Tensor | None, attn_mask: Tensor | None
    ) -> None:
        heads = (batch * self.num_heads, n_q, n_k)
        for name, mask, wanted in (
            ("key_padding_mask", padding, [(batch, n_k) if batched else (n_k,)]),
            ("attn_mask", attn_mask, [(n_q, n_k), heads]),
        ):
            if mask is not None and not (
                isinstance(mask, Tensor) and (mask.dtype == torch.bool or mask.is_floating_point())
            ):
                raise DtypeError(
                    message(
                        f"MultiheadAttention needs {name} boolean (True = hidden) or floating (added)",
                        kind(mask),
                        "an attention_mask of 0 and 1, whose 1 means seen",
                        f"{name} == 0",
                    )
                )
            require(
                mask is None or tuple(mask.shape) in wanted,
                f"MultiheadAttention needs {name} of shape {' or '.join(map(str, wanted))}",
                f"{name} {() if mask is None else tuple(mask.shape)}",
                "queries and keys exchanged, or a mask of each sequence without its heads",
                "mask.repeat_interleave(num_heads, 0) for one mask of each sequence",
            )
