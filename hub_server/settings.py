"""Every setting of the hub, typed, read from the environment (``HUB_*``)."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from hub_server.embedding import remote

_POSTGRES_URL = re.compile(r"postgres(ql)?(\+[a-z0-9]+)?://")
_ADDRESS = re.compile(r"(\[[^\]]+\]|[^:\[\]]*):(\d{1,5})")
_GREATEST_PORT = 65_535
_HEADER_TEXT = re.compile(r"[!-~]{1,4096}")
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# Of each worker, beside those for calls; see database.
_OTHER_CONNECTIONS = 5  # four that look across tenants, and the one that listens
_MOST_EMBEDDED_CONNECTIONS = 1000


class Settings(BaseSettings):
    """The settings of one hub; docs/settings.md lists them for operators.

    Raises pydantic's ``ValidationError`` when a value is malformed or two contradict each other.
    """

    model_config = SettingsConfigDict(
        env_prefix="HUB_", env_ignore_empty=True, frozen=True, extra="ignore"
    )

    data_dir: Path = Field(default=Path(".hub"), description="Where the hub keeps its own files.")
    listen: str = Field(default="127.0.0.1:50051", description="host:port; port 0 = any free one.")
    workers: int = Field(default=1, ge=1, le=64, description="Processes that share one address.")
    tls_cert: Path | None = Field(default=None, description="PEM certificate chain; needs tls_key.")
    tls_key: Path | None = Field(default=None, description="PEM private key; needs tls_cert.")
    allow_plaintext: bool = Field(
        default=False, description="Serve without TLS on an address that is not loopback."
    )
    reflection: bool | None = Field(
        default=None, description="gRPC reflection; default: loopback only."
    )

    database_url: SecretStr | None = Field(
        default=None,
        description="Postgres 15+ for the hub; unset = the hub runs its own Postgres 18.",
    )
    owner_url: SecretStr | None = Field(
        default=None, description="Postgres URL for `hub migrate`; default: database_url."
    )
    server_role: str = Field(
        default="hub_server",
        pattern=r"^[a-z_][a-z0-9_]{0,62}$",
        description="Role every query runs as.",
    )
    pooler: Literal["none", "transaction"] = Field(
        default="none", description="transaction: a transaction-mode pooler stands before Postgres."
    )
    pool_size: int = Field(
        default=10, ge=1, le=200, description="Postgres connections for calls, of each worker."
    )

    pepper: SecretStr | None = Field(
        default=None,
        description="Keys of password hashes as name:key, newest first, separated by commas.",
    )
    embedding: str = Field(
        default="minilm",
        description="Embedding model: minilm, wordllama, or openai:<model>@<url>.",
    )
    embedding_key: SecretStr | None = Field(
        default=None, description="What the embedding server knows the hub by; sent to it alone."
    )
    embedding_models: str = Field(
        default="minilm,wordllama",
        description="Models beside it that spaces may have, by commas; loaded when needed.",
    )
    embedding_models_key: SecretStr | None = Field(
        default=None, description="What the servers of embedding_models know the hub by."
    )
    index: Literal["hnswlib", "pgvector"] = Field(
        default="hnswlib", description="Where vectors are searched: in each process, or Postgres."
    )
    exact_max_mb: float = Field(
        default=16.0,
        ge=0,
        description="Vectors of one view are searched exactly up to this many MB.",
    )
    view_memory_mb: int = Field(
        default=512, ge=1, description="Memory for all search views, in MB."
    )

    near_duplicate: float = Field(
        default=0.95, gt=0, le=1, description="Cosine from which memories may say the same."
    )
    confidence_half_life: float = Field(
        default=90.0,
        gt=0,
        description="Days after which half of an inference's confidence is left.",
    )
    remember_rate: int = Field(
        default=0, ge=0, description="Memories of a user that are taken within an hour; 0 = any."
    )

    default_deadline: float = Field(
        default=30.0, gt=0, le=64, description="Seconds a call may take when it brings no deadline."
    )
    max_calls: int = Field(default=512, ge=1, description="Calls in progress; more are OVERLOADED.")
    max_streams: int = Field(
        default=4096, ge=1, description="Streams open at a time; more are OVERLOADED."
    )
    heartbeat: float = Field(
        default=15.0, gt=0, le=3600, description="Seconds after which a quiet stream says so."
    )
    stall: float = Field(
        default=30.0, gt=0, description="Seconds a reader of a stream may read nothing."
    )
    token_ttl: int = Field(default=900, ge=1, description="Seconds a user token is valid.")
    refresh_ttl: int = Field(
        default=30 * 86400, ge=1, description="Seconds a login can be refreshed for."
    )
    password_min_length: int = Field(
        default=8, ge=8, le=1000, description="Characters a new password has at least."
    )
    login_attempts: int = Field(
        default=10, ge=1, description="Logins of one account that are judged in a window."
    )
    login_window: int = Field(
        default=900, ge=1, description="Seconds of that window; a login that succeeds begins anew."
    )
    ingestion_lease: float = Field(
        default=60.0,
        gt=0,
        description="Seconds after which another worker takes over an ingestion or an erasure.",
    )
    upload_mb: int = Field(
        default=32, ge=1, le=512, description="Greatest size of an uploaded file, in MB."
    )
    parse_mb: int = Field(
        default=1024, ge=128, description="Memory for reading one uploaded file, in MB."
    )
    parse_seconds: int = Field(
        default=30, ge=1, description="Processor seconds for it; four times as many by the clock."
    )
    drain: float = Field(
        default=10.0, ge=0, description="Seconds that running calls get at shutdown."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @field_validator("database_url", "owner_url")
    @classmethod
    def _is_postgres(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not _POSTGRES_URL.match(url.get_secret_value()):
            message = "must be a URL like postgresql://user:password@host/database"
            raise ValueError(message)
        return url

    @field_validator("embedding")
    @classmethod
    def _is_embedding(cls, embedding: str) -> str:
        remote(embedding)
        return embedding

    @field_validator("embedding_models")
    @classmethod
    def _are_embeddings(cls, embeddings: str) -> str:
        for name in embeddings.split(","):
            remote(name.strip())
        return embeddings

    @field_validator("embedding_key", "embedding_models_key")
    @classmethod
    def _is_header(cls, key: SecretStr | None) -> SecretStr | None:
        # Here, where it is not repeated: who sends a header with a line end in it tells its text.
        if key is not None and not _HEADER_TEXT.fullmatch(key.get_secret_value()):
            message = "must be printable ASCII without spaces"
            raise ValueError(message)
        return key

    @field_validator("listen")
    @classmethod
    def _is_address(cls, listen: str) -> str:
        match = _ADDRESS.fullmatch(listen)
        if match is None or int(match[2]) > _GREATEST_PORT:
            message = f"must be host:port, port at most {_GREATEST_PORT}"
            raise ValueError(message)
        return listen

    @classmethod
    def unknown(cls, environment: Iterable[str]) -> list[str]:
        """Return the variables that look like settings and are none."""
        known = {f"HUB_{name.upper()}" for name in cls.model_fields}
        return sorted(name for name in environment if name.startswith("HUB_") and name not in known)

    @property
    def other_embeddings(self) -> list[str]:
        """The models beside the one in use."""
        return [name.strip() for name in self.embedding_models.split(",")]

    @property
    def on_loopback(self) -> bool:
        """Whether the hub can be reached from this machine only."""
        return self.listen.rpartition(":")[0] in _LOOPBACK

    @property
    def with_reflection(self) -> bool:
        """Whether reflection is served."""
        return self.on_loopback if self.reflection is None else self.reflection

    @property
    def connections(self) -> int:
        """How many connections to Postgres all workers together may have."""
        return self.workers * (self.pool_size + _OTHER_CONNECTIONS)

    @model_validator(mode="after")
    def _connections_suffice(self) -> Self:
        if self.database_url is None and self.connections > _MOST_EMBEDDED_CONNECTIONS:
            message = (
                f"HUB_WORKERS={self.workers} with HUB_POOL_SIZE={self.pool_size} may need "
                f"{self.connections} connections, the hub's own Postgres has at most "
                f"{_MOST_EMBEDDED_CONNECTIONS}"
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _transport_is_safe(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            message = "HUB_TLS_CERT and HUB_TLS_KEY go together"
            raise ValueError(message)
        if not (self.on_loopback or self.tls_cert or self.allow_plaintext):
            message = (
                f"HUB_LISTEN={self.listen} is not loopback: set HUB_TLS_CERT and HUB_TLS_KEY, "
                "or HUB_ALLOW_PLAINTEXT=true to serve credentials and messages unencrypted"
            )
            raise ValueError(message)
        return self
