"""Members that attend to the state and to the actions so far."""

from collections.abc import Sequence

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_rgrl.ensemble.base import Ensemble, Layer, WindowPrediction

FEED_FORWARD_FACTOR = 2


class AttentionEnsemble(Ensemble):
    """
    Causal transformers over the tokens ``[s, a_1 .. a_t]`` (pre-norm blocks, Vaswani et al. 2017, Xiong et al. 2020).
    The token of an action sees the state and the actions up to it, and is read for the reward, the next state, the end
    and the return-to-go after that action.

    :param state_dim: Length d of a state.
    :param action_dim: Length of an encoded action.
    :param sequence_length: Length t of a window.
    :param n_members: Size m of the ensemble.
    :param net_arch: Width of the tokens, once for each block; all the same.
    :param activation_fn: Activation in the feed-forward part of the blocks, which is twice as wide as the tokens.
    :param dropout: Probability that a unit of a feed-forward part is missing from a thinned member.
    :param weight_initializer: How weights begin, one of ``WEIGHT_INITIALIZERS``.
    :param n_milestones: How many times in a window state, end and return are predicted; None: after each step.
    :param n_heads: Number of attention heads; divides the width.
    :param reward_shape: Shape of a reward, () for numbers and (c,) for vectors of c components.
    :param uneven_actions: See :class:`Ensemble`.
    :raises ValueError: If ``net_arch`` is empty or uneven, or ``n_heads`` does not divide its width.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        sequence_length: int,
        n_members: int,
        net_arch: Sequence[int],
        activation_fn: type[nn.Module],
        dropout: float,
        weight_initializer: str = "torch",
        n_milestones: int | None = None,
        n_heads: int = 4,
        reward_shape: tuple[int, ...] = (),
        uneven_actions: bool = False,
    ) -> None:
        super().__init__(
            state_dim,
            action_dim,
            sequence_length,
            n_members,
            sequence_length if n_milestones is None else n_milestones,
            dropout,
            weight_initializer,
            reward_shape,
            uneven_actions,
        )
        if len(set(net_arch)) != 1 or n_heads < 1 or net_arch[0] % n_heads != 0:
            raise ValueError(
                "net_arch of attention members is the width of the tokens, once for each block, and n_heads divides it, "
                f"e.g. [64, 64] with 4 heads: got {list(net_arch)} with {n_heads}"
            )
        self.n_heads = n_heads
        width = net_arch[0]
        # One step each: embedding of the state and of actions; then for each block attention in and out, feed-forward
        # in and out; then the head.
        self.add_layer(state_dim, width)
        self.add_layer(action_dim, width)
        for k in range(len(net_arch)):
            self.add_layer(width, 3 * width)
            self.add_layer(width, width)
            self.add_layer(width, FEED_FORWARD_FACTOR * width)
            self.add_layer(FEED_FORWARD_FACTOR * width, width, fed_by=k)
        self.add_layer(width, state_dim + 1 + 3 * self.n_rewards)
        self.positions = nn.Parameter(0.02 * th.randn(n_members, 1, 1 + sequence_length, width))
        self.activation = activation_fn()
        self.make_uneven_weight(1, width, fan=action_dim)

    def members(self, chosen: th.Tensor | None = None, thinning: np.random.Generator | None = None) -> list[Layer]:
        """See :meth:`Ensemble.members`; the last of the layers holds the embedding of the positions as its weight."""
        positions = self.positions if chosen is None else self.positions[chosen]
        return [*super().members(chosen, thinning), Layer(positions, positions[..., :0])]

    def forward(self, state: th.Tensor, actions: th.Tensor, members: list[Layer]) -> WindowPrediction:
        """See :meth:`Ensemble.forward`."""
        embed_state, embed_action, *blocks, head, (positions, _) = members
        n_groups, batch, n_steps, _ = actions.shape
        flat = actions.reshape(n_groups, batch * n_steps, -1)
        of_actions = self.with_unevenness(embed_action(flat[..., : self.action_dim]), flat[..., self.action_dim :])
        tokens = th.cat([embed_state(state).unsqueeze(2), of_actions.reshape(n_groups, batch, n_steps, -1)], dim=2) + positions
        for k in range(0, len(blocks), 4):
            tokens = self._block(tokens, blocks[k : k + 4])
        outputs = head(_normalised(tokens[:, :, 1:]).reshape(n_groups, batch * n_steps, -1))
        return self.of_steps(outputs.reshape(n_groups, batch, n_steps, -1))

    def _block(self, tokens: th.Tensor, layers: list[Layer]) -> th.Tensor:
        """
        :param tokens: Shape (g, b, 1 + t, width).
        :param layers: Attention in and out, feed-forward in and out.
        :return: The tokens after the block.
        """
        attend, merge, widen, narrow = layers
        n_groups, batch, n_tokens, width = tokens.shape
        rows = (n_groups, batch * n_tokens, -1)
        parts = attend(_normalised(tokens).reshape(rows)).reshape(n_groups * batch, n_tokens, 3, self.n_heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        tokens = tokens + merge(seen.transpose(1, 2).reshape(rows)).reshape(tokens.shape)
        hidden = self.activation(widen(_normalised(tokens).reshape(rows)))
        return tokens + narrow(hidden).reshape(n_groups, batch, n_tokens, width)


def _normalised(tokens: th.Tensor) -> th.Tensor:
    # Without weights of its own: the linear layer that follows would absorb them.
    return F.layer_norm(tokens, tokens.shape[-1:])
