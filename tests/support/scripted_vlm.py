"""A VLM that says what a test has written down."""

import json


class ScriptedVLM:
    """Gives its answers in turn, the last one again and again; `asked` holds the requests. An exception is raised."""

    def __init__(self, *answers, digest: str = "scripted"):
        self.answers, self.digest, self.asked = answers, digest, []

    def generate(self, parts, max_tokens, temperature, seed, on_token):
        self.asked.append(list(parts))
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if isinstance(answer, BaseException):
            raise answer
        if on_token:
            on_token()
        return answer if isinstance(answer, str) else json.dumps(answer)

    def describe(self):
        return {"name": "Scripted", "licence": "mit"}

    def words(self, number: int) -> str:
        """What a request said, without its pictures."""
        return "".join(part for part in self.asked[number] if isinstance(part, str))


def answer(relations=(("Ada", "hugs", "Bo"),), looks=None, **more) -> dict:
    """A good answer about Ada and Bo."""
    looks = looks or {"Ada": "a woman with red hair", "Bo": "an old man in a hat"}
    rows = [dict(zip(("subject", "predicate", "object", "when"), each, strict=False)) for each in relations]
    subjects = [{"name": name, "description": look} for name, look in looks.items()]
    return {"subjects": subjects, "relations": rows, "scene": "", "camera": "", **more}
