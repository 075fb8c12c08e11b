"""Capacity arithmetic: pure functions of a model's size, a device and a load.

Speeds are limits, not predictions: a step takes at least as long as reading its weights and its
KV at the full memory bandwidth, and at least as long as its operations at the full throughput
(the roofline model, Williams et al. 2009). Communication between devices counts as free.
"""

import math
from dataclasses import dataclass

from loire.base.errors import ConfigError
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.feed_forward import (
    ExpertsDescription,
    FeedForwardDescription,
    GatedMLPDescription,
    ParallelDescription,
)
from loire.checkpoint.latent_attention import LatentAttentionDescription
from loire.checkpoint.mixers import MixerDescription
from loire.planning.devices import Device
from loire.planning.model_size import ModelSize, RankSize


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLengths:
    """Lengths of a request in tokens. prompt + output is at most window."""

    window: int
    prompt: int
    output: int

    @property
    def peak_tokens(self) -> int:
        """KV that a request holds when it ends."""
        return self.prompt + self.output

    @property
    def mean_context(self) -> float:
        """Context length of a decode step, on average over the output."""
        return self.prompt + self.output / 2


def settle_lengths(window: int, prompt: int | None, output: int | None) -> RequestLengths:
    """Fill in what was not said: without lengths, requests fill their window with the prompt.

    Raises ConfigError if the lengths do not fit.
    """
    for name, value in (("window", window), ("prompt", prompt)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1 token, but is {value}")
    output = 0 if output is None else output
    prompt = window - output if prompt is None else prompt
    if prompt < 1 or prompt + output > window:
        raise ConfigError(
            f"a prompt of {max(prompt, 1)} and an output of {output} tokens need a window of "
            f"{max(prompt, 1) + output}, but it is {window}; raise --window or lower them"
        )
    return RequestLengths(window=window, prompt=prompt, output=output)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityPlan:
    """What fits, and the limits of speed. All devices of the group together; None is unknown."""

    model: ModelSize
    device: Device
    load: RequestLengths
    tensor_parallel: int
    memory_bytes: int
    activation_bytes: int
    adapter_bytes: int
    kv_memory_bytes: int
    """What weights, adapters and activations leave; below 0 if they do not fit."""
    kv_bytes_per_token: int
    """As held: KV heads that several devices must repeat are counted as often."""
    rank: RankSize | None = None
    """Of one of the processes, where Loire divides the model among several."""

    @property
    def weight_bytes(self) -> int:
        """Weights as held; what each of several processes has whole counts as often."""
        if self.rank is None:
            return self.model.weight_bytes
        return self.rank.weight_bytes * self.tensor_parallel

    @property
    def fits(self) -> bool:
        """Whether there is room for at least one request of the load."""
        return self.max_batch >= 1

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens of KV that fit, in requests that fill their windows."""
        window = self.load.window
        return max(self.kv_memory_bytes, 0) * window // self.kv_held_bytes(window)

    @property
    def concurrent_requests(self) -> float:
        """Requests that fill their windows which fit at once."""
        return self.kv_capacity_tokens / self.load.window

    @property
    def max_batch(self) -> int:
        """Whole requests of the load that fit at once, each at its full length."""
        return max(self.kv_memory_bytes, 0) // self.kv_held_bytes(self.load.peak_tokens)

    def kv_held_bytes(self, num_tokens: int) -> int:
        """KV memory that a request of that length holds at most."""
        repeats = self.kv_bytes_per_token // self.model.kv_bytes_per_token
        return self.model.kv_held_bytes(num_tokens) * repeats

    def decode_step_s(self, batch: int) -> float | None:
        """Least time of a decode step of that many sequences at the load's mean context."""
        memory, compute = self.decode_memory_s(batch), self.decode_compute_s(batch)
        if memory is None or compute is None:
            return memory
        return max(memory, compute)

    def decode_memory_s(self, batch: int) -> float | None:
        """Time to read the weights once and each sequence's KV."""
        bandwidth = self._bandwidth
        if bandwidth is None:
            return None
        read = self.model.step_bytes(batch) + batch * self._kv_read_bytes
        return read / bandwidth

    def decode_compute_s(self, batch: int) -> float | None:
        """Time of the operations of a decode step."""
        flops = self._flops
        if flops is None:
            return None
        return batch * self.model.decode_flops(self.load.mean_context) / flops

    @property
    def decode_tokens_per_s_limit(self) -> float | None:
        """Of one request: bandwidth over the weights that a step reads, its KV left aside."""
        bandwidth = self._bandwidth
        return None if bandwidth is None else bandwidth / self.model.step_weight_bytes

    def batch_tokens_per_s_limit(self, batch: int) -> float | None:
        """Of a batch, its reads of KV and its operations included."""
        step = self.decode_step_s(batch)
        return None if step is None or batch < 1 else batch / step

    @property
    def break_even_batch(self) -> float | None:
        """Batch size at which computing takes as long as reading the weights, all experts among
        them; KV left aside."""
        bandwidth, flops = self._bandwidth, self._flops
        if bandwidth is None or flops is None:
            return None
        read_s = self.model.step_bytes(math.inf) / bandwidth
        return read_s / (2.0 * self.model.step_parameters / flops)

    @property
    def break_even_batch_with_kv(self) -> float | None:
        """The same with attention and the reads of KV; infinite if those alone outlast computing.

        Each sequence then reads its KV for longer than it computes, so that no batch, however
        large, is bound by computing.
        """
        bandwidth, flops = self._bandwidth, self._flops
        if bandwidth is None or flops is None:
            return None
        compute_s = self.model.decode_flops(self.load.mean_context) / flops
        kv_s = self._kv_read_bytes / bandwidth
        if compute_s <= kv_s:
            return math.inf
        return self.model.step_bytes(math.inf) / bandwidth / (compute_s - kv_s)

    @property
    def prefill_s_limit(self) -> float | None:
        """Least time of one prompt: its operations, or reading the weights if that is longer."""
        bandwidth, flops = self._bandwidth, self._flops
        if flops is None:
            return None
        compute_s = self.model.prefill_flops(self.load.prompt) / flops
        if bandwidth is None:
            return compute_s
        return max(compute_s, self.model.step_bytes(self.load.prompt) / bandwidth)

    @property
    def _kv_read_bytes(self) -> float:
        repeated = self.kv_bytes_per_token / self.model.kv_bytes_per_token
        return self.model.kv_read_bytes(self.load.mean_context) * repeated

    @property
    def _bandwidth(self) -> float | None:
        one = self.device.bandwidth_bytes_per_s
        return None if one is None else one * _num_devices(self.device, self.tensor_parallel)

    @property
    def _flops(self) -> float | None:
        one = self.device.flops
        return None if one is None else one * _num_devices(self.device, self.tensor_parallel)


def _num_devices(device: Device, tensor_parallel: int) -> int:
    """A machine's processes share what it has; accelerators are as many."""
    return 1 if device.is_cpu else tensor_parallel


def plan_capacity(
    model: ModelSize,
    device: Device,
    load: RequestLengths,
    *,
    tensor_parallel: int = 1,
    activation_bytes: int = 0,
    adapter_bytes: int = 0,
    rank: RankSize | None = None,
) -> CapacityPlan:
    """The plan for tensor_parallel devices of a kind, or as many processes on a machine;
    activation_bytes are of each. rank: what each holds, where that is known.

    Raises ConfigError if the model cannot be split over that many devices.
    """
    repeats = _kv_repeats(model.description, tensor_parallel)
    memory = device.memory_bytes * _num_devices(device, tensor_parallel)
    weights = model.weight_bytes if rank is None else rank.weight_bytes * tensor_parallel
    activations = activation_bytes * tensor_parallel
    return CapacityPlan(
        model=model,
        device=device,
        load=load,
        tensor_parallel=tensor_parallel,
        memory_bytes=memory,
        activation_bytes=activations,
        adapter_bytes=adapter_bytes,
        kv_memory_bytes=memory - weights - adapter_bytes - activations,
        kv_bytes_per_token=model.kv_bytes_per_token * repeats,
        rank=rank,
    )


def activation_reserve(
    description: ModelDescription,
    *,
    element_bytes: int,
    num_tokens: int,
    num_rows: int,
    tensor_parallel: int = 1,
) -> int:
    """Bytes per device of the largest tensors that live at once in a step.

    num_tokens * element_bytes * (2 E + widest / tp + E), which is residual and input, then what
    lives within the widest part of a layer (queries, keys, values and attention's output; gate, up
    and their product; of experts also what goes into and comes out of each that a token chose), and
    that part's own output; and num_rows * V * (element_bytes + 4) for the
    logits and their float32 copy. E and V are hidden and vocabulary size, num_tokens the token
    budget of a step, num_rows its most sequences.
    """
    hidden = description.hidden_size
    parts = [part for layer in description.layers for part in layer.parts]
    widest = math.ceil(max(_live_elements(part, hidden) for part in parts) / tensor_parallel)
    layer = num_tokens * element_bytes * (3 * hidden + widest)
    logits = min(num_rows, num_tokens) * description.vocab_size * (element_bytes + 4)
    return layer + logits


def results_reserve(description: ModelDescription, element_bytes: int, num_tokens: int) -> int:
    """Bytes that the results of a step's operations need, where each operation does as much as the
    native kernels': num_tokens * (4 E + element_bytes * (2 E + widest)), which is the residual in
    float32, input and output of a part, and what lives within the parts of a layer (of gate and up
    their product alone, of experts nothing). The parts' are added, although they live one after
    another: what one leaves lies between what is still needed.
    """
    hidden = description.hidden_size
    widest = max(sum(map(_result_elements, layer.parts)) for layer in description.layers)
    return num_tokens * (4 * hidden + element_bytes * (2 * hidden + widest))


def _result_elements(part: MixerDescription | FeedForwardDescription) -> int:
    """Numbers per token that operations give within a part."""
    if isinstance(part, GatedMLPDescription):
        return part.intermediate_size
    if isinstance(part, ParallelDescription):
        return max(_result_elements(branch.part) for branch in part.branches)
    return 0 if isinstance(part, ExpertsDescription) else part.activation_elements


def _live_elements(part: MixerDescription | FeedForwardDescription, hidden: int) -> int:
    """Numbers per token that live at once within a part."""
    if isinstance(part, ExpertsDescription):
        return part.activation_elements + 2 * part.routing.top_k * hidden
    return part.activation_elements


def _kv_repeats(description: ModelDescription | None, tensor_parallel: int) -> int:
    """How many devices hold the same KV head: 1 unless there are more devices than heads."""
    if tensor_parallel < 1:
        raise ConfigError(f"--tensor-parallel-size must be at least 1, but is {tensor_parallel}")
    if description is None:
        return 1
    shapes = {(mixer.num_heads, mixer.num_kv_heads) for mixer in description.attentions}
    mixers = (layer.mixer for layer in description.layers)
    shapes |= {(m.num_heads, 1) for m in mixers if isinstance(m, LatentAttentionDescription)}
    return max((_head_repeats(*shape, tensor_parallel) for shape in shapes), default=1)


def _head_repeats(heads: int, kv_heads: int, tensor_parallel: int) -> int:
    if heads % tensor_parallel or (kv_heads % tensor_parallel and tensor_parallel % kv_heads):
        possible = [
            size
            for size in range(1, heads + 1)
            if heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)
        ]
        raise ConfigError(
            f"{heads} query heads and {kv_heads} KV heads cannot be split over "
            f"{tensor_parallel} devices; --tensor-parallel-size can be "
            f"{', '.join(map(str, possible))}"
        )
    return max(1, tensor_parallel // kv_heads)
