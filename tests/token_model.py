"""What the contract promises of tokens, in plain Python: one user's budget and reservations."""

from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.message import Message as ProtoMessage

from hub_client.v1 import chat_pb2 as pb
from hub_client.v1.identity_pb2 import UserConfig

_DEFAULT_TTL_SECONDS = 600

T = TypeVar("T", bound=ProtoMessage)


@dataclass
class Refused(Exception):  # noqa: N818 - it is no error, but an answer
    """The model refuses a call: the reason, its facts and the fields it names."""

    reason: str
    facts: dict[str, str]
    violations: tuple[tuple[str, str], ...] = ()

    def __init__(self, reason: str, *violations: tuple[str, str], **facts: str) -> None:
        """``facts`` are what the error's metadata bears beside the request id."""
        super().__init__(reason)
        self.reason, self.violations, self.facts = reason, violations, facts

    @classmethod
    def of(cls, name: str, what: str) -> "Refused":
        """Return the refusal of one field."""
        return cls("INVALID_FIELD", (name, what))


def copy(message: T) -> T:
    """Return a copy."""
    other = type(message)()
    other.CopyFrom(message)
    return other


@dataclass
class Ledger:
    """What a user has used, and what is set aside for him."""

    used: int = 0
    reservations: dict[str, pb.Reservation] = field(default_factory=dict)
    drawn: dict[str, int] = field(default_factory=dict)
    """What messages took, by the reservation they named."""

    @property
    def reserved(self) -> int:
        """How many tokens are set aside."""
        return sum(one.held_tokens for one in self.reservations.values())

    def left(self, config: UserConfig) -> int | None:
        """Return how many tokens are free; None = any number."""
        if not config.HasField("max_tokens"):
            return None
        return max(config.max_tokens - self.used - self.reserved, 0)

    def check(self, tokens: int, config: UserConfig) -> None:
        """Refuse more tokens than are free."""
        left = self.left(config)
        if left is not None and tokens > left:
            limit = str(config.max_tokens)
            raise Refused("TOKEN_BUDGET", limit=limit, subject="max_tokens", tokens_left=str(left))

    def check_reservation(self, reservation_id: str) -> None:
        """Refuse a reservation that is not there or was settled; "" = none is named."""
        if not reservation_id:
            return
        if reservation_id not in self.reservations:
            raise Refused("NOT_FOUND", resource="reservation")
        if self.reservations[reservation_id].HasField("settled_at"):
            raise Refused("RESERVATION_SETTLED")

    def draw(self, tokens: int, reservation_id: str, config: UserConfig) -> None:
        """Count the tokens of messages, taken from a reservation as far as it goes."""
        kept = self.reservations.get(reservation_id)
        drawn = min(tokens, kept.held_tokens) if kept else 0
        self.check(tokens - drawn, config)
        self.used += tokens
        if kept:
            kept.held_tokens -= drawn
            kept.used_tokens += tokens
            self.drawn[reservation_id] += tokens

    def reserve(
        self, request: pb.ReserveTokensRequest, made: pb.Reservation, config: UserConfig
    ) -> pb.Reservation:
        """Set tokens aside."""
        self.check(request.tokens, config)
        ttl = made.expires_at.ToDatetime() - made.created_at.ToDatetime()
        assert abs(ttl.total_seconds() - (request.ttl_seconds or _DEFAULT_TTL_SECONDS)) < 1
        kept = pb.Reservation(
            reservation_id=made.reservation_id,
            user_id=config.user_id,
            tokens=request.tokens,
            held_tokens=request.tokens,
            created_at=made.created_at,
            expires_at=made.expires_at,
        )
        self.reservations[kept.reservation_id], self.drawn[kept.reservation_id] = kept, 0
        return copy(kept)

    def settle(
        self, request: pb.SettleTokensRequest, made: pb.Reservation, config: UserConfig
    ) -> pb.Reservation:
        """Close a reservation."""
        kept, taken = self.reservations[request.reservation_id], self.drawn[request.reservation_id]
        used = request.used_tokens if request.HasField("used_tokens") else None
        if kept.HasField("settled_at"):
            if used not in (None, kept.used_tokens):
                raise Refused("RESERVATION_SETTLED")
            return copy(kept)
        if used is not None and used < taken:
            what = f"must be at least {taken}, which its messages took"
            raise Refused.of("used_tokens", what)
        more = taken if used is None else used
        self.check(max(more - taken - kept.held_tokens, 0), config)
        self.used += more - taken
        kept.held_tokens, kept.used_tokens = 0, more
        kept.settled_at.CopyFrom(made.settled_at)
        kept.settled_at.SetInParent()
        return copy(kept)
