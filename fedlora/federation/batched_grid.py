"""BatchedGrid: a Flower Grid whose nodes live in this process and whose clients train together, as one stacked batch."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedlora.federation.client import answer, introduce
from fedlora.federation.workbench import Workbench


class BatchedGrid(Grid):
    """All clients of a federation in one process.

    Node `i + 1` stands for client `i`. Replies are computed when messages are sent; nothing is lost and nothing is late, so
    `timeout` has no effect.

    Args:
        bench: The run's model and data, shared by all clients.
    """

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self._run = Run.create_empty(1)
        # Flower builds messages only inside a run; this process is the run.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
        self.contexts = {
            node: Context(1, node, {"partition-id": node - 1, "num-partitions": bench.config.clients}, RecordDict(), {})
            for node in range(1, bench.config.clients + 1)
        }
        self._replies: dict[str, Message] = {}
        self._sent = 0

    def set_run(self, run: Run) -> None:
        """Set the run this grid works for."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run this grid works for."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message for one node (kept for Flower's older strategies)."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return all nodes."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let the nodes answer and keep the replies; return the ids by which they are pulled."""
        batch = list(messages)
        for message in batch:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = str(self._sent)
        train = [message for message in batch if message.metadata.message_type == MessageType.TRAIN]
        replies = answer(self.bench, train, [self.contexts[message.metadata.dst_node_id] for message in train]) if train else []
        for message in batch:
            if message.metadata.message_type == MessageType.QUERY:
                replies.append(introduce(self.bench, message, self.contexts[message.metadata.dst_node_id]))
        self._replies |= {reply.metadata.reply_to_message_id: reply for reply in replies}
        return [message.metadata.message_id for message in batch]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, each once."""
        return [self._replies.pop(key) for key in message_ids if key in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return all replies."""
        return self.pull_messages(self.push_messages(messages))
