"""GRA-M as the forecaster uses it: one module around encoder, gate and tokens.

Shape legend (this file):
    R  rows       P  patches     L  seq_len      D  d_model
    K  top_k      H  pred_len    E  width of the language model
"""

from torch import Tensor, nn

from model.batch import RetrievedWindows
from model.config import GramConfig, ModelConfig
from model.knowledge_gate import GatedKnowledge, KnowledgeGate
from model.neighbour_weights import weigh_neighbours
from model.pattern_encoder import build_encoder
from model.retrieval_tokens import RetrievalTokens


class Memory(nn.Module):
    """GRA-M: how close the neighbours are now, what the gate lets through, and two tokens."""

    def __init__(
        self,
        config: ModelConfig,
        gram: GramConfig,
        seq_len: int,
        pred_len: int,
        d_llm: int,
    ) -> None:
        super().__init__()
        self.temperature = gram.temperature
        self.encoder = build_encoder(gram, seq_len)
        self.gate = KnowledgeGate(
            config.d_model, pred_len, gate_init=gram.gate_init, dropout=config.dropout
        )
        self.tokens = RetrievalTokens(config.d_model, d_llm)

    def forward(
        self, patches: Tensor, rows: Tensor, retrieved: RetrievedWindows
    ) -> tuple[GatedKnowledge, Tensor, Tensor]:
        """Gate. (R, P, D), (R, L) -> knowledge, weights (R, K), retrieval tokens (R, 2, E)."""
        _, weights_RK = weigh_neighbours(self.encoder, rows, retrieved, self.temperature)
        knowledge = self.gate(patches, retrieved.futures, weights_RK, retrieved.valid)
        return knowledge, weights_RK, self.tokens(knowledge.context, knowledge.match)


def retrieved_forecast(
    rows: Tensor, scale: Tensor, retrieved: RetrievedWindows, weights: Tensor
) -> Tensor:
    """Forecast each row by the weighted mean of its neighbours' futures, from its last value on.

    Args:
        rows: Standardised windows. Shape (R, L).
        scale: sqrt(var + 1e-5) of each. Shape (R, 1).
        retrieved: Neighbours whose futures are relative to their own last value (anchored key).
        weights: Weights of the neighbours; a row with none repeats its last value. (R, K).

    Returns:
        On the scale of ``rows``. Shape (R, H), float32.
    """
    mean_RH = (weights[..., None] * retrieved.futures).sum(dim=1)
    return rows[:, -1:] + scale * mean_RH
