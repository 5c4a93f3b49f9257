"""The handle of a placement group."""

from dataclasses import dataclass

from .refs import ObjectRef


@dataclass(frozen=True, slots=True)
class PlacementGroup:
    """Resources reserved together, bundle by bundle; made by ``placement_group``.

    It may be passed to tasks and actors. It lives until ``remove_placement_group``. When a machine
    is lost, the bundles it had are reserved again on others; ``ready`` waits until they are.
    """

    id: int
    bundles: tuple[dict[str, float], ...]
    strategy: str
    name: str = ""

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """What each bundle reserves, as Ray calls it."""
        return [dict(bundle) for bundle in self.bundles]

    @property
    def bundle_count(self) -> int:
        """The number of bundles."""
        return len(self.bundles)

    def ready(self) -> ObjectRef:
        """Return a ref that is ready (its value is None) once every bundle is reserved."""
        from .session import current  # a cycle otherwise: sessions make groups

        holds = current().holds
        holds.add(self.id)
        return ObjectRef(self.id, holds)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the group is reserved; return False when ``timeout`` seconds pass first."""
        from .session import current  # a cycle otherwise: sessions make groups

        return bool(current().wait([self.id], num_returns=1, timeout=timeout, fetch_local=False))

    def __hash__(self) -> int:
        return hash(self.id)
