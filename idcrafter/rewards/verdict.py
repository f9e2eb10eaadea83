"""What a record says of each subject, in one sentence for people."""

from __future__ import annotations

from ..subjects.faces import ALIKE_COSINE
from .assignment import MATCH_COSINE

GOOD, DOUBTFUL, BAD = "good", "doubtful", "bad"

# A likeness that reaches this share of what the subject's own photos have among each other is as good as it gets.
_LIKE_PHOTOS = 0.9


def subject_verdict(take: dict, name: str, photos_agree: float | None = None) -> tuple[str, str]:
    """A sentence on one subject of a report's take, and how bad it is: GOOD, DOUBTFUL or BAD.

    photos_agree  the cosine of the subject's own photos (report["subjects"]), where it has several
    """
    figures, frames = take["subjects"][name], take["frames"]
    if not frames:
        return f"Not scored: {take['note']}.", BAD
    own = [event for event in take["events"] if concerns(event, name)]
    if figures["similarity_seen"] is None:
        mixed = [event for event in own if event["kind"] == "blended"]
        likeness, level, own = "never recognised" if mixed else "never seen", BAD, mixed
    else:
        likeness, level = _likeness(figures["similarity_seen"], photos_agree)
        if not own and figures["missing_frames"]:
            likeness += f", but face not visible in {figures['missing_frames']} of {len(frames)} frames"
            level = DOUBTFUL if level == GOOD and figures["coverage"] < 0.5 else level
    text = likeness + (f", but {', '.join(_what(event, name, take) for event in own)}" if own else "")
    return text[0].upper() + text[1:] + ".", BAD if own else level


def concerns(event: dict, name: str) -> bool:
    """Whether an event is about a subject; of a blend only the one whose face it should be is to blame."""
    return name in (event["subjects"][:1] if event["kind"] == "blended" else event["subjects"])


def _what(event: dict, name: str, take: dict) -> str:
    others = " and ".join(other for other in event["subjects"] if other != name)
    words = {
        "swapped": f"exchanged with {others} at {_moment(event['first'], take)}",
        "missing": f"{_absence(event, name, take)} {_when(event, take)}",
        "cloned": f"there twice {_when(event, take)}",
        "blended": f"mixed with {others} {_when(event, take)}",
    }
    return words[event["kind"]]


def clip_verdict(take: dict) -> list[tuple[str, str]]:
    """Sentences on the clip as a whole: people too many, nothing that moves."""
    found = [(take["note"][0].upper() + take["note"][1:] + ".", BAD)] if take["note"] and take["frames"] else []
    if take["frames"]:
        extra = [event for event in take["events"] if event["kind"] == "extra"]
        found += [(f"One person or more too many {_when(event, take)}.", DOUBTFUL) for event in extra]
    return found


def _likeness(seen: float, photos_agree: float | None) -> tuple[str, str]:
    if photos_agree is not None and seen >= max(_LIKE_PHOTOS * photos_agree, ALIKE_COSINE):
        return "looks just like the photos", GOOD
    if seen >= ALIKE_COSINE:
        return "clearly recognisable", GOOD
    if seen >= MATCH_COSINE:
        return "only a weak likeness", DOUBTFUL
    return "hardly recognisable", BAD


def _absence(event: dict, name: str, take: dict) -> str:
    """A subject is missing where there is no face, and where there is one that is not the subject's."""
    during = [frame for frame in take["frames"] if event["first"] <= frame["frame"] <= event["last"]]
    seen = sum(frame["subjects"][name] is not None for frame in during)
    return "probably somebody else" if seen > len(during) / 2 else "missing"


def _when(event: dict, take: dict) -> str:
    first, last = event["first"], event["last"]
    starts, ends = (first == take["frames"][0]["frame"]), (last == take["frames"][-1]["frame"])
    if starts and ends:
        return "throughout"
    if ends:
        return f"from {_moment(first, take)} on"
    if starts:
        return f"until {_moment(last, take)}"
    return f"from {_moment(first, take)} to {_moment(last, take)}"


def _moment(frame: int, take: dict) -> str:
    return f"frame {frame}" + (f" ({frame / take['fps']:.1f} s)" if take["fps"] else "")
