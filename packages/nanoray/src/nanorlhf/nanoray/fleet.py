"""The channels from a head to its agents, and the signs of life over them."""

from dataclasses import dataclass

from .channel import Channel
from .hub import Hub
from .wire import Message


@dataclass(slots=True)
class _Agent:
    heard_s: float
    machine: int | None = None
    """None until it has joined."""


class Fleet:
    """Everyone at the other end of a channel, by process number. Times are the caller's.

    Args:
        hub: Has the channels.
        beat_s: Seconds between two signs of life.
        limit_s: Seconds without one after which an agent counts as lost.
    """

    def __init__(self, hub: Hub, *, beat_s: float, limit_s: float, now_s: float) -> None:
        self._hub, self._beat_s, self._limit_s = hub, beat_s, limit_s
        self._agents: dict[int, _Agent] = {}
        self._processes: dict[int, int] = {}
        """Machine -> the process number of its agent."""
        self._beaten_s = now_s

    def __contains__(self, process: int) -> bool:
        return process in self._agents

    def __len__(self) -> int:
        return len(self._agents)

    def welcome(self, process: int, channel: Channel, *, now_s: float) -> None:
        """Begin to listen to an agent that has come through the door."""
        self._agents[process] = _Agent(now_s)
        self._hub.attach(process, channel)

    def heard(self, process: int, *, now_s: float) -> int | None:
        """Note a sign of life of an agent; return its machine, None before it has joined."""
        agent = self._agents[process]
        agent.heard_s = now_s
        return agent.machine

    def joined(self, process: int, machine: int) -> None:
        """Note that an agent speaks for a machine."""
        self._agents[process].machine = machine
        self._processes[machine] = process

    def drop(self, process: int) -> int | None:
        """Hang up on an agent; return the machine that is lost with it."""
        agent = self._agents.pop(process)
        self._hub.detach(process)
        if agent.machine is not None:
            del self._processes[agent.machine]
        return agent.machine

    def tell(self, machine: int, message: Message) -> None:
        """Send to a machine's agent; no harm when it is lost."""
        if machine in self._processes:
            self._hub.send(self._processes[machine], message)

    def tell_all(self, message: Message) -> None:
        """Send to every agent, joined or not."""
        for process in self._agents:
            self._hub.send(process, message)

    def beat(self, *, now_s: float) -> list[int]:
        """Give a sign of life when it is time to; return the agents that gave none for long."""
        if now_s - self._beaten_s < self._beat_s:
            return []
        was_away = now_s - self._beaten_s > self._limit_s / 2
        self._beaten_s = now_s
        self.tell_all(("beat",))
        if was_away:  # this process itself was stopped: what others said meanwhile is still unread
            return []
        agents = self._agents.items()
        return [process for process, agent in agents if now_s - agent.heard_s > self._limit_s]
