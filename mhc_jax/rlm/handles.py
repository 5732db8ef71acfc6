"""What a session hands out: texts that are loaded, results of a search, its history."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Handle:
    """A text that was loaded.

    Attributes:
        context_id: of it in its session.
        total_tokens, num_chunks, chunk_size, overlap, text_length: of the text, its length in characters.
    """

    context_id: int
    total_tokens: int
    num_chunks: int
    chunk_size: int
    overlap: int
    text_length: int


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """A chunk that is near a query.

    Attributes:
        chunk_id: counted from 0.
        start_pos, end_pos: its tokens.
        score: cosine of the vectors.
        snippet: its first tokens as text.
    """

    chunk_id: int
    start_pos: int
    end_pos: int
    score: float
    snippet: str


@dataclasses.dataclass(frozen=True)
class Call:
    """A query in the history of a session: how deep it was, and whether it came to an end."""

    call_id: int
    depth: int
    completed: bool
