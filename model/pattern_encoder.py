"""GRA-M PVDR: turn a window into the key by which similar histories are found.

One encoder serves index and query: ``encoder(windows)``. Distances are squared Euclidean
distances of keys, w * |s_q - s_m|^2 + (1 - w) * |v_q - v_m|^2 for the dual key.

Shape legend (this file):
    R  rows, or any leading axes     S  patch_len of the shape encoder
    K  top_k                         P  patches, ceil(L / S)
    L  seq_len                       Z  d_repr
"""

import hashlib
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import attend
from model.config import GramConfig
from model.instance_norm import normalize

NUM_HEADS = 4
NUM_BLOCKS = 2
NUM_STATISTICS = 7


class PatternCode(NamedTuple):
    """A window as the retriever sees it."""

    shape: Tensor
    """What the window looks like, whatever its level and scale. Shape (R, Z), float32."""

    value: Tensor
    """Where it lies and how far it spreads; width 0 for anchored keys. (R, Z), float32."""

    key: Tensor
    """The codes weighted, so that squared distances of keys are the distance. (R, 2Z)."""


class DualEncoder(nn.Module):
    """Shape and value codes of a window, and the learned weight between them.

    Both codes have length about 1, so distances stay in [0, 4] for any ``d_repr`` and one
    temperature serves them all. There is no dropout: index and query must agree.

    Source: SPEC 1.2, pattern-value dual retriever.
    """

    def __init__(self, seq_len: int, d_repr: int, *, patch_len: int = 16) -> None:
        super().__init__()
        self.seq_len = seq_len
        self.key_width = 2 * d_repr
        self.shape_encoder = ShapeEncoder(seq_len, d_repr, patch_len)
        self.value_encoder = ValueEncoder(d_repr)
        self.dual_key = DualKey()

    def forward(self, windows: Tensor) -> PatternCode:
        """Encode windows of index or query.

        Args:
            windows: Standardised, not instance-normalised, oldest step first. Shape (..., L).

        Returns:
            The codes, at least float32, with the leading axes of ``windows``.

        Raises:
            ValueError: The last axis is not ``seq_len`` long.
        """
        rows_RL, normalised_RL, scale_R1 = _normalised_rows(windows, self.seq_len)
        shape_RZ = self.shape_encoder(normalised_RL)
        value_RZ = self.value_encoder(rows_RL, scale_R1)
        lead = windows.shape[:-1]
        shape, value = shape_RZ.reshape(*lead, -1), value_RZ.reshape(*lead, -1)
        return PatternCode(shape=shape, value=value, key=self.join(shape, value))

    def join(self, shape: Tensor, value: Tensor) -> Tensor:
        """Weigh both codes into a key with today's weight. (R, Z), (R, Z) -> (R, 2Z)."""
        key: Tensor = self.dual_key(shape, value)
        return key


class AnchoredEncoder(nn.Module):
    """Key without parameters: the window minus its last value over its scale, pooled to Z cells.

    Divided by sqrt(Z), which makes the squared distance a mean over cells, of order 1.

    Source: SPEC 1.2; EVIDENCE 4: it retrieves better than correlation does.
    """

    def __init__(self, seq_len: int, d_repr: int) -> None:
        super().__init__()
        self.seq_len = seq_len
        self.key_width = d_repr

    def forward(self, windows: Tensor) -> PatternCode:
        """Encode. See :meth:`DualEncoder.forward`; the value code has width 0."""
        _check_windows(windows, self.seq_len)
        rows_RL = windows.reshape(-1, self.seq_len)
        anchored_RL = normalize(rows_RL.T[None], "last")[0][0].T
        pooled_RZ = F.adaptive_avg_pool1d(anchored_RL[:, None], self.key_width)[:, 0]
        key = (pooled_RZ / self.key_width**0.5).reshape(*windows.shape[:-1], self.key_width)
        return PatternCode(shape=key, value=key[..., :0], key=key)

    def join(self, shape: Tensor, value: Tensor) -> Tensor:
        """Return the shape code, which is the key."""
        del value
        return shape


class ShapeEncoder(nn.Module):
    """A small Transformer over the patches of the normalised window; its CLS output.

    Patches do not overlap: half as many as the forecaster's, as each step encodes R * K windows.
    """

    def __init__(self, seq_len: int, d_repr: int, patch_len: int) -> None:
        super().__init__()
        self.patch_len = patch_len
        self.padding = -seq_len % patch_len
        num_patches = (seq_len + self.padding) // patch_len
        self.embed = nn.Linear(patch_len, d_repr)
        self.cls = nn.Parameter(torch.randn(d_repr) * 0.02)
        self.positions = nn.Parameter(torch.randn(num_patches, d_repr) * 0.02)
        self.blocks = nn.ModuleList(EncoderBlock(d_repr) for _ in range(NUM_BLOCKS))

    def forward(self, normalised: Tensor) -> Tensor:
        """Encode. (R, L) float32 -> (R, Z) of length about 1, at least float32."""
        rows_RL = normalised.to(self.embed.weight.dtype)
        oldest_R1 = rows_RL[:, :1].expand(-1, self.padding)
        rows_RL = torch.cat([oldest_R1, rows_RL], dim=1)
        patches_RPZ = self.embed(rows_RL.unfold(1, self.patch_len, self.patch_len))
        cls_R1Z = self.cls.expand(len(rows_RL), 1, -1)
        tokens_RTZ = torch.cat([cls_R1Z, patches_RPZ + self.positions], dim=1)
        for block in self.blocks:
            tokens_RTZ = block(tokens_RTZ)
        return _unit_length(tokens_RTZ[:, 0])


