"""The pack's own socket types. Everything else travels on ComfyUI's native types.

IDCRAFTER_SUBJECT        idcrafter.subjects.subject.Subject
IDCRAFTER_CAST           idcrafter.subjects.subject.Cast
IDCRAFTER_FACE_ANALYZER  idcrafter.subjects.faces.FaceAnalyzer
IDCRAFTER_TAKES          idcrafter.sampling.takes.Takes
IDCRAFTER_SCORECARD      idcrafter.rewards.scorecard.Scorecard
"""

from comfy_api.latest import io

SubjectType = io.Custom("IDCRAFTER_SUBJECT")
CastType = io.Custom("IDCRAFTER_CAST")
FaceAnalyzerType = io.Custom("IDCRAFTER_FACE_ANALYZER")
TakesType = io.Custom("IDCRAFTER_TAKES")
ScorecardType = io.Custom("IDCRAFTER_SCORECARD")
