"""Products of heads, each with a weight of its own: source/runtime/grouped.h."""

from collections.abc import Sequence
from ctypes import addressof, c_void_p

from torch import Tensor

from loire.kernels.interface import FlatBatch, Linear
from loire.kernels.native.calls import HeadsCall
from loire.kernels.native.context import NativeContext, adapter_numbers
from loire.kernels.native.experts import handle_of
from loire.kernels.native.library import array_of


class NativeHeads:
    """See kernels.interface.Heads. The products' pieces of all heads are handed out together."""

    def __init__(self, context: NativeContext, products: Sequence[Linear]) -> None:
        self.weight_bytes = sum(product.weight_bytes for product in products)
        """Bytes of all of them."""
        self._products = tuple(products)  # they hold the weights
        self._weights = array_of(c_void_p, [handle_of(product) for product in products])
        self._context = context
        self._run = context.library.heads

    def __call__(
        self, x: Tensor, out: Tensor | None = None, batch: FlatBatch | None = None
    ) -> Tensor:
        """Of x [T, H, in]; [T, H, out], in out if it is given."""
        tokens, heads, size = x.shape
        first = self._products[0]
        if out is None:
            out = self._context.results.new((tokens, heads, first.out_features), x.dtype)
        fits = (heads, size, x.dtype) == (len(self._products), first.in_features, first.dtype)
        if not fits or out.shape != (tokens, heads, first.out_features) or out.dtype != x.dtype:
            raise ValueError(
                f"x is {tuple(x.shape)} {x.dtype} and out {tuple(out.shape)} {out.dtype}, but "
                f"there are {len(self._products)} heads from {first.in_features} to "
                f"{first.out_features} {first.dtype}"
            )
        if x.stride(2) != 1 or out.stride(2) != 1:
            raise ValueError(f"elements of a head lie apart: {x.stride()}, {out.stride()}")
        call = HeadsCall(
            weights=addressof(self._weights),
            adapters=adapter_numbers(batch, tokens),
            x=x.data_ptr(),
            out=out.data_ptr(),
            tokens=tokens,
            heads=heads,
            x_stride=x.stride(0),
            x_head_stride=x.stride(1),
            out_stride=out.stride(0),
            out_head_stride=out.stride(1),
        )
        self._context.run(self._run, call)
        return out
