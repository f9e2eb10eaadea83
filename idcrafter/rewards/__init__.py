"""How well a clip keeps its people: pure functions over arrays, and the report that is made of their results."""
