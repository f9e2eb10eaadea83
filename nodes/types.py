"""The pack's own socket types. Everything else travels on ComfyUI's native types.

IDCRAFTER_SUBJECT        idcrafter.subjects.subject.Subject
IDCRAFTER_CAST           idcrafter.subjects.subject.Cast
IDCRAFTER_FACE_ANALYZER  idcrafter.subjects.faces.FaceAnalyzer
IDCRAFTER_TAKES          idcrafter.sampling.takes.Takes
IDCRAFTER_SCORECARD      idcrafter.rewards.scorecard.Scorecard
IDCRAFTER_REWARD         idcrafter.rewards.terms.RewardSpec
IDCRAFTER_IMAGE_ENCODER  idcrafter.rewards.subject_crops.ImageEncoder
IDCRAFTER_AESTHETICS     idcrafter.rewards.aesthetic.AestheticModel
IDCRAFTER_VLM            model_loaders.vlm.LocalVLM, or model_loaders.vlm_clip.ClipVLM
IDCRAFTER_JUDGE          model_loaders.judge.Judge
IDCRAFTER_ADAPTER        model_loaders.adapter.Adapter
IDCRAFTER_ROLLOUTS       idcrafter.rollouts.dataset.Rollouts
IDCRAFTER_ALIGNER        model_loaders.aligner.Aligner
"""

from comfy_api.latest import io

SubjectType = io.Custom("IDCRAFTER_SUBJECT")
CastType = io.Custom("IDCRAFTER_CAST")
FaceAnalyzerType = io.Custom("IDCRAFTER_FACE_ANALYZER")
TakesType = io.Custom("IDCRAFTER_TAKES")
ScorecardType = io.Custom("IDCRAFTER_SCORECARD")
RewardType = io.Custom("IDCRAFTER_REWARD")
ImageEncoderType = io.Custom("IDCRAFTER_IMAGE_ENCODER")
AestheticPredictorType = io.Custom("IDCRAFTER_AESTHETICS")
VLMType = io.Custom("IDCRAFTER_VLM")
JudgeType = io.Custom("IDCRAFTER_JUDGE")
AdapterType = io.Custom("IDCRAFTER_ADAPTER")
RolloutsType = io.Custom("IDCRAFTER_ROLLOUTS")
AlignerType = io.Custom("IDCRAFTER_ALIGNER")