class EncoderBlock(nn.Module):
    """Pre-norm attention and feed-forward.

    Written out: torch's own layer computes differently in eval mode, and index and query agree.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        # Without a bias: softmax ignores what all keys share, so it would never get a gradient.
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm_feed = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform. (R, T, Z) -> (R, T, Z)."""
        normed_RTZ = self.norm_attention(tokens)
        query, key, value = (
            layer(normed_RTZ).unflatten(-1, (NUM_HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = attend(query, key, value).transpose(1, 2).flatten(2)
        tokens_RTZ: Tensor = tokens + self.out(mixed)
        transformed_RTZ: Tensor = tokens_RTZ + self.feed(self.norm_feed(tokens_RTZ))
        return transformed_RTZ


class ValueEncoder(nn.Module):
    """An MLP on the statistics of the window as it is, level and scale included."""

    def __init__(self, d_repr: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(NUM_STATISTICS, d_repr)
        self.out = nn.Linear(d_repr, d_repr)

    def forward(self, rows: Tensor, scale: Tensor) -> Tensor:
        """Encode. (R, L), (R, 1) float32 -> (R, Z) of length about 1, at least float32."""
        statistics = window_statistics(rows, scale).to(self.hidden.weight.dtype)
        return _unit_length(self.out(F.gelu(self.hidden(statistics))))


class DualKey(nn.Module):
    """Scale both codes by the roots of w and 1 - w, w = sigmoid(``shape_weight``)."""

    def __init__(self) -> None:
        super().__init__()
        # One element, not a scalar: DeepSpeed cannot broadcast parameters without an axis.
        self.shape_weight = nn.Parameter(torch.zeros(1))

    def forward(self, shape: Tensor, value: Tensor) -> Tensor:
        """Join. (R, Z), (R, Z) -> (R, 2Z)."""
        weight = _at_least_float32(self.shape_weight)
        # exp(log / 2), not sqrt: the derivative stays finite where the sigmoid underflows.
        root_shape = (F.logsigmoid(weight) / 2).exp()
        root_value = (F.logsigmoid(-weight) / 2).exp()
        return torch.cat([root_shape * shape, root_value * value], dim=-1)


def window_statistics(rows: Tensor, scale: Tensor) -> Tensor:
    """Mean, log scale, minimum, median, maximum, last value and change of each window.

    Args:
        rows: Standardised windows. Shape (R, L), float32.
        scale: sqrt(var + 1e-5) of each. Shape (R, 1), float32.

    Returns:
        Finite statistics. Shape (R, 7), float32.
    """
    # Tensor.median has no deterministic version on CUDA; a sort has.
    ordered = rows.sort(dim=1).values
    columns = [
        rows.mean(dim=1),
        scale[:, 0].log(),
        ordered[:, 0],
        ordered[:, (rows.shape[1] - 1) // 2],
        ordered[:, -1],
        rows[:, -1],
        rows[:, -1] - rows[:, 0],
    ]
    return torch.stack(columns, dim=1)


def build_encoder(config: GramConfig, seq_len: int) -> DualEncoder | AnchoredEncoder:
    """Build the encoder that ``gram.retrieval_key`` names.

    Args:
        config: The settings of the memory.
        seq_len: Time steps of every window it will see.

    Returns:
        A module that maps windows (..., L) to :class:`PatternCode`.
    """
    if config.retrieval_key == "anchored":
        return AnchoredEncoder(seq_len, config.d_repr)
    return DualEncoder(seq_len, config.d_repr)


def fingerprint(encoder: DualEncoder | AnchoredEncoder) -> str:
    """Name the state of an encoder: equal names, equal keys.

    Reads the state dict, so under ZeRO-3 the caller gathers the parameters first.

    Args:
        encoder: Encoder of any device and type.

    Returns:
        Hexadecimal SHA-256 of kind, sizes, parameter names, types, shapes and bytes.
    """
    digest = hashlib.sha256(
        f"{type(encoder).__name__} {encoder.seq_len} {encoder.key_width}".encode()
    )
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _normalised_rows(windows: Tensor, seq_len: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows as they are (R, L), rows normalised (R, L), scale (R, 1); all float32."""
    _check_windows(windows, seq_len)
    rows_RL = windows.reshape(-1, seq_len).float()
    normalised, _, scale = normalize(rows_RL.T[None], "mean")
    return rows_RL, normalised[0].T, scale[0].T


def _check_windows(windows: Tensor, seq_len: int) -> None:
    if windows.ndim < 2 or windows.shape[-1] != seq_len:
        raise ValueError(
            f"windows must be (..., L) with seq_len={seq_len}, got shape "
            f"{tuple(windows.shape)}: the encoder was built for that length."
        )


def _unit_length(codes: Tensor) -> Tensor:
    """Centre and scale to length about 1; finite, with finite gradients, for a zero code."""
    codes = _at_least_float32(codes)
    unit: Tensor = F.layer_norm(codes, codes.shape[-1:]) / codes.shape[-1] ** 0.5
    return unit


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
