"""The models of one hub: the one it embeds with unless a space has another, and those beside it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from pydantic import SecretStr

from hub_server.embedding import Embedder, EmbeddingError, load_embedder, model_id

Load = Callable[[], Embedder]


class Models:
    """Loads models when they are first asked for; one at a time."""

    def __init__(self, default: Embedder, others: Mapping[str, Load] | None = None) -> None:
        """``others`` make the models beside the default, by id."""
        self.default = default
        self._others = {id_: load for id_, load in (others or {}).items() if id_ != default.model}
        self._loaded = {default.model: default}
        self._loading = asyncio.Lock()

    @property
    def names(self) -> Sequence[str]:
        """The ids of all models, the default first."""
        return [self.default.model, *self._others]

    def in_use(self, model: str | None) -> str:
        """Return the id to embed with for a space of some model: the default where it is unknown.

        None = the space has none yet.
        """
        return model if model in self._loaded or model in self._others else self.default.model

    async def get(self, model: str) -> Embedder:
        """Return a model of `names`. Raises EmbeddingError when it cannot be loaded."""
        if (known := self._loaded.get(model)) is not None:
            return known
        async with self._loading:
            if model not in self._loaded:
                self._loaded[model] = await asyncio.to_thread(_load, self._others[model])
            return self._loaded[model]

    def close(self) -> None:
        """Close the connections of all models that have some."""
        for model in self._loaded.values():
            if (close := getattr(model, "close", None)) is not None:
                close()


def load_models(
    default: str, key: SecretStr | None, others: Sequence[str], others_key: SecretStr | None
) -> Models:
    """Load the default model; return it with the others, which are loaded later, if ever.

    Raises what `load_embedder` raises.
    """
    # No server is told the key of another.
    loads = {model_id(one): _later(one, others_key) for one in others}
    return Models(load_embedder(default, key), loads)


def _later(name: str, key: SecretStr | None) -> Load:
    return lambda: load_embedder(name, key)


def _load(load: Load) -> Embedder:
    try:
        return load()
    except FileNotFoundError as error:
        raise EmbeddingError("the model is not installed") from error
