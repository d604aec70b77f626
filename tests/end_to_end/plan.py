"""What 200 executions are told to do, and the ledger that has to come of it, worked out by hand and not by us."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal

from telemetry import Status

EXECUTIONS = 200
UNATTRIBUTED = "_unattributed"
SUCCESS, FAILURE, TIMEOUT, CANCELLED = Status.SUCCESS, Status.FAILURE, Status.TIMEOUT, Status.CANCELLED

# USD per million tokens, from the providers' price lists: input, read from cache, written to cache, output.
PRICES = {
    ("openai", "gpt-4o-mini"): ("0.15", "0.075", "0", "0.60"),
    ("anthropic", "claude-sonnet-4-0"): ("3", "0.30", "3.75", "15"),
}


@dataclass(frozen=True)
class Call:
    """A model call. `stated_usd` is a price the provider told us; `late`: it ends after its agent has."""

    provider: str
    model: str
    input: int
    cache_read: int
    cache_write: int
    output: int
    reasoning: int
    stated_usd: str | None = None
    streamed: bool = False
    late: bool = False

    @property
    def cost(self) -> Decimal | None:
        """USD, by hand; None when nobody knows."""
        if self.stated_usd is not None:
            return Decimal(self.stated_usd)
        if (self.provider, self.model) not in PRICES:
            return None
        fresh, read, write, out = map(Decimal, PRICES[self.provider, self.model])
        plain = self.input - self.cache_read - self.cache_write
        tokens = plain * fresh + self.cache_read * read + self.cache_write * write + self.output * out
        return tokens / 1_000_000

    @property
    def classes(self) -> dict[str, int]:
        return {
            "input": self.input,
            "cache_read": self.cache_read,
            "cache_write": self.cache_write,
            "output": self.output,
            "reasoning": self.reasoning,
        }


@dataclass(frozen=True)
class Node:
    """One execution.

    `kind` is how it is written: `block`, `coroutine`, `async_generator`, `function`, `generator` (these two run
    in a thread), `foreign` (spans of a framework that repeats its calls' usage on wrappers and on the agent),
    `report` (a framework that states usage on the agent only), `lone_call` (a model call outside any agent).
    """

    agent: str
    kind: str
    status: Status
    calls: tuple[Call, ...] = ()
    tools: tuple[str, ...] = ()
    children: tuple[Node, ...] = ()
    late: bool = False

    def tree(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            yield from child.tree()


@dataclass
class Ledger:
    """The numbers that every place must agree on; without zeros. Own tokens and cost, never sub-agents'."""

    executions: Counter[tuple[str, str]] = field(default_factory=Counter)  # agent, status
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    tokens: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # agent, model, class
    tools: Counter[tuple[str, str]] = field(default_factory=Counter)  # agent, tool
    first_chunks: Counter[tuple[str, str]] = field(default_factory=Counter)  # agent, model
    cost: Counter[tuple[str, str]] = field(default_factory=Counter)  # agent, model: picodollars
    unpriced: Counter[tuple[str, str]] = field(default_factory=Counter)  # agent, model: tokens

    def add_cost(self, agent: str, model: str, usd: Decimal | float) -> None:
        """Whole picodollars: what a double can hold of these sums, and all that the prices have."""
        self.cost[agent, model] += round(Decimal(str(usd)) * 10**12)

    def total(self, *classes: str) -> int:
        return sum(count for (_, _, kind), count in self.tokens.items() if kind in classes)


def ledger(roots: list[Node]) -> Ledger:
    """What the plan comes to."""
    sums = Ledger()
    for root in roots:
        sums.requests[root.agent, root.status] += 1
        for node in root.tree():
            sums.executions[node.agent, node.status] += 1
            for tool in node.tools:
                sums.tools[node.agent, tool] += 1
            for call in node.calls:
                for kind, count in call.classes.items():
                    if count:
                        sums.tokens[node.agent, call.model, kind] += count
                if call.streamed:
                    sums.first_chunks[node.agent, call.model] += 1
                if call.cost is None:
                    sums.unpriced[node.agent, call.model] += call.input + call.output
                elif call.cost:
                    sums.add_cost(node.agent, call.model, call.cost)
    return sums


def make(seed: int = 2026) -> list[Node]:
    """`EXECUTIONS` executions, as the roots of their trees; the same for the same seed."""
    chance = random.Random(seed)
    roots: list[Node] = [*_corners()]
    left = EXECUTIONS - sum(1 for root in roots for _ in root.tree())
    while left:
        root = _node(chance, min(left, chance.choice((1, 1, 2, 3, 5))), depth=0)
        roots.append(root)
        left -= sum(1 for _ in root.tree())
    return roots


def _corners() -> Iterator[Node]:
    """Every kind with every ending it can have, and the rare shapes, whatever the dice say."""
    call = Call("openai", "gpt-4o-mini", 900, 400, 0, 120, 20)
    for kind in ("block", "coroutine", "async_generator", "function", "generator"):
        for status in (SUCCESS, FAILURE, TIMEOUT, CANCELLED):
            if (kind, status) != ("function", CANCELLED):
                yield Node(f"{kind}_agent", kind, status, (call,), ("search",))
    worker = Node("worker", "coroutine", CANCELLED, (call,))
    yield Node("boss", "block", CANCELLED, (call,), (), (worker,))  # one cancellation ends both
    for status in (FAILURE, TIMEOUT):  # what the worker raises passes through its boss
        yield Node("boss", "coroutine", status, (), (), (replace(worker, status=status),))
    yield Node("late_call", "block", SUCCESS, (call, replace(call, late=True)))
    late = Node("late_worker", "coroutine", SUCCESS, (call,), late=True)
    yield Node("late_boss", "coroutine", SUCCESS, (call,), (), (late, Node("worker", "block", SUCCESS, (call,))))
    yield Node("foreign_agent", "foreign", SUCCESS, (call, call), ("search",))
    yield Node("foreign_agent", "foreign", FAILURE, (call,))
    yield Node("boss", "block", SUCCESS, (call,), (), (Node("foreign_agent", "foreign", SUCCESS, (call,)),))
    reported = Call("openai", "gpt-4o-mini", 700, 0, 0, 70, 0)
    yield Node("report_agent", "report", SUCCESS, (reported,))
    yield Node(UNATTRIBUTED, "lone_call", SUCCESS, (call,))


def _node(chance: random.Random, size: int, depth: int) -> Node:
    kind = chance.choice(("block", "coroutine", "async_generator", "function", "generator"))
    statuses = [SUCCESS] * 4 + [FAILURE, TIMEOUT] + [CANCELLED] * (kind != "function")
    children = []
    size -= 1
    while size and kind not in ("function", "generator"):
        part = chance.randint(1, size)
        children.append(_node(chance, part, depth + 1))
        size -= sum(1 for _ in children[-1].tree())
    calls = tuple(_call(chance) for _ in range(chance.choice((0, 1, 1, 2))))
    tools = tuple(chance.choices(("search", "calculator"), k=chance.choice((0, 0, 1, 2))))
    agent = chance.choice(("main_orchestrator", "planner") if depth == 0 else ("researcher", "writer", "critic"))
    return Node(agent, kind, chance.choice(statuses), calls, tools, tuple(children))


def _call(chance: random.Random) -> Call:
    read, write, plain = (chance.choice((0, chance.randint(1, 4000))) for _ in range(3))
    reasoning, text = chance.choice((0, chance.randint(1, 900))), chance.randint(1, 900)
    provider, model, usd = chance.choice(
        (
            ("openai", "gpt-4o-mini", None),
            ("anthropic", "claude-sonnet-4-0", None),
            ("acme", "house-model", None),  # nobody knows its price
            ("acme", "house-model", str(Decimal(chance.randint(1, 10**6)) / 10**8)),
        )
    )
    if provider == "openai":
        write = 0  # OpenAI has no price for it
    counts = (read + write + plain, read, write, reasoning + text, reasoning)
    return Call(provider, model, *counts, stated_usd=usd, streamed=chance.random() < 0.3)
