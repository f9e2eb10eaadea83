from support.tiny_people import adapter_of, model_of  # noqa: F401
from support.tiny_stack import cast, inference_mode, shot, stack, tiny_files  # noqa: F401
